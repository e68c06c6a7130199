"""Accelerated BERT pre-training: one trunk, one train loop, methods as small files."""

__version__ = "0.1.0"


class BadInput(Exception):
    """What the user gave cannot be used.

    The message names the thing, the value it had, what was expected and the remedy; the commands
    print it without a traceback and exit with 2.
    """
