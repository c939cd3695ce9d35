"""Python's collector of garbage, kept from searching where there is none."""

import gc
from contextlib import contextmanager


@contextmanager
def lasting():
    """Says that what is made inside it stays, which spares the collector going through it again and again.

    Importing a backend and building networks make some 700,000 objects, which took a seventh of the time to a first
    picture. They count as old from then on, and are collected as ever once they are garbage.
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
