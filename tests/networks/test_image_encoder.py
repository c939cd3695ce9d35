from functools import partial

import numpy as np
import pytest
from keras import ops

from keras_diffusion.architectures import TINY
from keras_diffusion.networks.image_encoder import ImageEncoder

from ..golden import comparison, networks
from ..golden.comparison import TOLERANCE, setting, shows

CASES = [case.name for case in networks.cases("image_encoder")]


@pytest.mark.backend("emoji", "wide")
@pytest.mark.parametrize("name", CASES)
def test_computes_what_diffusers_computes(name):
    assert comparison.error("image_encoder", name) < TOLERANCE


def pad(*padding):
    return partial(ops.pad, pad_width=((0, 0), padding, padding, (0, 0)))


DOWN = r"downsamplers_0$"
CHANGES = {
    "residual block's first epsilon 1e-5": ("sd", setting(r"resnets_\d/norm1$", "epsilon", 1e-5)),
    "residual block's second epsilon 1e-5": ("sd", setting(r"resnets_\d/norm2$", "epsilon", 1e-5)),
    "attention's epsilon 1e-5": ("sd", setting("group_norm$", "epsilon", 1e-5)),
    "last epsilon 1e-5": ("sd", setting("^conv_norm_out$", "epsilon", 1e-5)),
    "every epsilon 1e-3": ("sd", setting("norm", "epsilon", 1e-3)),
    "no SiLU before the last convolution": ("sd", setting("^conv_norm_out$", "silu", False)),
    "two heads": ("sd", setting("attention$", "heads", 2)),
    "downsampling padded on both sides": ("sd", setting(DOWN, "pad", pad(1, 1))),
    "downsampling padded left and top": ("sd", setting(DOWN, "pad", pad(1, 0))),
    "scaling factor 0.18": ("sd", setting("^rescaling$", "scale", 0.18)),
    "scaling factor of SDXL": ("sd", setting("^rescaling$", "scale", 0.13025)),
    "scaling the wrong way": ("sd", setting("^rescaling$", "scale", 1 / 0.18215)),
    "a shift of the latents": ("sd", setting("^rescaling$", "offset", 0.01)),
}


@comparison.once
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(change, monkeypatch):
    name, apply = CHANGES[change]
    apply(monkeypatch, comparison.built("image_encoder", name))
    assert shows("image_encoder", name)


@pytest.fixture(scope="module")
def tiny():
    return ImageEncoder(32, 64, architecture=TINY)


def images(size=(32, 64)):
    return networks.uniform("images", (2, *size, 3))


def test_latents_have_the_size_divided_by_factor(tiny):
    assert tiny(images()).shape == (2, 4, 8, 4)


def test_a_size_that_was_fixed_stays(tiny):
    with pytest.raises(ValueError, match="shape"):
        tiny(images((64, 64)))


def test_images_of_a_batch_do_not_meet(tiny):
    other = np.concatenate([-images()[:1], images()[1:]])
    before, after = ops.convert_to_numpy(tiny(images())), ops.convert_to_numpy(tiny(other))
    assert not np.allclose(before[0], after[0], atol=1e-3)
    np.testing.assert_allclose(before[1], after[1], atol=1e-5)
