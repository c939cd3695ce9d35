"""Calls share a model; changes of its weights wait for them."""

import copy
import threading

import pytest

from keras_diffusion.system.locks import Unchanged, changing, reading, reads, resumed

from . import stress


class Thing:
    pass


@pytest.fixture
def thing():
    return Thing()


def started(work):
    """A thread, once it is about to do what it must wait for."""
    begun = threading.Event()
    thread = threading.Thread(target=lambda: (begun.set(), work()))
    thread.start()
    begun.wait()
    return thread


def test_calls_share_and_changes_wait(thing):
    events, inside = [], threading.Barrier(2)

    def call():
        with reading(thing):
            inside.wait(10)
            events.append("call")

    def change():
        with changing(thing):
            events.append("change")

    with reading(thing, Thing()):
        assert reads(thing)
        changes = started(change)
        with reading(thing):  # a change that waits keeps others out, but not those that it waits for
            events.append("inner call")
    changes.join()
    assert not reads(thing)
    calls = [started(call), started(call)]  # the barrier opens only for two at a time
    for thread in calls:
        thread.join()
    assert sorted(events[:2]) == ["change", "inner call"]
    assert events[0] == "inner call"


def test_a_change_is_alone_and_may_read_and_change_further(thing):
    values = []

    def change(name):
        for _ in range(50):
            with changing(thing), changing(thing), reading(thing):
                values.append(name)
                values.append(name)

    threads = [started(lambda name=name: change(name)) for name in "ab"]
    for thread in threads:
        thread.join()
    assert values[::2] == values[1::2]


def test_a_change_inside_a_call_is_refused(thing):
    with (
        reading(thing),
        pytest.raises(RuntimeError, match="cannot change while it draws"),
        changing(thing),
    ):
        pass
    with changing(thing):
        assert not reads(thing)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("use", [reading, changing])
def test_nothing_is_held_after_an_error(thing, use, error):
    steps = resumed(iter(range(2)), thing)
    with pytest.raises(error), use(thing):
        raise error
    with changing(Thing()):
        assert list(steps) == [0, 1]  # a change that failed has changed nothing
    with changing(thing):
        pass


def test_what_goes_on_step_by_step_notices_a_change(thing):
    steps = resumed(iter("abc"), thing)
    assert next(steps) == "a"
    assert not reads(thing)
    with changing(Thing()):
        assert next(steps) == "b"
    with changing(thing):
        pass
    with pytest.raises(RuntimeError, match="have changed since this began"):
        next(steps)


def test_a_copy_of_two_states_is_refused(thing):
    state = {"thing": 1, "unchanged": Unchanged(thing)}
    assert copy.deepcopy(state) == {"thing": 1, "unchanged": None}
    with pytest.raises(ValueError), changing(thing):  # noqa: PT011
        raise ValueError  # what it had changed may be in the copy
    with pytest.raises(RuntimeError, match="while it was copied"):
        copy.deepcopy(state)


@pytest.mark.backend
def test_images_are_those_of_a_state(tmp_path):
    counts, wrong = stress.Stress(tmp_path).run(operations=200, threads=8, seed=0)
    assert not wrong
    assert counts["drawing"] > 50
    assert counts["loading"]
    assert counts["unloading"]
