"""The bundled model: the same pictures on every backend, and in diffusers."""

import numpy as np
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.checkpoints.presets import find

from .golden.make_emoji import FIXTURE, PROMPTS, SETTINGS

pytestmark = [pytest.mark.backend, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def model():
    return StableDiffusion.from_preset("emoji")


def test_every_backend_draws_the_same(model):
    images = model.text_to_image(PROMPTS, **SETTINGS)
    expected = np.load(FIXTURE)["images"]

    assert expected.std() > 20
    assert np.abs(images.astype(int) - expected).max() <= 2


def test_it_draws_nearly_the_same_from_int8(model):
    int8 = StableDiffusion.from_preset("emoji", dtype="float32_from_int8")
    image = int8.text_to_image(PROMPTS[0], **SETTINGS)[0].astype(float)
    error = np.square(image - np.load(FIXTURE)["images"][0]).mean()
    assert 10 * np.log10(255**2 / error) >= 40
    sizes = [sum(map(nbytes, network.diffusion_model.variables)) for network in (int8, model)]
    assert sizes[0] <= 0.3 * sizes[1]


def nbytes(variable):
    return np.prod(variable.shape) * np.dtype(variable.dtype).itemsize


def test_it_fits_into_the_package():
    assert sum(file.stat().st_size for file in find("emoji").rglob("*")) <= 32e6


def test_diffusers_draws_the_same_from_the_same_latents(model):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    latents = np.random.default_rng(0).standard_normal((2, 16, 16, 4), "float32")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(find("emoji"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS,
        num_inference_steps=20,
        guidance_scale=3.0,
        latents=torch.tensor(latents.transpose(0, 3, 1, 2)),
        height=64,
        width=64,
        output_type="np",
    ).images

    images = model.generate_image(
        model.encode_text(PROMPTS),
        num_steps=20,
        unconditional_guidance_scale=3.0,
        diffusion_noise=latents,
        verbose=0,
    )
    error = np.square(images - (expected * 255).round()).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 60
