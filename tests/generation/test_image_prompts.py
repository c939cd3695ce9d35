"""Image prompts in a generation: against diffusers' pipelines, what compiles nothing, and arguments that help."""

import keras
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from keras_diffusion import ImagePrompt, StableDiffusion
from keras_diffusion.architectures import SD15, SDXL, TINY
from keras_diffusion.generation.image_prompts import normalise, read_scales
from keras_diffusion.images.resizing import bicubic
from keras_diffusion.networks.ip_adapter import KINDS

from ..golden import ip_adapters
from ..test_pipeline import loaded, made
from ..test_sdxl import TINY_SDXL

pytestmark = pytest.mark.filterwarnings("ignore")
LATENTS = np.random.default_rng(0).standard_normal((2, 8, 9, 4), "float32")
IMAGES = np.random.default_rng(1).integers(0, 256, (2, ip_adapters.SIDE, ip_adapters.SIDE, 3), "uint8")
MASK = np.zeros((64, 72), bool)
MASK[8:40, 20:70] = True
BLOCKS = {"down": 0.3, "up": {"block_1": [0.0, 1.5]}}  # of TINY; the middle gets 0
STEPS = 3
QUICK = {"num_steps": 2, "verbose": 0, "seed": 3, "img_height": 64, "img_width": 72}


def save_adapters(folder, shape):
    """Writes an adapter of each kind, and the image encoder beside them."""
    for kind in KINDS:
        save_file(ip_adapters.tensors(kind, shape), folder / f"{kind}.safetensors")
    ip_adapters.image_encoder().save_pretrained(folder / "image_encoder")


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def both(request, tmp_path_factory):
    """Our model and diffusers' pipeline."""
    pytest.importorskip("transformers")
    root, architecture = tmp_path_factory.mktemp("ip"), {"sd": TINY, "sdxl": TINY_SDXL}[request.param]
    made(architecture, root / "model")
    save_adapters(root, architecture.diffusion_model)
    ours = StableDiffusion.from_preset(root / "model")
    for name in KINDS:
        assert ours.load_ip_adapter(root / f"{name}.safetensors") == name
    theirs = loaded(
        {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}[request.param], root / "model"
    )
    from transformers import CLIPImageProcessor

    sides = {"size": ip_adapters.SIDE, "crop_size": ip_adapters.SIDE}
    theirs.register_modules(image_encoder=ip_adapters.image_encoder(), feature_extractor=CLIPImageProcessor(**sides))
    return request.param, ours, theirs


def expected(theirs, shape, prompts, guidance, latents):
    """What diffusers draws; the prompts are (adapter, image, scale, mask)."""
    import torch
    from diffusers.image_processor import IPAdapterMaskProcessor

    adapters = [ip_adapters.nested(ip_adapters.tensors(name, shape)) for name, *_ in prompts]
    theirs.load_ip_adapter(adapters, subfolder="", weight_name=[""] * len(adapters))
    theirs.set_ip_adapter_scale([scale for _, _, scale, _ in prompts])
    options = {}
    if any(mask is not None for *_, mask in prompts):
        masks = [np.ones((64, 72), bool) if mask is None else mask for *_, mask in prompts]
        processed = IPAdapterMaskProcessor().preprocess([Image.fromarray(mask) for mask in masks], 64, 72)
        options["cross_attention_kwargs"] = {"ip_adapter_masks": [mask[None] for mask in processed]}
    return (
        theirs(
            ["a cat", "a dog"][: len(latents)],
            negative_prompt=["blue", "red"][: len(latents)],
            ip_adapter_image=[Image.fromarray(image) for _, image, *_ in prompts],
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            latents=torch.tensor(latents.transpose(0, 3, 1, 2)),
            height=64,
            width=72,
            output_type="latent",
            **options,
        )
        .images.numpy()
        .transpose(0, 2, 3, 1)
    )


CASES = {  # guided, of two images; and not, of one
    "sd": [
        ([("plain", IMAGES[0], 0.7, MASK), ("plus", IMAGES[1], BLOCKS, None)], 3.0),
        ([("full", IMAGES[1], 0.9, None)], 1.0),
    ],
    "sdxl": [([("plus", IMAGES[0], 0.7, None), ("plain", IMAGES[1], 1.2, MASK)], 3.0)],
}


@pytest.mark.backend
def test_draws_what_diffusers_draws(both):
    name, ours, theirs = both
    shape = ours.architecture.diffusion_model
    for prompts, guidance in CASES[name]:
        count = 1 if guidance == 1 else 2
        drawn = ours.generate_image(
            ours.encode_text(["a cat", "a dog"][:count]),
            ["blue", "red"][:count],
            None,
            STEPS,
            guidance,
            LATENTS[:count],
            image_prompt=[(image, scale, mask, name) for name, image, scale, mask in prompts],
            verbose=0,
            output="latents",
            img_height=64,
            img_width=72,
        )
        wanted = expected(theirs, shape, prompts, guidance, LATENTS[:count])
        np.testing.assert_allclose(drawn, wanted, rtol=0, atol=2e-5)
