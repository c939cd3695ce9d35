"""T2I-adapters in whole pipelines: what diffusers draws from the same weights, and what compiles nothing."""

from dataclasses import replace

import numpy as np
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import Level

from .small import SMALL
from .test_pipeline import assert_60_decibel, decibel, made
from .test_sdxl import TINY_SDXL

pytestmark = [pytest.mark.backend, pytest.mark.filterwarnings("ignore")]
XL = replace(
    TINY_SDXL,
    diffusion_model=replace(
        TINY_SDXL.diffusion_model, levels=(Level(16, 2, 0), Level(16, 2, 1), Level(32, 2, 1)), middle=(0,)
    ),
)
CASES = {  # pipeline of diffusers → the model, the kind of its adapter, and options of that
    "StableDiffusionAdapterPipeline": (SMALL, "full_adapter", {"channels": [16, 32], "downscale_factor": 2}),
    "StableDiffusionXLAdapterPipeline": (XL, "full_adapter_xl", {"channels": [16, 16, 32, 32], "downscale_factor": 4}),
}
SCALE = 50.0  # random weights say little
IMAGE = np.random.default_rng(1).random((16, 16, 3), "float32")
LATENTS = np.random.default_rng(0).standard_normal((2, 8, 8, 4), "float32")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model with its adapter, and the pipeline of diffusers."""
    torch, diffusers = (pytest.importorskip(name) for name in ("torch", "diffusers"))
    torch.manual_seed(0)
    architecture, kind, options = CASES[request.param]
    folder = made(architecture, tmp_path_factory.mktemp("adapter") / "model")
    adapter = diffusers.T2IAdapter(adapter_type=kind, **options)
    adapter.save_pretrained(folder.parent / "adapter")
    model = StableDiffusion.from_preset(folder)
    theirs = getattr(diffusers, request.param).from_pretrained(folder, adapter=adapter)
    theirs.set_progress_bar_config(disable=True)
    return model, model.load_t2i_adapter(folder.parent / "adapter"), theirs


def draw(model, num_steps, **options):
    return model.generate_image(
        model.encode_text(["a cat", "a dog"]),
        negative_prompt=["blue", "red"],
        num_steps=num_steps,
        unconditional_guidance_scale=3.0,
        diffusion_noise=LATENTS,
        verbose=0,
        **options,
    )


def test_draws_what_diffusers_draws(case):
    import torch

    model, adapter, theirs = case
    xl = adapter.architecture.kind == "full_adapter_xl"
    num_steps, end = (4, 0.5) if xl else (10, 1.0)
    expected = theirs(
        ["a cat", "a dog"],
        image=torch.tensor(np.stack([IMAGE] * 2).transpose(0, 3, 1, 2)),
        negative_prompt=["blue", "red"],
        num_inference_steps=num_steps,
        guidance_scale=3.0,
        latents=torch.tensor(LATENTS.transpose(0, 3, 1, 2)),
        height=16,
        width=16,
        adapter_conditioning_scale=SCALE,
        **({"adapter_conditioning_factor": end} if xl else {}),
        output_type="np",
    ).images
    images = draw(model, num_steps, control=(adapter, IMAGE, SCALE, 0.0, end))
    assert_60_decibel(images, expected)
    before = model._engine.compilations
    other = draw(model, num_steps, control=(adapter, 1 - IMAGE, -SCALE, 0.0, end))
    assert model._engine.compilations == before
    assert decibel(other, images / 255) < 45


def test_says_what_cannot_be_followed(case):
    model, adapter, _ = case
    factor = adapter.architecture.factor
    shape = replace(SMALL.diffusion_model, levels=(Level(8, 2, 1),))
    other = StableDiffusion(preset=replace(SMALL, diffusion_model=shape))
    with pytest.raises(ValueError, match="must be a T2I-adapter for this model"):
        other.text_to_image("a cat", control=(adapter, IMAGE))
    with pytest.raises(TypeError, match="a ControlNet or a T2I-adapter"):
        model.text_to_image("a cat", control=(model.decoder, IMAGE))
    if factor == 4:
        with pytest.raises(ValueError, match="must be multiples of 4\\. Received: 16×18"):
            model.text_to_image("a cat", img_width=18, control=(adapter, IMAGE))
