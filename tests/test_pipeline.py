"""The whole pipeline against diffusers': the same weights, prompt and latents give the same picture."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import TINY

pytestmark = [pytest.mark.backend, pytest.mark.filterwarnings("ignore")]
LATENTS = np.random.default_rng(0).standard_normal((2, 8, 8, 4), "float32")


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request, tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = StableDiffusion(preset=replace(TINY, prediction_type=request.param))
    for network in (model.diffusion_model, model.decoder):
        kernel = network.get_layer("conv_out").kernel  # keeps latents and pixels in their range
        kernel.assign(0.2 * kernel)
    path = tmp_path_factory.mktemp("pipeline") / request.param
    model.save_to_preset(path)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return StableDiffusion.from_preset(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("sampler", "scheduler", "spacing"),
    [
        ("ddim", "DDIMScheduler", "leading"),
        ("heun", "HeunDiscreteScheduler", "linspace"),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", "linspace"),
    ],
)
def test_twenty_steps_reach_60_decibel(ours, theirs, sampler, scheduler, spacing):
    import diffusers
    import torch

    scheduler = getattr(diffusers, scheduler)
    theirs.scheduler = scheduler.from_config(theirs.scheduler.config, timestep_spacing=spacing)
    expected = theirs(
        ["a cat", "a dog"],
        negative_prompt=["blue", "red"],
        num_inference_steps=20,
        guidance_scale=3.0,
        latents=torch.tensor(LATENTS.transpose(0, 3, 1, 2)),
        height=64,
        width=64,
        output_type="np",
    ).images
    images = ours.generate_image(
        ours.encode_text(["a cat", "a dog"]),
        negative_prompt=["blue", "red"],
        num_steps=20,
        unconditional_guidance_scale=3.0,
        diffusion_noise=LATENTS,
        sampler=sampler,
        verbose=0,
    )
    expected = (expected * 255).round()
    assert np.isin(expected, (0, 255)).mean() < 0.5
    assert expected.std() > 2
    assert 10 * np.log10(255**2 / max(np.square(images - expected).mean(), 1e-9)) >= 60
