from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion.architectures import TINY, Level
from keras_diffusion.checkpoints.mapping.layer_tables import LAYOUTS
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.layers import FeedForward, TransformerBlock, Upsample
from keras_diffusion.networks.timesteps import timestep_embedding

from ..golden import comparison, networks
from ..golden.comparison import TOLERANCE, patching, setting, shows

CASES = [case.name for case in networks.cases("diffusion_model")]


@pytest.mark.backend("small_emoji", "deep")
@pytest.mark.parametrize("name", CASES)
def test_computes_what_diffusers_computes(name):
    assert comparison.error("diffusion_model", name) < TOLERANCE


@pytest.mark.parametrize("first", [Level(16, 2, 1), Level(16, 2, 0)], ids=["attends first", "attends later"])
def test_contexts_share_what_does_not_depend_on_them(first):
    shape = replace(TINY.diffusion_model, levels=(first, Level(32, 2, 1)))
    network = DiffusionModel(architecture=replace(TINY, diffusion_model=shape))
    generator = np.random.default_rng(0)
    latents, contexts = (generator.standard_normal(shape, "float32") for shape in ((2, 8, 8, 4), (2, 2, 77, 16)))
    embedding = timestep_embedding([500], 16)
    together = network([latents, embedding, np.concatenate(contexts)])
    alone = [network([latents, np.repeat(embedding, 2, axis=0), context]) for context in contexts]
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (together, ops.concatenate(alone))), rtol=0, atol=TOLERANCE)


def pad_right_and_bottom(x):
    return ops.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))


def normalise_after(self, x, context):
    x = self.norm1(x + self.attn1(x))
    x = self.norm2(x + self.attn2(x, context))
    return self.norm3(x + self.ff(x))


def gate_with_the_first_half(self, x):
    gate, x = ops.split(self.net_0_proj(x), 2, axis=-1)
    return self.net_2(x * ops.gelu(gate, approximate=False))


def cut_at_the_start(self, x, like):
    x = self.upsample(x)
    return self.conv(x[:, x.shape[1] - like.shape[1] :, x.shape[2] - like.shape[2] :])


