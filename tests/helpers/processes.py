"""Two processes that find each other on this machine."""

import socket


def with_port() -> list[str]:
    """The flags of two processes that find each other at a free port of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return [f"--coordinator=localhost:{free.getsockname()[1]}", "--process_count=2"]
