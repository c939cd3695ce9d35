"""KerasCV's names: each leads home, and none is ignored."""

import logging

import keras
import numpy as np
import pytest
from keras import ops

import keras_diffusion
from keras_diffusion import models
from keras_diffusion.models import stable_diffusion
from keras_diffusion.models.stable_diffusion.clip_tokenizer import SimpleTokenizer
from keras_diffusion.models.stable_diffusion.constants import _ALPHAS_CUMPROD
from keras_diffusion.models.stable_diffusion.noise_scheduler import NoiseScheduler
from keras_diffusion.models.stable_diffusion.stable_diffusion import MAX_PROMPT_LENGTH

from ..small import SMALL_OF_EIGHT as ARCHITECTURE

QUICK = {"num_steps": 1, "seed": 0, "verbose": 0}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return models.StableDiffusion(img_height=32, img_width=32, jit_compile=False, preset=ARCHITECTURE)


def test_what_is_assigned_draws(model):
    before, own = model.text_to_image("a cat", **QUICK), model._text_encoder
    assert own is model.text_encoder
    other = stable_diffusion.TextEncoder(MAX_PROMPT_LENGTH, 49408, download_weights=False, architecture=ARCHITECTURE)
    assert isinstance(other, keras_diffusion.TextEncoder)
    model._text_encoder = other
    assert model.text_encoder is other
    assert not np.array_equal(model.text_to_image("a cat", **QUICK), before)
    model._text_encoder = own
    np.testing.assert_array_equal(model.text_to_image("a cat", **QUICK), before)
    for name in ("diffusion_model", "decoder", "image_encoder", "tokenizer"):
        assert getattr(model, f"_{name}") is getattr(model, name)
    assert (model.jit_compile, SimpleTokenizer) == (False, keras_diffusion.SimpleTokenizer)


def test_helpers_of_tutorials(model):
    context = model.encode_text("a cat")
    noise = model._get_initial_diffusion_noise(2, 5)
    drawn = model.generate_image(model._expand_tensor(context, 2), diffusion_noise=noise, num_steps=1, verbose=0)
    np.testing.assert_array_equal(drawn, model.text_to_image("a cat", batch_size=2, **QUICK | {"seed": 5}))
    np.testing.assert_array_equal(model._get_unconditional_context(), model.encode_text(""))
    assert model._get_timestep_embedding(3, 2).shape == (2, 320)
    assert model._get_pos_ids().shape == (1, MAX_PROMPT_LENGTH)


def test_weights_that_are_not_at_hand_are_said_to_be_random(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_DIFFUSION_CACHE", str(tmp_path))
    for make in (stable_diffusion.DiffusionModel, stable_diffusion.Decoder, stable_diffusion.ImageEncoder):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            made = make(32, 32, architecture=ARCHITECTURE, name="own")
        assert made.name == "own"
        assert f"The weights of this {type(made).__name__} are random" in caplog.text


@pytest.mark.backend
def test_noise_is_added_as_kerascv_adds_it():
    scheduler = NoiseScheduler(1000, 0.00085, 0.012, "scaled_linear")
    latents, noise = np.random.default_rng(0).standard_normal((2, 2, 4, 4, 4), "float32")
    mixed = ops.convert_to_numpy(scheduler.add_noise(latents, noise, np.array([0, 999])))
    for i, timestep in enumerate((0, 999)):
        share = _ALPHAS_CUMPROD[timestep + 1]
        np.testing.assert_allclose(mixed[i], share**0.5 * latents[i] + (1 - share) ** 0.5 * noise[i], atol=1e-6)
    assert "float16" in str(scheduler.add_noise(latents.astype("float16"), noise, np.array([0, 999])).dtype)
    if keras.backend.backend() == "tensorflow":  # a compiled `train_step`
        traced = pytest.importorskip("tensorflow").function(scheduler.add_noise)(latents, noise, np.array([0, 999]))
        np.testing.assert_allclose(traced, mixed, atol=1e-6)
    assert abs(_ALPHAS_CUMPROD[1000] - 0.00466) < 1e-5
    assert len(scheduler) == 1000
    with pytest.raises(ValueError, match="`beta_schedule` must be"):
        NoiseScheduler(beta_schedule="cosine")
