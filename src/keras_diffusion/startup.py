"""Pauses garbage collection while long-lived objects are created."""

import gc
from contextlib import contextmanager


@contextmanager
def paused_gc():
    """Keeps the collector from searching what is made inside it, which counts as old afterwards.

    It acts on the whole process, so only the command line uses it. Importing a backend and building networks make some
    700,000 objects; searching them again and again took a seventh of the time to a first image.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # whoever has frozen objects wants them to stay frozen
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()
