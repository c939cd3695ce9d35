import numpy as np
import pytest
from keras import ops

from keras_diffusion.architectures import TINY
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.layers import ResidualBlock, SpatialAttention

from ..golden import comparison, networks
from ..golden.comparison import TOLERANCE, patching, setting, shows

CASES = [case.name for case in networks.cases("decoder")]


@pytest.mark.backend("emoji", "wide")
@pytest.mark.parametrize("name", CASES)
def test_computes_what_diffusers_computes(name):
    assert comparison.error("decoder", name) < TOLERANCE


def shortcut_after_the_norm(self, x):
    x = self.norm1(x)
    residual = self.conv_shortcut(x) if self.conv_shortcut else x
    return self.conv2(self.norm2(self.conv1(x))) + residual


def without_residual(self, x):
    _, height, width, channels = x.shape
    x = self.attention(ops.reshape(self.group_norm(x), (-1, height * width, channels)))
    return ops.reshape(x, (-1, height, width, channels))


CHANGES = {
    "residual block's first epsilon 1e-5": ("sd", setting(r"resnets_\d/norm1$", "epsilon", 1e-5)),
    "residual block's second epsilon 1e-5": ("sd", setting(r"resnets_\d/norm2$", "epsilon", 1e-5)),
    "attention's epsilon 1e-5": ("sd", setting("group_norm$", "epsilon", 1e-5)),
    "last epsilon 1e-5": ("sd", setting("^conv_norm_out$", "epsilon", 1e-5)),
    "every epsilon 1e-3": ("sd", setting("norm", "epsilon", 1e-3)),
    "no SiLU before the last convolution": ("sd", setting("^conv_norm_out$", "silu", False)),
    "two heads": ("sd", setting("attention$", "heads", 2)),
    "causal attention": ("sd", setting("attention$", "causal", True)),
    "attention without residual": ("sd", patching(SpatialAttention, "call", without_residual)),
    "norm before the shortcut": ("sd", patching(ResidualBlock, "call", shortcut_after_the_norm)),
    "scaling factor 0.18": ("sd", setting("^rescaling$", "scale", 1 / 0.18)),
    "scaling factor of SDXL": ("sd", setting("^rescaling$", "scale", 1 / 0.13025)),
    "scaling the wrong way": ("sd", setting("^rescaling$", "scale", 0.18215)),
}


@comparison.once
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(change, monkeypatch):
    name, apply = CHANGES[change]
    apply(monkeypatch, comparison.built("decoder", name))
    assert shows("decoder", name)


@pytest.fixture(scope="module")
def tiny():
    return Decoder(32, 64, architecture=TINY)


def latents(size=(4, 8)):
    return networks.uniform("latents", (2, *size, TINY.autoencoder.latent_channels))


def test_an_image_has_factor_times_the_size(tiny):
    assert tiny(latents()).shape == (2, 32, 64, 3)


def test_a_size_that_was_fixed_stays(tiny):
    with pytest.raises(ValueError, match="shape"):
        tiny(latents((8, 8)))


def test_images_of_a_batch_do_not_meet(tiny):
    other = np.concatenate([-latents()[:1], latents()[1:]])
    before, after = ops.convert_to_numpy(tiny(latents())), ops.convert_to_numpy(tiny(other))
    assert not np.allclose(before[0], after[0], atol=1e-3)
    np.testing.assert_allclose(before[1], after[1], atol=1e-5)
