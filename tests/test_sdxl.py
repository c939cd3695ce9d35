"""SDXL against diffusers: the same random weights, prompts and latents give the same images."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import TINY, DiffusionModelShape, Level, TextEncoderShape

from .small import AUTOENCODER
from .test_pipeline import assert_60_decibel, loaded, made

pytestmark = [pytest.mark.backend, pytest.mark.filterwarnings("ignore")]
TINY_SDXL = replace(
    TINY,
    name="custom",
    autoencoder=AUTOENCODER,
    image_size=16,
    text_encoder=TextEncoderShape(width=16, layers=3, heads=2, penultimate=True),
    diffusion_model=DiffusionModelShape(
        levels=(Level(16, 2, 0), Level(32, 2, (1, 2), (1, 1, 2))),
        middle=(0,),
        context=16 + 24,
        groups=8,
        linear_projection=True,
        added=12 + 6 * 8,
        id_width=8,
    ),
    text_encoder_2=TextEncoderShape(
        width=24, layers=3, heads=3, activation="gelu", pad_token=0, penultimate=True, projection=12
    ),
    zero_negative=True,
)
PICTURE = np.random.default_rng(1).integers(0, 256, (16, 16, 3), "uint8")
LATENTS = np.random.default_rng(0).standard_normal((1, 8, 8, 4), "float32")
SIZES = {"original_size": (512, 300), "target_size": (1024, 900)}
OTHERS = {"negative_original_size": (200, 100), "negative_target_size": (64, 32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made(TINY_SDXL, tmp_path_factory.mktemp("sdxl") / "model")


@pytest.fixture(scope="module")
def ours(folder):
    return StableDiffusion.from_preset(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return loaded("StableDiffusionXLPipeline", folder)


@pytest.mark.backend("negative")
@pytest.mark.parametrize(
    ("negative", "crop", "options"),
    [(None, (0, 0), {}), ("", (10, 20), SIZES), ("blue", (3, 4), {**SIZES, **OTHERS, "clip_skip": 1})],
    ids=["zeros", "empty", "negative"],
)
def test_ten_steps_reach_60_decibel(ours, theirs, negative, crop, options):
    import torch

    expected = theirs(
        "a cat",
        negative_prompt=negative,
        num_inference_steps=10,
        guidance_scale=3.0,
        latents=torch.tensor(LATENTS.transpose(0, 3, 1, 2)),
        height=16,
        width=16,
        output_type="np",
        crops_coords_top_left=crop,
        negative_crops_coords_top_left=crop,
        **options,
    ).images
    images = ours.generate_image(
        ours.encode_text("a cat", clip_skip=options.get("clip_skip", 0)),
        negative_prompt=negative,
        num_steps=10,
        unconditional_guidance_scale=3.0,
        diffusion_noise=LATENTS,
        crop=crop,
        verbose=0,
        **{name: value for name, value in options.items() if name != "clip_skip"},
    )
    assert_60_decibel(images, expected)


def test_a_lora_for_both_text_encoders_draws_as_in_diffusers(ours, theirs, tmp_path):
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(0), {"kohya": {}, "diffusers": {}}
    for prefixes, layer, width in (
        (("lora_te1_", "text_encoder."), "text_model.encoder.layers.0.self_attn.q_proj", 16),
        (("lora_te2_", "text_encoder_2."), "text_model.encoder.layers.1.self_attn.v_proj", 24),
        (("lora_unet_", "unet."), "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 32),
    ):
        names = prefixes[0] + layer.replace(".", "_"), prefixes[1] + layer
        down, up = (torch.randn(shape, generator=generator) / 2 for shape in ((2, width), (width, 2)))
        tensors["kohya"] |= {f"{names[0]}.lora_down.weight": down, f"{names[0]}.lora_up.weight": up}
        tensors["diffusers"] |= {f"{names[1]}.lora_A.weight": down, f"{names[1]}.lora_B.weight": up}
    for name, file in tensors.items():
        save_file(file, tmp_path / f"{name}.safetensors")
    plain = ours.encode_text("a cat")
    theirs.load_lora_weights(tmp_path, weight_name="diffusers.safetensors")
    ours.load_lora(tmp_path / "kohya.safetensors")
    try:
        encoded = ours.encode_text("a cat")
        context, _, pooled, _ = theirs.encode_prompt("a cat", do_classifier_free_guidance=False)
        expected = theirs(
            "a cat",
            num_inference_steps=4,
            guidance_scale=3.0,
            latents=torch.tensor(LATENTS.transpose(0, 3, 1, 2)),
            height=16,
            width=16,
            output_type="np",
        ).images
        images = ours.text_to_image("a cat", None, None, 4, 3.0, diffusion_noise=LATENTS, verbose=0)
    finally:
        theirs.unload_lora_weights()
        ours.unload_lora()
    np.testing.assert_allclose(encoded.context, context.numpy(), atol=2e-5)
    np.testing.assert_allclose(encoded.pooled, pooled.numpy(), atol=2e-5)
    assert np.abs(encoded.context - plain.context).max() > 0.01
    assert_60_decibel(images, expected)
    np.testing.assert_array_equal(ours.encode_text("a cat").context, plain.context)


@pytest.fixture(scope="module")
def refiner_folder(tmp_path_factory):
    shape = replace(
        TINY_SDXL.diffusion_model,
        levels=(Level(16, 2, 0), Level(32, 2, 1)),
        middle=(1, 0),
        context=24,
        added=12 + 5 * 8,
    )
    architecture = replace(TINY_SDXL, text_encoder=None, diffusion_model=shape, zero_negative=False)
    return made(architecture, tmp_path_factory.mktemp("refiner") / "model")


def test_a_refiner_ends_what_the_base_began(ours, theirs, refiner_folder):
    import torch

    refiner = StableDiffusion.from_preset(refiner_folder)
    assert refiner.text_encoder is None
    their_refiner = loaded("StableDiffusionXLImg2ImgPipeline", refiner_folder)
    their_refiner.register_modules(vae=theirs.vae)  # whose files are the same in the published models
    options = {"num_inference_steps": 10, "guidance_scale": 3.0}
    latents = theirs(
        "a cat",
        latents=torch.tensor(LATENTS.transpose(0, 3, 1, 2)),
        denoising_end=0.8,
        height=16,
        width=16,
        output_type="latent",
        **options,
    ).images
    scores = {"aesthetic_score": 7.0, "negative_aesthetic_score": 2.0}
    expected = their_refiner(
        "a cat", image=latents, denoising_start=0.8, original_size=(16, 16), output_type="np", **options, **scores
    ).images
    drawn = {"num_steps": 10, "unconditional_guidance_scale": 3.0, "diffusion_noise": LATENTS, "verbose": 0}
    images = ours.text_to_image("a cat", refiner=refiner, **drawn, **scores)
    assert_60_decibel(images, expected)
    assert len({step for step, *_ in ours.denoise("a cat", refiner=refiner, **drawn)}) == 10
    with pytest.raises(RuntimeError, match="cannot change while it draws"):
        ours.text_to_image("a cat", refiner=refiner, callback=lambda *_: refiner.unload_lora(), **drawn)
    seen = ours._engine.compilations, refiner._engine.compilations
    ours.text_to_image("a cat", refiner=refiner, refiner_start=0.5, crop=(5, 5), **{**drawn, "num_steps": 7})
    assert (ours._engine.compilations, refiner._engine.compilations) == seen  # no number compiles anything again


def given_noise(monkeypatch, module, latents):
    """Has a module of diffusers draw these latents as its noise."""
    import torch

    tensor = torch.tensor(latents.transpose(0, 3, 1, 2))
    monkeypatch.setattr(f"diffusers.pipelines.{module}.randn_tensor", lambda *arguments, **options: tensor)


def test_image_to_image_with_a_controlnet_reaches_60_decibel(ours, theirs, monkeypatch, tmp_path):
    import diffusers
    import torch

    torch.manual_seed(0)
    controlnet = diffusers.ControlNetModel.from_unet(theirs.unet, conditioning_embedding_out_channels=(4, 8))
    with torch.no_grad():
        for name, parameter in controlnet.named_parameters():
            if "controlnet" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    controlnet.save_pretrained(tmp_path)
    pipeline = diffusers.StableDiffusionXLControlNetImg2ImgPipeline(**theirs.components, controlnet=controlnet)
    pipeline.set_progress_bar_config(disable=True)
    given_noise(monkeypatch, "controlnet.pipeline_controlnet_sd_xl_img2img", LATENTS)
    edges = np.random.default_rng(3).integers(0, 256, PICTURE.shape, "uint8")
    image, edges_image = Image.fromarray(PICTURE), Image.fromarray(edges)
    options = {"strength": 0.6, "num_inference_steps": 10, "guidance_scale": 3.0, "output_type": "np"}
    expected = pipeline(
        "a cat", image=image, control_image=edges_image, controlnet_conditioning_scale=0.8, **options
    ).images
    drawn = {"num_steps": 10, "unconditional_guidance_scale": 3.0, "diffusion_noise": LATENTS, "verbose": 0}
    control = ours.load_controlnet(tmp_path), edges, 0.8
    images = ours.image_to_image(PICTURE, "a cat", 0.6, control=control, **drawn)
    assert_60_decibel(images, expected)
    without = ours.image_to_image(PICTURE, "a cat", 0.6, **drawn)
    assert np.abs(images.astype(int) - without).max() > 2


def test_inpainting_with_nine_channels_reaches_60_decibel(monkeypatch, tmp_path):
    shape = replace(TINY_SDXL.diffusion_model, in_channels=9)
    folder = made(replace(TINY_SDXL, diffusion_model=shape), tmp_path / "model")
    pipeline = loaded("StableDiffusionXLInpaintPipeline", folder)
    given_noise(monkeypatch, "stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint", LATENTS)
    mask = np.zeros((16, 16), bool)
    mask[4:12, 6:14] = True
    expected = pipeline(
        "a cat", image=Image.fromarray(PICTURE), mask_image=Image.fromarray(mask), strength=0.8, height=16, width=16,
        num_inference_steps=10, guidance_scale=3.0, output_type="np",
    ).images  # fmt: skip
    drawn = {"num_steps": 10, "unconditional_guidance_scale": 3.0, "diffusion_noise": LATENTS, "verbose": 0}
    images = StableDiffusion.from_preset(folder).inpaint(PICTURE, mask, "a cat", 0.8, **drawn)
    assert_60_decibel(images[:, mask], expected[:, mask])
    np.testing.assert_array_equal(images[0][~mask], PICTURE[~mask])
