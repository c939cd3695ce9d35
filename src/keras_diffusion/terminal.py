"""Writes to the terminal, and keeps backends from writing there."""

import os
import sys
from contextlib import contextmanager

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


@contextmanager
def quiet():
    """Keeps off stderr what backends say when they are imported, unless a log level is set.

    They say some of it before they look at the log level.
    """
    if LOG_LEVEL in os.environ:
        yield
        return
    os.environ[LOG_LEVEL] = "3"
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def show(text):
    """Replaces the last line of a terminal; a log gets none of it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def bar_or_line(verbose):
    """Returns the `verbose` of a progress bar: a bar becomes a last line where there is no terminal and no notebook.

    `keras.config.disable_interactive_logging()` switches all of them off.
    """
    import keras

    if not keras.config.is_interactive_logging_enabled():
        return 0
    notebook = "ipykernel" in sys.modules
    return 2 if verbose == 1 and not (notebook or sys.stdout.isatty()) else verbose
