"""What torch computes in its own way is what Keras' operations compute."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion.engines.choice import replaced_operations
from keras_diffusion.networks import layers, operations
from keras_diffusion.networks.network import construction

from ..golden import networks

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="these are torch's"),
]
MAP, TOKENS = (2, 6, 5, 8), (2, 30, 8)
LAYERS = [
    ("convolve", lambda: layers.conv(12, "conv"), MAP),
    ("convolve", lambda: layers.conv(12, "conv", strides=2, padding="valid"), MAP),
    ("project", lambda: layers.dense(12, "dense"), MAP),
    ("project", lambda: layers.dense(12, "dense", use_bias=False), TOKENS),
    ("feed", lambda: layers.FeedForward(), TOKENS),
    ("attend", lambda: layers.Attention(heads=2), TOKENS),
    ("attend", lambda: layers.Attention(heads=2, causal=True), TOKENS),
    ("moments", lambda: layers.GroupNorm(4), MAP),
    ("modulate", lambda: layers.GroupNorm(4, silu=True), MAP),
]


@pytest.fixture
def fused():
    return replaced_operations("eager")


def test_everything_is_replaced(fused):
    """But what is made of other operations, what only looks up, and what is one kernel already."""
    tried = {name for name, *_ in LAYERS}
    assert fused.keys() == tried == operations.DEFAULT.keys() - {"group_norm", "embed", "silu", "block"}


@pytest.mark.parametrize("limit", [1, 100, 2**23])
@pytest.mark.parametrize(("name", "make", "shape"), LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float32_from_float16"])
def test_it_is_the_same(monkeypatch, fused, name, make, shape, dtype, limit):
    """In many parts, in some, and at once."""
    for constant in ("HIDDEN", "KERNEL"):
        monkeypatch.setattr(f"keras_diffusion.engines.torch.{constant}", limit)
    with construction(dtype):
        layer = make()
    layer.build(shape)
    for variable in layer.variables:
        variable.assign(networks.uniform(variable.path, variable.shape))
    x = ops.convert_to_tensor(3 + networks.uniform("x", shape))  # not around zero, where moments could cancel
    expected = ops.convert_to_numpy(ops.cast(layer(x), "float32"))
    used = []
    replacement = {name: lambda *arguments: used.append(name) or fused[name](*arguments)}
    with pytest.importorskip("torch").no_grad(), operations.replace_operations(**replacement):
        found = ops.convert_to_numpy(ops.cast(layer(x), "float32"))
    assert used
    tolerance = 3e-2 if dtype == "bfloat16" else 2e-6
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


def test_what_was_given_stays_as_it_was(fused):
    x = ops.convert_to_tensor(networks.uniform("x", MAP))
    before = np.array(ops.convert_to_numpy(x))
    mean, _ = fused["moments"](x)
    fused["modulate"](x, mean, mean, True)
    np.testing.assert_array_equal(ops.convert_to_numpy(x), before)
