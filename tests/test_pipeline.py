"""The whole pipeline against diffusers': the same weights, prompt and latents give the same picture."""

from dataclasses import replace
from itertools import chain

import keras
import numpy as np
import pytest
from PIL import Image

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import TINY
from keras_diffusion.sampling import noise
from keras_diffusion.sampling.samplers import build

from .small import AUTOENCODER, SMALL

pytestmark = [pytest.mark.backend("v_prediction"), pytest.mark.filterwarnings("ignore")]
ARCHITECTURE = replace(TINY, autoencoder=AUTOENCODER, image_size=16)
PICTURE = np.random.default_rng(1).integers(0, 256, (16, 18, 3), "uint8")
MASK = np.zeros((16, 18), bool)
MASK[4:12, 6:14] = True
LATENTS = np.random.default_rng(0).standard_normal((2, 8, 8, 4), "float32")


def made(architecture, folder):
    """The folder of a model with random weights whose latents and pixels stay in their range."""
    keras.utils.set_random_seed(0)
    model = StableDiffusion(preset=architecture)
    beta = (model.text_encoder or model.text_encoder_2).get_layer("final_layer_norm").beta
    beta.assign(np.linspace(-1, 2, beta.shape[0]))  # contexts of trained models have a mean
    for network in (model.diffusion_model, model.decoder):
        kernel = network.get_layer("conv_out").kernel
        kernel.assign(0.2 * kernel)
    quant_conv = model.image_encoder.get_layer("quant_conv")  # no variance: diffusers draws latents of an image
    for variable, logarithm in ((quant_conv.kernel, 0.0), (quant_conv.bias, -30.0)):
        values = np.array(variable)
        values[..., 4:] = logarithm
        variable.assign(values)
    model.save_to_preset(folder)
    return folder


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request, tmp_path_factory):
    return made(
        replace(ARCHITECTURE, prediction_type=request.param), tmp_path_factory.mktemp("pipeline") / request.param
    )


@pytest.fixture(scope="module")
def nine_channels(tmp_path_factory):
    """The folder of a model for inpainting, and the model."""
    shape = replace(TINY.diffusion_model, in_channels=9)
    folder = made(replace(ARCHITECTURE, diffusion_model=shape), tmp_path_factory.mktemp("inpainting") / "model")
    return folder, StableDiffusion.from_preset(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return StableDiffusion.from_preset(folder)


def loaded(pipeline, folder):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pipeline = getattr(diffusers, pipeline).from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def theirs(folder):
    return loaded("StableDiffusionPipeline", folder)


def decibel(images, expected):
    """The distance of bytes from images in [0, 1]."""
    return 10 * np.log10(255**2 / max(np.square(images - (expected * 255).round()).mean(), 1e-9))


def assert_60_decibel(images, expected):
    assert np.isin(expected, (0, 1)).mean() < 0.5
    assert 255 * expected.std() > 2
    assert decibel(images, expected) >= 60


def given_noise(monkeypatch, module, latents):
    """Has a module of diffusers draw these latents as its noise."""
    import torch

    tensor = torch.tensor(latents.transpose(0, 3, 1, 2))
    module = f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{module}.randn_tensor"
    monkeypatch.setattr(module, lambda *arguments, **options: tensor)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "spacing"),
    [
        ("ddim", "DDIMScheduler", "leading"),
        ("heun", "HeunDiscreteScheduler", "linspace"),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", "linspace"),
    ],
)
def test_ten_steps_reach_60_decibel(ours, theirs, monkeypatch, sampler, scheduler, spacing):
    import diffusers
    import torch

    scheduler = getattr(diffusers, scheduler).from_config(theirs.scheduler.config, timestep_spacing=spacing)
    monkeypatch.setattr(theirs, "scheduler", scheduler)
    expected = theirs(
        ["a cat", "a dog"],
        negative_prompt=["blue", "red"],
        num_inference_steps=10,
        guidance_scale=3.0,
        latents=torch.tensor(LATENTS.transpose(0, 3, 1, 2)),
        height=16,
        width=16,
        output_type="np",
    ).images
    images = ours.generate_image(
        ours.encode_text(["a cat", "a dog"]),
        negative_prompt=["blue", "red"],
        num_steps=10,
        unconditional_guidance_scale=3.0,
        diffusion_noise=LATENTS,
        sampler=sampler,
        verbose=0,
    )
    assert_60_decibel(images, expected)


