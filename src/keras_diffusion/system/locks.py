"""Lets any number of calls use a model at a time; changes of its weights wait for them.

That is a readers-writer lock for each object (Courtois, Heymans and Parnas 1971, "Concurrent control with 'readers' and
'writers'"). A change that waits goes before the calls that come after it. Objects hold no lock of their own, so that
they can be copied and pickled.
"""

import threading
from contextlib import contextmanager
from weakref import WeakKeyDictionary

_turn = threading.Condition()
_states = WeakKeyDictionary()


class _State:
    """Holds who uses an object.

    Attributes:
        readers: (thread, token) of each call that uses it.
        waiting: The token of each change that waits.
        writer: The thread that changes it, or None.
        begun: How many changes have begun.
        changes: How many of them were not undone by an error.
    """

    def __init__(self):
        self.readers, self.waiting, self.writer, self.begun, self.changes = set(), set(), None, 0, 0


@contextmanager
def reading(*objects):
    """Keeps objects as they are: waits for a change under way, and has others wait until the end of the block."""
    thread, states = threading.get_ident(), _states_of(objects)
    reader = thread, object()
    try:
        with _turn:
            inside = any(map(_reads, _states.values()))  # then a change that waits, waits for this thread
            _turn.wait_for(
                lambda: all(state.writer in (None, thread) and (inside or not state.waiting) for state in states)
            )
            for state in states:
                state.readers.add(reader)
        yield
    finally:
        with _turn:
            for state in states:
                state.readers.discard(reader)
            _turn.notify_all()


@contextmanager
def changing(*objects):
    """Gives this thread objects to change: waits for the calls that use them; others wait until the end of the block.

    Raises:
        RuntimeError: If this thread is inside a call that uses one of them, as callbacks are.
    """
    thread, states, token, before = threading.get_ident(), _states_of(objects), object(), []
    if any(map(_reads, states)):
        raise RuntimeError(
            "The weights of a model cannot change while it draws. Do it after the call, not in a callback."
        )
    try:
        with _turn:
            for state in states:
                state.waiting.add(token)
            _turn.wait_for(lambda: all(state.writer in (None, thread) and not state.readers for state in states))
            before = [state.writer for state in states]
            for state in states:
                state.waiting.discard(token)
                state.writer = thread
                state.begun += 1
        yield
        for state in states:
            state.changes += 1
    finally:
        with _turn:
            for state in states:
                state.waiting.discard(token)
            for state, writer in zip(states, before, strict=False):
                state.writer = writer
            _turn.notify_all()


def reads(thing):
    """Returns whether this thread is inside a call that uses an object."""
    return _reads(*_states_of([thing]))


def resumed(iterator, *objects):
    """Iterates over what computes with objects, which may change between two of its steps, but must not.

    Raises:
        RuntimeError: At the next step, if one of them has changed since this function was called.
    """
    before = [state.changes for state in _states_of(objects)]

    def steps():
        while True:
            with reading(*objects):
                if [state.changes for state in _states_of(objects)] != before:
                    raise RuntimeError("The weights of the model have changed since this began. Begin again.")
                try:
                    step = next(iterator)
                except StopIteration:
                    return
            yield step

    return steps()


class Unchanged:
    """Lets a pickle or copy that ends with it fail if a change of one of its objects has begun since it was made."""

    def __init__(self, *objects):
        self._objects = objects
        with reading(*objects):
            self._before = [state.begun for state in _states_of(objects)]

    def __reduce__(self):
        with reading(*self._objects):
            if [state.begun for state in _states_of(self._objects)] != self._before:
                raise RuntimeError("The weights of the model have changed while it was copied. Copy it again.")
        return type(None), ()


def _states_of(objects):
    with _turn:
        return [_states.setdefault(each, _State()) for each in {id(each): each for each in objects}.values()]


def _reads(state):
    return any(thread == threading.get_ident() for thread, _ in state.readers)
