"""Distillation to few steps: where its coefficients lead, and a run of it."""

import numpy as np
import pytest

from keras_diffusion.engines.choice import compiles_always
from keras_diffusion.sampling.schedules import noise_schedule
from keras_diffusion.training import losses
from keras_diffusion.training.lcm import coefficients
from keras_diffusion.training.trainer import Trainer


@pytest.mark.parametrize("prediction_type", losses.TARGETS)
def test_coefficients(prediction_type):
    """Of a true prediction: the clean latent but for the boundary, and the same noise at the next timestep."""
    timesteps, after = np.array([19, 999]), np.array([0, 979])
    signal = noise_schedule()
    latents, noise = np.random.default_rng(0).standard_normal((2, 2, 2, 2, 4)).astype("float32")
    (x, prediction), (lower, its) = (
        (losses.noisy(latents, noise, *levels), losses.target(prediction_type, latents, noise, *levels))
        for levels in (losses.levels(signal[timesteps]), losses.levels(signal[after]))
    )
    c = coefficients(prediction_type, signal, timesteps, after).T[:, :, None, None, None]
    np.testing.assert_allclose(c[0] * x + c[1] * prediction, latents, atol=1e-4)
    np.testing.assert_allclose(c[2] * x + c[3] * prediction, lower, atol=1e-4)
    reached = c[4] * lower + c[5] * its
    np.testing.assert_array_equal(reached[0], lower[0])
    np.testing.assert_allclose(reached[1], latents[1], atol=1e-4)


def test_a_run(model, folder, monkeypatch, tmp_path):
    """It changes every layer, and the model draws with it."""
    compile = Trainer.compile
    monkeypatch.setattr(
        Trainer, "compile", lambda self, *given: compile(self, *given, run_eagerly=not compiles_always())
    )
    trainer = model.train_lcm_lora(folder, "a toy", steps=1, rank=2, batch_size=1, verbose=0)
    assert trainer.learner.loss is losses.pseudo_huber
    assert all(half.up.any() for half in trainer.learner.stored().values())
    [name] = model.loras
    images = model.text_to_image("a toy", sampler="lcm", num_steps=2, unconditional_guidance_scale=1.0, verbose=0)
    assert images.shape == (1, 16, 16, 3)
    model.unload_lora(name)
    trainer.save_lora(tmp_path / "lcm.safetensors")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guidance": 7.5}, TypeError, "`guidance` must be two numbers"),
        ({"guidance": (9, 3)}, ValueError, r"guidance\[1\]"),
        ({"distilled_steps": 1001}, ValueError, "distilled_steps"),
        ({"input_perturbation": 0.1}, ValueError, "nor `input_perturbation`"),
        ({"condition_folder": "edges"}, ValueError, "A ControlNet takes"),
    ],
)
def test_wrong_options_are_named(model, folder, options, error, message):
    with pytest.raises(error, match=message):
        model.train_lcm_lora(folder, "a toy", rank=2, **options)
