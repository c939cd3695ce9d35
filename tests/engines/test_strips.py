"""Decoding in strips: the same image, and no whole feature map beside another."""

import keras
import numpy as np
import pytest

from keras_diffusion.engines import strips
from keras_diffusion.engines.engine import Engine
from keras_diffusion.networks import operations
from keras_diffusion.networks.decoder import Decoder

from ..small import SMALL

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def decoder():
    keras.utils.set_random_seed(0)
    return Decoder(architecture=SMALL)


@pytest.fixture
def sizes(monkeypatch):
    """The number of values that every convolution was given."""
    sizes, convolve = [], operations.convolve

    def counting(layer, x):
        sizes.append(int(np.prod(x.shape)))
        return convolve(layer, x)

    monkeypatch.setattr("keras_diffusion.engines.engine.replaced_operations", lambda runner: {"convolve": counting})
    return sizes


@pytest.mark.backend("300")
@pytest.mark.parametrize(
    ("values", "shape"), [(1, (2, 3, 5, 4)), (1, (1, 1, 3, 4)), (300, (1, 13, 2, 4)), (2**21, (1, 8, 8, 4))]
)
def test_strips_give_the_same(decoder, monkeypatch, shape, values):
    """One row at a time, some rows, and all at once."""
    monkeypatch.setattr(strips, "STRIP", values)
    latents = np.random.default_rng(0).standard_normal(shape, "float32")
    expected, found = (
        keras.ops.convert_to_numpy(f(keras.ops.convert_to_tensor(latents)))
        for f in (decoder, lambda x: strips.decode(decoder, x))
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_only_small_parts_are_convolved(decoder, monkeypatch, sizes):
    latents, engine = np.random.default_rng(0).standard_normal((1, 16, 1, 4), "float32"), Engine()
    engine.strips = False
    whole = engine.decode(decoder, latents)
    largest, _ = max(sizes), sizes.clear()
    monkeypatch.setattr(strips, "STRIP", 2**5)
    engine.strips = True
    np.testing.assert_allclose(engine.decode(decoder, latents).astype(int), whole, rtol=0, atol=1)
    assert max(sizes) < largest / 3


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_strips_are_the_rule_where_nothing_is_compiled(decoder, monkeypatch, device):
    """And nothing recorded: a card decodes at once."""
    used = []
    monkeypatch.setattr("keras_diffusion.engines.engine.device", lambda: device)
    monkeypatch.setattr(strips, "decode", lambda decoder, latents: used.append(1) or decoder(latents))
    Engine(False).decode(decoder, np.zeros((1, 2, 2, 4), "float32"))
    assert bool(used) == (keras.backend.backend() == "torch" and device == "cpu")


def own_class():
    class Own(keras.Model):
        def call(self, latents):
            return latents[..., :3] * 0.5

    return Own()


def own_graph():
    latents = keras.Input((None, None, 4))
    part = keras.layers.Rescaling(0.25)(latents)
    return keras.Model(latents, keras.layers.Add()([part, part])[..., :3])


@pytest.mark.parametrize("make", [own_class, own_graph])
def test_a_network_of_ones_own_is_called(make):
    """Whole, as it may have operations of several inputs."""
    engine = Engine()
    engine.strips = True
    images = engine.decode(make(), np.ones((1, 2, 2, 4), "float32"))
    assert (images == 191).all()
