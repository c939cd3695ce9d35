"""Image prompts in a generation: against diffusers' pipelines, what compiles nothing, and arguments that help."""

from collections import Counter
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from keras_diffusion import ImagePrompt, StableDiffusion
from keras_diffusion.architectures import SD15, SDXL, TINY
from keras_diffusion.generation.image_prompts import Read, encode_image_prompts, normalise, read_scales
from keras_diffusion.images.resizing import bicubic
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.networks.ip_adapter import KINDS

from ..golden import ip_adapters
from ..test_pipeline import ARCHITECTURE, loaded, made
from ..test_sdxl import TINY_SDXL

pytestmark = pytest.mark.filterwarnings("ignore")
LATENTS = np.random.default_rng(0).standard_normal((2, 8, 12, 4), "float32")
IMAGES = np.random.default_rng(1).integers(0, 256, (2, ip_adapters.SIDE, ip_adapters.SIDE, 3), "uint8")
MASK = np.zeros((16, 24), bool)
MASK[2:10, 5:17] = True
BLOCKS = {"down": 0.3, "up": {"block_1": [0.0, 1.5]}}  # of TINY; the middle gets 0
QUICK = {"num_steps": 3, "verbose": 0, "img_height": 16, "img_width": 24, "output": "latents"}


def save_adapters(folder, shape):
    """Writes an adapter of each kind, and the image encoder beside them."""
    for kind in KINDS:
        save_file(ip_adapters.tensors(kind, shape), folder / f"{kind}.safetensors")
    ip_adapters.image_encoder().save_pretrained(folder / "image_encoder")


def pair(root, architecture, pipeline):
    """Our model with an adapter of each kind, and diffusers' pipeline with the image encoder."""
    transformers = pytest.importorskip("transformers")
    made(architecture, root / "model")
    save_adapters(root, architecture.diffusion_model)
    ours = StableDiffusion.from_preset(root / "model")
    for name in KINDS:
        assert ours.load_ip_adapter(root / f"{name}.safetensors") == name
    theirs, sides = loaded(pipeline, root / "model"), dict.fromkeys(("size", "crop_size"), ip_adapters.SIDE)
    processor = transformers.CLIPImageProcessor(**sides)
    theirs.register_modules(image_encoder=ip_adapters.image_encoder(), feature_extractor=processor)
    return ours, theirs


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("sd"), ARCHITECTURE, "StableDiffusionPipeline")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("sdxl"), TINY_SDXL, "StableDiffusionXLPipeline")


def expected(theirs, shape, prompts):
    """What diffusers draws; the prompts are (adapter, image, scale, mask)."""
    import torch
    from diffusers.image_processor import IPAdapterMaskProcessor

    adapters = [ip_adapters.nested(ip_adapters.tensors(name, shape)) for name, *_ in prompts]
    theirs.load_ip_adapter(adapters, subfolder="", weight_name=[""] * len(adapters))
    theirs.set_ip_adapter_scale([scale for _, _, scale, _ in prompts])
    options = {}
    if any(mask is not None for *_, mask in prompts):
        masks = [np.ones(MASK.shape, bool) if mask is None else mask for *_, mask in prompts]
        processed = IPAdapterMaskProcessor().preprocess([Image.fromarray(mask) for mask in masks], *MASK.shape)
        options["cross_attention_kwargs"] = {"ip_adapter_masks": [mask[None] for mask in processed]}
    return (
        theirs(
            ["a cat", "a dog"],
            negative_prompt=["blue", "red"],
            ip_adapter_image=[Image.fromarray(image) for _, image, *_ in prompts],
            num_inference_steps=QUICK["num_steps"],
            guidance_scale=3.0,
            latents=torch.tensor(LATENTS.transpose(0, 3, 1, 2)),
            height=16,
            width=24,
            output_type="latent",
            **options,
        )
        .images.numpy()
        .transpose(0, 2, 3, 1)
    )


THREE = [("plain", IMAGES[0], 0.7, MASK), ("plus", IMAGES[1], BLOCKS, None), ("full", IMAGES[0], 0.9, None)]
CASES = {"sd": THREE, "sdxl": [("plus", IMAGES[0], 0.7, None), ("plain", IMAGES[1], 1.2, MASK)]}


