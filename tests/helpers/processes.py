"""Command-line flags that connect two processes on this machine."""

import socket


def with_port(count: int = 2) -> list[str]:
    """Flags for `count` processes that connect through a free port of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return [f"--coordinator=localhost:{free.getsockname()[1]}", f"--process_count={count}"]
