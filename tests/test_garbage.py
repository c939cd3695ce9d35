import gc
import subprocess
import sys
import weakref

import pytest

from keras_diffusion.garbage import lasting

FIRST_PICTURE = """
import gc
searched = []
gc.callbacks.append(lambda phase, info: searched.append(info["generation"]))
from keras_diffusion import StableDiffusion

model = StableDiffusion.from_preset("emoji")
model.text_to_image("a red apple", num_steps=1, verbose=0)
assert 2 not in searched, searched.count(2)
"""


class Node:
    """What only the collector can take away: it refers to itself."""

    def __init__(self):
        self.itself = self


def test_what_is_made_inside_counts_as_old():
    with lasting():
        node = Node()
    assert any(node is other for other in gc.get_objects(generation=2))


def test_nothing_is_searched_inside():
    searched = []
    gc.callbacks.append(lambda phase, info: searched.append(phase))
    try:
        with lasting():
            nodes = [Node() for _ in range(10 * gc.get_threshold()[0])]
    finally:
        gc.callbacks.pop()
    assert nodes
    assert not searched


def test_garbage_is_collected_afterwards():
    with lasting():
        node = weakref.ref(Node())
    assert node()
    gc.collect()
    assert node() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled):
    try:
        (gc.enable if enabled else gc.disable)()
        with lasting():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(KeyError), lasting():
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_frozen_objects_stay_frozen():
    """The collector lists all objects but the frozen ones."""
    node = Node()
    gc.freeze()
    try:
        with lasting():
            pass
        assert not any(node is other for other in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(node is other for other in gc.get_objects())


def test_no_full_collection_before_the_first_picture():
    """Each goes through all objects of a backend; without `lasting` there are six."""
    child = subprocess.run([sys.executable, "-c", FIRST_PICTURE], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