def tuples(prompts):
    return [(image, scale, mask, name) for name, image, scale, mask in prompts]


@pytest.fixture
def draw(sd):
    """Function of image prompts that draws two images; those of the kinds of `THREE` compile it once."""
    return lambda prompts: sd[0].text_to_image(["a cat", "a dog"], image_prompt=prompts, **QUICK)


@pytest.mark.backend("sd")
@pytest.mark.parametrize("name", CASES)
def test_draws_what_diffusers_draws(name, request):
    (ours, theirs), prompts = request.getfixturevalue(name), CASES[name]
    drawn = ours.text_to_image(
        ["a cat", "a dog"],
        ["blue", "red"],
        unconditional_guidance_scale=3.0,
        diffusion_noise=LATENTS,
        image_prompt=tuples(prompts),
        **QUICK,
    )
    wanted = expected(theirs, ours.architecture.diffusion_model, prompts)
    np.testing.assert_allclose(drawn, wanted, rtol=0, atol=2e-5)


@pytest.mark.backend
def test_a_change_of_image_scale_or_mask_compiles_nothing(sd, draw):
    first = draw(tuples(THREE))
    compiled = sd[0]._engine.compilations
    others = [
        ImagePrompt(IMAGES[1], BLOCKS, adapter="plain"),
        ImagePrompt(list(IMAGES), 2.0, [MASK, ~MASK], "plus"),
        ImagePrompt(IMAGES[0], 0.0, ~MASK, "full"),
    ]
    assert np.abs(draw(others) - first).max() > 1e-3
    assert sd[0]._engine.compilations == compiled


def test_follows_images_with_everything_else(sd):
    """With several prompts, deep features that are reused, a ControlNet and an image to start from, enlarged."""
    keras.utils.set_random_seed(0)
    options = {
        "deep_cache": 2,
        "control": (ControlNet(architecture=ARCHITECTURE, conditioning=(4, 8)), MASK[..., None].repeat(3, -1) / 1.0),
    }
    options |= QUICK | {"num_steps": 4, "seed": 1, "strength": 0.8, "image": IMAGES[0], "prompt_weighting": True}
    drawn = [
        sd[0].text_to_image("a cat AND a dog:0.5", image_prompt=(IMAGES[1], scale, None, "plain"), **options)
        for scale in (0.0, 1.0)
    ]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3


def test_each_image_of_a_batch_follows_its_own():
    """The pairs are ordered as the contexts: those of the negative prompts, then k times those of the prompts."""
    engine = SimpleNamespace(encode_image_prompt=lambda network, x: network.compute(x))
    encoder = SimpleNamespace(compute=lambda x: [10 * x[:, :2, 0], x[:, 0, 0]])
    prompts = []
    for kind in ("plain", "plus"):
        network = SimpleNamespace(compute=lambda x: x + 1, architecture=SimpleNamespace(kind=kind))
        adapter = SimpleNamespace(network=network, encoder=encoder)
        pixels = np.arange(1, 3, dtype="float32")[:, None, None, None] * np.ones((2, 2, 2, 3), "float32")
        prompts.append(Read(adapter, pixels, [0.5] * 4, np.stack([MASK, ~MASK]).astype("float32")))
    images = encode_image_prompts(engine, prompts, TINY.diffusion_model, 2, (9, 11), 1, False)
    assert [pairs.reshape(2, -1)[:, 0].tolist() for pairs in images.pairs] == [[2, 3], [11, 21]]
    images = encode_image_prompts(engine, prompts, TINY.diffusion_model, 2, (9, 11), 3, True)
    plain, plus = (pairs.reshape(6, -1)[:, 0].tolist() for pairs in images.pairs)
    assert plain == [1, 1, 2, 3, 2, 3]
    assert plus == [1, 1, 11, 21, 11, 21]
    assert [mask.shape for mask in images.masks] == [(2, 2, 99), (2, 2, 30)]
    np.testing.assert_allclose(images.masks[1][:, 0] + images.masks[1][:, 1], 1, atol=1e-6)
    assert images.scales.tolist() == [[0.5] * 4] * 2


