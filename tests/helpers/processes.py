"""Command-line flags that connect two processes on this machine."""

import socket


def with_port() -> list[str]:
    """Flags for two processes that connect through a free port of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return [f"--coordinator=localhost:{free.getsockname()[1]}", "--process_count=2"]
