"""Refuses to compute where a computation would wait without end."""

import os

STARTED = set()  # this process, once it computes, and those that it was forked from


def require_own_process():
    """Notes that Keras computes in this process; raises a RuntimeError if it was forked from one in which Keras did.

    The threads of Keras' backend are not in the fork, and whoever needs them would wait for ever.
    """
    process = os.getpid()
    if parents := STARTED - {process}:
        raise RuntimeError(
            "Keras does not compute in a process that was forked from one in which it has computed. Start processes "
            "with multiprocessing.get_context('spawn'), or load the first model after the fork. "
            f"Received: process {process}, forked from {max(parents)}"
        )
    STARTED.add(process)
