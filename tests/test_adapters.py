"""An IP-Adapter in a file outside the package, by `operation` and `replace_operations`, equals diffusers'."""

import keras
import numpy as np
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import TINY
from keras_diffusion.checkpoints.mapping import names
from keras_diffusion.networks.layers import SpatialTransformer, dense
from keras_diffusion.networks.operations import operation, replace_operations
from keras_diffusion.networks.timesteps import timestep_embedding

from .golden import comparison, networks

TOKENS, SCALE = 4, 0.7  # the fixture's
REFERENCE = np.load(networks.HERE / "adapter.npz")

pytestmark = pytest.mark.backend


class ImagePrompt(keras.Model):
    """A diffusion model whose cross-attention also attends to an image (Ye et al. 2023, arXiv:2308.06721)."""

    def __init__(self, diffusion_model, tokens, scale):
        super().__init__(name="image_prompt")
        self.diffusion_model, self.architecture = diffusion_model, diffusion_model.architecture
        self.tokens, self.scale = tokens, scale
        transformers = [layer for layer in diffusion_model.layers if isinstance(layer, SpatialTransformer)]
        self.crossing = [block.attn2 for layer in transformers for block in layer.blocks]
        self.keys, self.values = ([dense(x.to_q.units, None, False) for x in self.crossing] for _ in range(2))
        for layer in (*self.keys, *self.values):
            layer.build(tokens.shape)
        self.built = True

    def call(self, inputs):
        attend = operation("attend")

        def decoupled(layer, query, key, value):
            out = attend(layer, query, key, value)
            if layer not in self.crossing:
                return out
            i = self.crossing.index(layer)
            key, value = (layer.split(part[i](self.tokens)) for part in (self.keys, self.values))
            return out + self.scale * attend(layer, query, key, value)

        with replace_operations(attend=decoupled):
            return self.diffusion_model(inputs)


def adapted(case, inputs):
    model = comparison.built("diffusion_model", case.name)
    tokens = networks.uniform("image tokens", (len(inputs[2]), TOKENS, inputs[2].shape[2]))
    network = ImagePrompt(model, tokens, SCALE)
    diffusers = {row.path: row.diffusers for row in names.diffusion_model(case.architecture)}
    for layer, key, value in zip(network.crossing, network.keys, network.values, strict=True):
        name = diffusers[layer.to_q.kernel.path].removesuffix("to_q.weight")
        for part, ours in (("to_k_ip", key), ("to_v_ip", value)):
            ours.kernel.assign(networks.uniform(name + part, ours.kernel.shape[::-1]).T)
    return network


@pytest.mark.parametrize("name", REFERENCE.files)
def test_an_image_prompt_is_that_of_diffusers(name):
    case = comparison.case("diffusion_model", name)
    latent, timesteps, context = networks.inputs(case, case.calls[0])
    inputs = [latent, timestep_embedding(timesteps, case.architecture.diffusion_model.frequencies), context]
    network = adapted(case, inputs)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(network(inputs)), REFERENCE[name], rtol=0, atol=comparison.TOLERANCE
    )
    network.scale = 0.0
    plain = keras.ops.convert_to_numpy(network.diffusion_model(inputs))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(network(inputs)), plain)
    assert np.abs(plain - REFERENCE[name]).max() > 1e-2


def test_the_facade_draws_with_it():
    model = StableDiffusion(preset=TINY)
    quick = {"num_steps": 2, "seed": 1, "verbose": 0}
    plain = model.text_to_image("a cat", **quick)
    tokens = networks.uniform("image tokens", (1, TOKENS, TINY.diffusion_model.context))
    model.diffusion_model = ImagePrompt(model.diffusion_model, tokens, 10.0)
    adapted = model.text_to_image("a cat", **quick)
    assert (adapted != plain).any()
    model.diffusion_model = model.diffusion_model.diffusion_model
    np.testing.assert_array_equal(model.text_to_image("a cat", **quick), plain)
