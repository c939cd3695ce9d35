import math
import os

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion.system.memory import ALIGNMENT, OwnedArray, aligned_array, physical_memory

pytestmark = pytest.mark.backend
copies = pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX copies")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (1000, 77)])
@pytest.mark.parametrize("allocate", [np.zeros, np.empty])
def test_aligned(allocate, shape, dtype):
    array = aligned_array(allocate, shape, dtype)
    assert (array.shape, str(array.dtype)) == (shape, dtype)
    assert array.size == 0 or array.ctypes.data % ALIGNMENT == 0
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert allocate is np.empty or not array.any()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0,), (1000, 77)])
def test_a_gift_keeps_its_values(shape, dtype):
    array = aligned_array(np.empty, shape, dtype)
    array[...] = np.random.default_rng(0).normal(size=shape)
    tensor = ops.convert_to_tensor(OwnedArray(array), dtype)
    assert keras.backend.standardize_dtype(tensor.dtype) == dtype
    np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(tensor, "float32")), array.astype("float32"))


@copies
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_gift_is_not_copied(dtype):
    array = aligned_array(np.zeros, (1000, 77), dtype)
    tensor = ops.convert_to_tensor(OwnedArray(array), dtype)
    array[999, 76] = 3
    assert float(tensor[999, 76]) == 3


@copies
def test_a_variable_keeps_the_memory():
    """Also when nothing else refers to it, and when the variable is changed in place."""
    variable = keras.Variable(np.zeros((1000, 1000)), dtype="float32")
    variable.assign(ops.convert_to_tensor(OwnedArray(aligned_array(np.zeros, (1000, 1000), "float32")), "float32"))
    others = [np.full((1000, 1000), 7.0, "float32") for _ in range(3)]
    variable.assign_add(ops.ones((1000, 1000)))
    assert (ops.convert_to_numpy(variable) == 1).all()
    assert all((other == 7).all() for other in others)


def test_physical_memory(monkeypatch):
    assert 2**28 < physical_memory() <= math.inf

    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert physical_memory() == math.inf