def test_lcm_with_its_guidance_reaches_60_decibel(tmp_path, monkeypatch, caplog):
    """The network takes the guidance as a number: it draws as diffusers, and nothing is compiled for another one."""
    shape = replace(SMALL.diffusion_model, guidance_width=11)
    folder = made(replace(SMALL, diffusion_model=shape), tmp_path / "lcm")
    ours = StableDiffusion.from_preset(folder)
    assert (*ours.defaults, ours.sampler) == (4, 8.5, "lcm")
    theirs = loaded("LatentConsistencyModelPipeline", folder)
    table, shape = build("lcm", 4, **ours.schedule), (8, 8, 4)
    rows = iter(noise.row_noise([5, 6], shape, table, np.arange(4)))

    def torch_latents(x):
        return theirs.unet.conv_in.weight.new_tensor(x.transpose(0, 3, 1, 2))

    drawn_noise = lambda *arguments, **options: torch_latents(next(rows))  # noqa: E731
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", drawn_noise)
    expected = theirs(
        ["a cat", "a dog"], latents=torch_latents(noise.starting_noise([5, 6], shape)), height=16, width=16,
        output_type="np",
    ).images  # fmt: skip
    settings = {"seed": 5, "verbose": 0}
    images = ours.text_to_image(["a cat", "a dog"], **settings)
    assert_60_decibel(images, expected)
    compilations = ours._engine.compilations
    others = ours.text_to_image(["a cat", "a dog"], unconditional_guidance_scale=[8.5, 2.0], **settings)
    assert ours._engine.compilations == compilations
    assert (others[0] == images[0]).all()
    assert (others[1] != images[1]).any()
    assert not caplog.text
    ours.text_to_image("a cat", "a dog", num_steps=1, **settings)
    assert "a negative prompt changes nothing" in caplog.text
    with pytest.raises(ValueError, match="Leave out guidance_rescale, AND"):
        ours.text_to_image("a cat AND a dog", guidance_rescale=0.5, prompt_weighting=True, **settings)
    ours.diffusion_model.save_weights(tmp_path / "own.weights.h5")
    before = keras.ops.convert_to_numpy(ours.diffusion_model.get_layer("time_embedding_cond_proj").kernel)
    ours.diffusion_model.get_layer("time_embedding_cond_proj").kernel.assign(0 * before)
    ours.diffusion_model.load_weights(tmp_path / "own.weights.h5")
    after = ours.diffusion_model.get_layer("time_embedding_cond_proj").kernel
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(after), before)


@pytest.mark.parametrize(("sampler", "scheduler"), [("ddim", "DDIMScheduler"), ("heun", "HeunDiscreteScheduler")])
@pytest.mark.parametrize("strength", [0.35, 1.0])
def test_image_to_image_reaches_60_decibel(folder, ours, monkeypatch, strength, sampler, scheduler):
    theirs = loaded("StableDiffusionImg2ImgPipeline", folder)
    import diffusers

    spacing = "leading" if sampler == "ddim" else "linspace"
    scheduler = getattr(diffusers, scheduler)
    theirs.scheduler = scheduler.from_config(theirs.scheduler.config, timestep_spacing=spacing)
    latents = np.random.default_rng(2).standard_normal((1, 8, 9, 4), "float32")
    given_noise(monkeypatch, "img2img", latents)
    expected = theirs(
        "a cat", image=Image.fromarray(PICTURE), strength=strength, num_inference_steps=11, guidance_scale=3.0,
        output_type="np",
    ).images  # fmt: skip
    images = ours.generate_image(
        ours.encode_text("a cat"), num_steps=11, unconditional_guidance_scale=3.0, diffusion_noise=latents,
        image=PICTURE, strength=strength, sampler=sampler, verbose=0,
    )  # fmt: skip
    assert_60_decibel(images, expected)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_reaches_60_decibel(folder, ours, monkeypatch, strength):
    compare_inpainting(folder, ours, monkeypatch, strength)


@pytest.mark.backend("0.5")
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_with_nine_channels_reaches_60_decibel(nine_channels, monkeypatch, strength):
    compare_inpainting(*nine_channels, monkeypatch, strength)


