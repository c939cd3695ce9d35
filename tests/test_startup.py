import gc
import subprocess
import sys
import weakref

import pytest

from keras_diffusion.startup import paused_gc

COMMAND_LINE = """
import gc
searched = []
gc.callbacks.append(lambda phase, info: searched.append(info["generation"]))
from keras_diffusion.cli import model

model.load(preset="emoji")
assert 2 not in searched, searched.count(2)
"""
LIBRARY = """
import gc
import keras
for name in ("collect", "disable", "enable", "freeze", "unfreeze"):
    setattr(gc, name, None)  # calling it fails
from keras_diffusion import StableDiffusion

StableDiffusion.from_preset("emoji")
"""


class Node:
    """What only the collector can take away: it refers to itself."""

    def __init__(self):
        self.itself = self


def test_what_is_made_inside_counts_as_old():
    with paused_gc():
        node = Node()
    assert any(node is other for other in gc.get_objects(generation=2))


def test_nothing_is_searched_inside():
    searched = []
    gc.callbacks.append(lambda phase, info: searched.append(phase))
    try:
        with paused_gc():
            nodes = [Node() for _ in range(10 * gc.get_threshold()[0])]
    finally:
        gc.callbacks.pop()
    assert nodes
    assert not searched


def test_garbage_is_collected_afterwards():
    with paused_gc():
        node = weakref.ref(Node())
    assert node()
    gc.collect()
    assert node() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled):
    try:
        (gc.enable if enabled else gc.disable)()
        with paused_gc():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(KeyError), paused_gc():
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_frozen_objects_stay_frozen():
    """The collector lists all objects but the frozen ones."""
    node = Node()
    gc.freeze()
    try:
        with paused_gc():
            pass
        assert not any(node is other for other in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(node is other for other in gc.get_objects())


def test_the_command_line_loads_without_a_full_collection():
    """Each goes through all objects of a backend."""
    run(COMMAND_LINE)


def test_the_library_leaves_the_collector_alone():
    run(LIBRARY)


def run(code):
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