def sines_first(timesteps, width):
    return np.roll(timestep_embedding(timesteps, width), width // 2, axis=-1)


def shifted(timesteps, width):
    """diffusers' `downscale_freq_shift=1`."""
    angles = np.asarray(timesteps)[:, None] * 1e4 ** -np.linspace(0, 1, width // 2)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def approximate_gelu(x, approximate):
    return keras.activations.gelu(x, approximate=True)


RESIDUAL = r"resnets_\d/norm"
CHANGES = {
    "residual block's first epsilon 1e-6": ("inpainting", setting(f"{RESIDUAL}1$", "epsilon", 1e-6)),
    "residual block's second epsilon 1e-6": ("inpainting", setting(f"{RESIDUAL}2$", "epsilon", 1e-6)),
    "residual block's epsilons 1e-3": ("inpainting", setting(f"{RESIDUAL}.$", "epsilon", 1e-3)),
    "spatial transformer's epsilon 1e-5": ("inpainting", setting(r"attentions_\d/norm$", "epsilon", 1e-5)),
    "self-attention's epsilon 1e-6": ("inpainting", setting(r"blocks_0/norm1$", "epsilon", 1e-6)),
    "cross-attention's epsilon 1e-6": ("inpainting", setting(r"blocks_0/norm2$", "epsilon", 1e-6)),
    "feed-forward's epsilon 1e-6": ("inpainting", setting(r"blocks_0/norm3$", "epsilon", 1e-6)),
    "layer norms' epsilon 1e-3": ("inpainting", setting(r"blocks_0/norm\d$", "epsilon", 1e-3)),
    "last epsilon 1e-6": ("inpainting", setting("^conv_norm_out$", "epsilon", 1e-6)),
    "last epsilon 1e-3": ("inpainting", setting("^conv_norm_out$", "epsilon", 1e-3)),
    "no SiLU before the last convolution": ("inpainting", setting("^conv_norm_out$", "silu", False)),
    "heads of SD 2 in SD 1": ("inpainting", setting(r"down_blocks_0.*/attn\d$", "heads", 4)),
    "heads of SD 1 in SD 2": ("sd2", setting(r"down_blocks_0.*/attn\d$", "heads", 4)),
    "another head count in the middle": ("sd2", setting(r"mid_block.*/attn\d$", "heads", 4)),
    "causal self-attention": ("inpainting", setting("attn1$", "causal", True)),
    "tanh for erf GELU": ("inpainting", patching(ops, "gelu", approximate_gelu)),
    "quick for erf GELU": ("inpainting", patching(ops, "gelu", lambda x, approximate: x * ops.sigmoid(1.702 * x))),
    "halves of GEGLU exchanged": ("inpainting", patching(FeedForward, "call", gate_with_the_first_half)),
    "norm after the residual": ("inpainting", patching(TransformerBlock, "call", normalise_after)),
    "downsampling padded as by Keras": ("emoji", setting(r"downsamplers_0$", "pad", pad_right_and_bottom)),
    "upsampling cut at the start": ("small_emoji", patching(Upsample, "call", cut_at_the_start)),
    "sines first": ("inpainting", patching(comparison, "timestep_embedding", sines_first)),
    "frequencies shifted": ("inpainting", patching(comparison, "timestep_embedding", shifted)),
}


@comparison.once
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(change, monkeypatch):
    name, apply = CHANGES[change]
    apply(monkeypatch, comparison.built("diffusion_model", name))
    assert shows("diffusion_model", name)


@comparison.once
@pytest.mark.parametrize(("layout", "skew"), [("matrix", lambda x: x), ("pointwise", lambda x: x[:, :, 0, 0])])
def test_a_transposed_square_matrix_shows(layout, skew, monkeypatch):
    to_ours, to_stored = LAYOUTS[layout]
    monkeypatch.setitem(LAYOUTS, layout, (lambda x: skew(x) if len(x) == x.shape[1] else to_ours(x), to_stored))
    assert shows("diffusion_model", "inpainting", comparison.build("diffusion_model", "inpainting"))


@comparison.once
def test_a_transposed_filter_shows(monkeypatch):
    monkeypatch.setitem(LAYOUTS, "conv", (lambda x: x.transpose(3, 2, 1, 0), LAYOUTS["conv"][1]))
    assert shows("diffusion_model", "inpainting", comparison.build("diffusion_model", "inpainting"))


@pytest.fixture(scope="module")
def tiny():
    return DiffusionModel(64, 32, 5, architecture=TINY)


def tiny_inputs(batch=2, size=(8, 4), length=5):
    shape = TINY.diffusion_model
    return {
        "latent": networks.uniform("latent", (batch, *size, shape.in_channels)),
        "timestep_embedding": timestep_embedding([7] * batch, shape.frequencies),
        "context": networks.uniform("context", (batch, length, shape.context)),
    }


def test_takes_a_list_or_names(tiny):
    by_name = tiny_inputs()
    listed = ops.convert_to_numpy(tiny(list(by_name.values())))
    named = ops.convert_to_numpy(tiny(dict(reversed(by_name.items()))))
    assert listed.shape == (2, 8, 4, 4)
    np.testing.assert_array_equal(named, listed)


@pytest.mark.parametrize("other", [{"size": (8, 8)}, {"size": (4, 4)}, {"length": 6}])
def test_a_size_that_was_fixed_stays(tiny, other):
    with pytest.raises(ValueError, match="shape"):
        tiny(tiny_inputs(**other))


def test_images_of_a_batch_do_not_meet(tiny):
    inputs = tiny_inputs()
    other = {name: np.concatenate([-values[:1], values[1:]]) for name, values in inputs.items()}
    before, after = ops.convert_to_numpy(tiny(inputs)), ops.convert_to_numpy(tiny(other))
    assert not np.allclose(before[0], after[0], atol=1e-3)
    np.testing.assert_allclose(before[1], after[1], atol=1e-5)


@pytest.mark.parametrize("width", [320, 64, 2])
def test_timestep_embedding_is_its_formula(width):
    angles = np.arange(1000)[:, None] / 10000 ** (np.arange(width // 2) / (width // 2))
    embedding = timestep_embedding(range(1000), width)
    assert embedding.dtype == "float32"
    # The angles are float32, up to 999: as in the original, the last digits are theirs.
    np.testing.assert_allclose(embedding, np.concatenate([np.cos(angles), np.sin(angles)], axis=-1), atol=1e-4)
