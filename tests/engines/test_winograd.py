import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion.engines.engine import Engine
from keras_diffusion.engines.winograd import winograd
from keras_diffusion.networks import layers, operations
from keras_diffusion.networks.network import construction

from ..golden import networks

pytestmark = pytest.mark.backend


def convolution(channels, shape, **options):
    layer = layers.conv(channels, "conv", **options)
    layer.build(shape)
    for variable in layer.variables:
        variable.assign(networks.uniform(variable.path, variable.shape))
    return layer


def both(layer, x):
    """What the layer makes of x as the backend computes it, and by Winograd."""
    expected = ops.convert_to_numpy(layer(x))
    with operations.replace_operations(convolve=winograd):
        return expected, ops.convert_to_numpy(layer(x))


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (13, 64)])
def test_the_same_convolution(size):
    x = networks.uniform("x", (2, *size, 32))
    expected, out = both(convolution(48, x.shape, use_bias=size[0] == 16), x)
    assert (out != expected).any(), "Winograd was not used"
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_value_that_is_not_finite_stays_in_its_image():
    x = networks.uniform("x", (2, 16, 16, 32))
    x[0] = np.inf
    expected, out = both(convolution(48, x.shape), x)
    assert np.isfinite(out[1]).all()
    np.testing.assert_allclose(out[1], expected[1], rtol=0, atol=2e-6 * np.abs(expected[1]).max())


@pytest.mark.parametrize(
    ("shape", "channels", "options"),
    [
        ((1, 8, 8, 32), 32, {}),  # few tiles
        ((1, 16, 16, 4), 32, {}),  # few channels, in and out
        ((1, 16, 16, 32), 3, {}),
        ((1, 17, 17, 32), 32, {"strides": 2, "padding": "valid"}),
        ((1, 18, 18, 32), 32, {"padding": "valid"}),
    ],
)
def test_what_does_not_pay_is_left_to_the_backend(shape, channels, options):
    expected, out = both(convolution(channels, shape, **options), networks.uniform("x", shape))
    np.testing.assert_array_equal(out, expected)


def test_half_precision_is_left_to_the_backend():
    with construction("mixed_bfloat16"):
        layer = convolution(32, (1, 16, 16, 32))
    expected, out = both(layer, networks.uniform("x", (1, 16, 16, 32)))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow's XLA gains by it")
def test_xla_uses_it(monkeypatch):
    used = []
    monkeypatch.setattr("keras_diffusion.engines.tensorflow.winograd", lambda *args: used.append(1) or winograd(*args))
    image, latents = keras.Input((16, 16, 32)), networks.uniform("x", (1, 16, 16, 32))
    decoder = keras.Model(image, layers.conv(32, "conv")(image)[..., :3], name="decoder")
    plain = Engine(False).decode(decoder, latents)
    assert not used
    compiled = Engine(True).decode(decoder, latents)
    assert used
    assert np.abs(plain.astype(int) - compiled).max() <= 1