def compare_inpainting(folder, ours, monkeypatch, strength):
    theirs = loaded("StableDiffusionInpaintPipeline", folder)
    latents = np.random.default_rng(2).standard_normal((1, 8, 9, 4), "float32")
    given_noise(monkeypatch, "inpaint", latents)
    expected = theirs(
        "a cat", image=Image.fromarray(PICTURE), mask_image=Image.fromarray(MASK), strength=strength, height=16,
        width=18, num_inference_steps=10, guidance_scale=3.0, output_type="np",
    ).images  # fmt: skip
    images = ours.generate_image(
        ours.encode_text("a cat"), num_steps=10, unconditional_guidance_scale=3.0, diffusion_noise=latents,
        image=PICTURE, mask=MASK, strength=strength, sampler="ddim", verbose=0,
    )  # fmt: skip
    assert_60_decibel(images[:, MASK], expected[:, MASK])
    np.testing.assert_array_equal(images[0][~MASK], PICTURE[~MASK])


def test_guidance_rescale_reaches_60_decibel(ours, theirs):
    import torch

    prompts, options = ["a cat", "a dog"], {"negative_prompt": ["blue", "red"], "guidance_rescale": 0.7}
    expected = theirs(
        prompts, num_inference_steps=6, guidance_scale=9.0, height=16, width=16, output_type="np",
        latents=torch.tensor(LATENTS.transpose(0, 3, 1, 2)), **options,
    ).images  # fmt: skip
    images, plain = (
        ours.generate_image(
            ours.encode_text(prompts), num_steps=6, unconditional_guidance_scale=9.0, diffusion_noise=LATENTS,
            sampler="ddim", verbose=0, **{**options, "guidance_rescale": rescale},
        )
        for rescale in (0.7, 0.0)
    )  # fmt: skip
    assert_60_decibel(images, expected)
    assert decibel(plain, expected) < 60


def test_clip_skip_reaches_60_decibel(ours, theirs):
    import torch

    if not hasattr(theirs.text_encoder, "text_model"):  # which diffusers 0.42 expects, and transformers 5 lacks
        vars(theirs.text_encoder)["text_model"] = theirs.text_encoder
    prompts, negatives = ["a cat", "a dog"], ["blue", "red"]
    expected = theirs(
        prompts,
        negative_prompt=negatives,
        num_inference_steps=5,
        guidance_scale=3.0,
        latents=torch.tensor(LATENTS.transpose(0, 3, 1, 2)),
        height=16,
        width=16,
        clip_skip=1,
        output_type="np",
    ).images
    options = {"num_steps": 5, "unconditional_guidance_scale": 3.0, "diffusion_noise": LATENTS, "verbose": 0}
    negative = ours.encode_text(negatives)  # diffusers skips no block for it
    images = ours.generate_image(ours.encode_text(prompts, clip_skip=1), negative, **options)
    others = ours.generate_image(ours.encode_text(prompts), negative, **options)
    assert decibel(images, expected) >= 60
    assert decibel(others, expected) < 60


def test_chunks_are_encoded_as_by_transformers(ours, theirs):
    """A1111's definition of a weighted prompt in two chunks, computed with their tokenizer and text encoder."""
    import torch

    start, end = theirs.tokenizer.bos_token_id, theirs.tokenizer.eos_token_id
    expected = []
    for words in ([("a", 1.0), ("black cat", 1.3), (", on a", 1.0)], [("red", 1 / 1.1), ("sofa", 1.0)]):
        ids = [theirs.tokenizer(text, add_special_tokens=False).input_ids for text, _ in words]
        tokens = [start, *chain(*ids), end]
        weights = [1.0, *(w for part, (_, w) in zip(ids, words, strict=True) for _ in part)]
        with torch.no_grad():
            padded = torch.tensor([tokens + [end] * (77 - len(tokens))])
            context = theirs.text_encoder(padded).last_hidden_state[0].numpy()
        weighted = context * np.array(weights + [1.0] * (77 - len(weights)), "float32")[:, None]
        expected.append(weighted * (context.mean() / weighted.mean()))
    found = ours.encode_text("a (black cat:1.3), on a BREAK [red] sofa", prompt_weighting=True)
    np.testing.assert_allclose(found[0], np.concatenate(expected), rtol=0, atol=1e-4)
