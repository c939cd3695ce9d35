"""OpenVINO's graphs of the networks, against diffusers and transformers."""

import keras
import numpy as np
import pytest

from keras_diffusion.architectures import TINY
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.layers import conv
from keras_diffusion.networks.network import Network
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.networks.tiny_autoencoder import TinyArchitecture, TinyDecoder, TinyImageEncoder

from ..golden import comparison, networks

pytest.importorskip("openvino")
from keras_diffusion.engines import openvino, openvino_layers
from keras_diffusion.engines.openvino import compile_network

# Importing openvino forks, which JAX warns about once it runs.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
# Both activations; odd sizes and cut upsampling; several blocks; other latent channels.
CASES = [
    ("text_encoder", "short"),
    ("text_encoder", "sd2"),
    ("diffusion_model", "small_emoji"),
    ("diffusion_model", "deep"),
    ("image_encoder", "wide"),
    ("decoder", "wide"),
]


@pytest.mark.parametrize(("network", "name"), CASES)
def test_computes_what_the_reference_computes(network, name):
    case, model = comparison.case(network, name), comparison.built(network, name)
    for call, expected in zip(case.calls, networks.expected(case), strict=True):
        inputs = list(networks.inputs(case, call))
        if network == "diffusion_model":
            inputs[1] = timestep_embedding(inputs[1], case.architecture.diffusion_model.frequencies)
        output = compile_network(model, [x.shape for x in inputs])(*inputs)
        np.testing.assert_allclose(output, expected, rtol=0, atol=comparison.TOLERANCE)


@pytest.mark.parametrize("make", [TinyDecoder, TinyImageEncoder])
def test_computes_what_a_tiny_autoencoder_computes(make):
    network, generator = make(architecture=TinyArchitecture((1, 2), channels=32)), np.random.default_rng(0)
    network.set_weights([generator.standard_normal(w.shape, "float32") / 9 for w in network.get_weights()])
    x = 2 * generator.standard_normal((2, 24, 18, network.inputs[0].shape[-1]), "float32")
    expected = keras.ops.convert_to_numpy(network(x))
    np.testing.assert_allclose(compile_network(network, [x.shape])(x), expected, atol=1e-5 * np.abs(expected).max())


def test_what_the_context_alone_decides_is_computed_when_it_changes(monkeypatch):
    network, runs, compiled = DiffusionModel(architecture=TINY), [], openvino.compiled

    def counting(model, precision):
        name, run = model.get_friendly_name(), compiled(model, precision)
        return lambda arrays: runs.append(name) or run(arrays)

    monkeypatch.setattr(openvino, "compiled", counting)
    shape, generator = TINY.diffusion_model, np.random.default_rng(0)
    shapes = [(1, 8, 8, shape.in_channels), (1, shape.frequencies), (2, 77, shape.context)]
    run = compile_network(network, shapes)
    one, other = generator.standard_normal((2, *shapes[2]), "float32")
    for context in (one, one, other, one):
        inputs = [*(generator.standard_normal(shape, "float32") for shape in shapes[:2]), context]
        expected = keras.ops.convert_to_numpy(network(inputs))
        np.testing.assert_allclose(run(*inputs), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert [name == network.name for name in runs] == [False, True, True, False, True, False, True]


@pytest.mark.parametrize(
    ("size", "channels", "filters", "tile"), [((32, 32), 32, 48, 4), ((37, 34), 48, 32, 4), ((16, 17), 32, 48, 2)]
)
def test_winograd_computes_the_convolution(monkeypatch, size, channels, filters, tile):
    image = keras.Input((*size, channels))
    network = Network(image, conv(filters, "conv")(image), TINY, "convolution")
    generator = np.random.default_rng(0)
    network.set_weights([generator.standard_normal(w.shape, "float32") for w in network.get_weights()])
    x = generator.standard_normal((2, *size, channels), "float32")
    winograd, tiles = openvino_layers.winograd, []
    counting = lambda by, *inputs: tiles.append(by.tile) or winograd(by, *inputs)  # noqa: E731
    monkeypatch.setattr(openvino_layers, "winograd", counting)
    output = compile_network(network, [x.shape])(x)
    expected = keras.ops.convert_to_numpy(network(x))
    assert tiles == [tile]
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 * expected.std())


@pytest.mark.parametrize("layer", [keras.layers.ReLU(name="stranger"), keras.layers.Activation("elu", name="elu")])
def test_layers_it_does_not_know_are_refused(layer):
    decoder = Decoder(architecture=TINY, initialize=False)
    network = Network(decoder.input, layer(decoder.output), TINY, "strange")
    with pytest.raises(TypeError, match=r"Received: .*(ReLU|elu)"):
        compile_network(network, [(1, 2, 2, 4)])