@pytest.mark.parametrize("size", [(40, 31), (31, 90), (28, 28), (300, 200)])
def test_images_are_prepared_as_by_transformers(size):
    transformers = pytest.importorskip("transformers")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), "uint8")
    wanted = transformers.CLIPImageProcessor(size=28, crop_size=28)(Image.fromarray(image)).pixel_values[0]
    np.testing.assert_allclose(
        normalise(image.astype("float32"), 28), np.transpose(np.asarray(wanted), (1, 2, 0)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("size", [(8, 9), (3, 40), (16, 18)])
def test_masks_are_sampled_as_by_torch(size):
    torch = pytest.importorskip("torch")
    planes = np.random.default_rng(0).random((2, 16, 18))
    wanted = torch.nn.functional.interpolate(torch.tensor(planes[None]), size, mode="bicubic")[0].numpy()
    np.testing.assert_allclose(bicubic(planes, size), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "wanted"),
    [
        (0.5, {0.5: 70}),
        ({"up": {"block_0": [0.0, 1.0, 0.0]}}, {0.0: 60, 1.0: 10}),  # InstantStyle: the style alone
        ({"down": {"block_2": [0.0, 2]}, "mid": 3, "up": 4}, {0.0: 14, 2.0: 10, 3.0: 10, 4.0: 36}),
    ],
)
def test_a_scale_for_each_block_is_that_of_diffusers(scale, wanted):
    assert Counter(read_scales("scale", scale, SDXL.diffusion_model.crossings)) == wanted


def test_layers_are_in_the_order_of_diffusers():
    ways = [crossing.transformer.partition("_")[0] for crossing in SD15.diffusion_model.crossings]
    assert ways == ["down"] * 6 + ["up"] * 9 + ["mid"]
    assert [x.channels for x in SD15.diffusion_model.crossings[:7]] == [320, 320, 640, 640, 1280, 1280, 1280]


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("a.png", TypeError, "must be .image, scale. or a list of those"),
        ((), TypeError, "must be a tuple .image, scale, mask, adapter."),
        ((None, 1.0, None, "plus"), TypeError, r"`image_prompt\[0\].image` must be a path"),
        ((IMAGES[0],), ValueError, "must be one of plain, full, plus"),
        ((IMAGES[0], 1.0, None, "other"), ValueError, "must be one of plain, full, plus.*Received.*'other'"),
        ((IMAGES[0], 101, None, "plus"), ValueError, "scale` must be a number from -100 to 100"),
        ((IMAGES[0], {"up": {"block_0": 1}}, None, "plus"), ValueError, "the blocks that attend are block_1"),
        ((IMAGES[0], {"up": [1, 2, 3]}, None, "plus"), ValueError, "one for each of its 2 transformers"),
        ((IMAGES[0], {"left": 1}, None, "plus"), ValueError, "with keys of down, up, mid"),
        ((np.stack([IMAGES[0]] * 3), 1.0, None, "plus"), ValueError, "must hold 1 or 2 values"),
        ((IMAGES[0], 1.0, np.zeros((3, 8, 8)), "plus"), ValueError, "mask` must hold"),
    ],
)
def test_refuses_what_it_cannot_follow(draw, prompt, error, message):
    with pytest.raises(error, match=message):
        draw(prompt)


def test_says_what_cannot_follow_images():
    bare = StableDiffusion(preset=TINY)
    with pytest.raises(ValueError, match="no IP-Adapter is loaded; load one with `load_ip_adapter`"):
        bare.text_to_image("a cat", image_prompt=(IMAGES[0],))
    with pytest.raises(TypeError, match="Did you mean image_prompt"):
        bare.text_to_image("a cat", ip_adapter_image=IMAGES[0])
    bare._engine.jit_compile = "openvino"
    with pytest.raises(ValueError, match="OpenVINO cannot follow `image_prompt`"):
        bare.text_to_image("a cat", image_prompt=(IMAGES[0],))
