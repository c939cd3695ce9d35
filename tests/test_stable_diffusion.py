"""The facade: KerasCV's calls, reproducible images, and arguments that help when they are wrong."""

import inspect

import keras
import numpy as np
import pytest

from keras_diffusion import GenerationCancelled, NumericalError, StableDiffusion
from keras_diffusion.architectures import TINY
from keras_diffusion.samplers import SAMPLERS
from keras_diffusion.text_encoder import TextEncoder

QUICK = {"num_steps": 2, "verbose": 0}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return StableDiffusion(preset=TINY)


def test_images_are_bytes(model):
    images = model.text_to_image("a slice of pizza", batch_size=2, seed=1, **QUICK)

    assert images.shape == (2, 64, 64, 3)
    assert images.dtype == np.uint8
    assert images.std() > 1
    assert not np.array_equal(images[0], images[1])


def test_signatures_are_those_of_keras_cv():
    parameters = {name: inspect.signature(getattr(StableDiffusion, name)).parameters for name in (
        "__init__", "text_to_image", "encode_text", "generate_image")}
    assert list(parameters["__init__"])[:4] == ["self", "img_height", "img_width", "jit_compile"]
    assert list(parameters["encode_text"]) == ["self", "prompt"]
    common = ["negative_prompt", "batch_size", "num_steps", "unconditional_guidance_scale"]
    assert list(parameters["text_to_image"])[:7] == ["self", "prompt", *common, "seed"]
    assert list(parameters["generate_image"])[:8] == ["self", "encoded_text", *common, "diffusion_noise", "seed"]
    for name in ("text_to_image", "generate_image"):
        assert parameters[name]["num_steps"].default == 50
        assert parameters[name]["unconditional_guidance_scale"].default == 7.5


def test_the_same_seed_is_the_same_image(model):
    first, again, other = (model.text_to_image("a cat", seed=seed, **QUICK) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_a_seed_every_image_is_another(model):
    first, second = (model.text_to_image("a cat", **QUICK) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("sampler", [None, "dpmpp_2m", "euler_ancestral"])
def test_an_image_of_a_batch_can_be_made_alone(model, sampler):
    batch = model.text_to_image("a cat", batch_size=3, seed=10, sampler=sampler, **QUICK)
    alone = model.text_to_image("a cat", seed=12, sampler=sampler, **QUICK)
    listed = model.text_to_image("a cat", batch_size=3, seed=[12, 10, 11], sampler=sampler, **QUICK)

    assert np.abs(batch[2].astype(int) - alone[0]).max() <= 1
    assert np.abs(batch[[2, 0, 1]].astype(int) - listed).max() <= 1


def test_every_image_has_its_prompt_and_negative_prompt(model):
    prompts, negatives = ["a cat", "a dog"], ["blue", "red"]
    both = model.text_to_image(prompts, negatives, seed=[5, 5], **QUICK)
    for image, prompt, negative in zip(both, prompts, negatives, strict=True):
        alone = model.text_to_image(prompt, negative, seed=5, **QUICK)
        assert np.abs(image.astype(int) - alone[0]).max() <= 1
    assert not np.array_equal(both[0], both[1])


def test_guidance_of_one_ignores_the_negative_prompt(model):
    settings = {"seed": 0, "unconditional_guidance_scale": 1, **QUICK}
    plain, negative = (model.text_to_image("a cat", n, **settings) for n in (None, "a dog"))
    np.testing.assert_array_equal(plain, negative)

    settings["unconditional_guidance_scale"] = 5
    plain, negative = (model.text_to_image("a cat", n, **settings) for n in (None, "a dog"))
    assert not np.array_equal(plain, negative)


def test_guidance_of_zero_follows_the_negative_prompt_alone(model):
    settings = {"seed": 0, "unconditional_guidance_scale": 0, **QUICK}
    cat, dog = (model.text_to_image(prompt, "a bird", **settings) for prompt in ("a cat", "a dog"))
    np.testing.assert_array_equal(cat, dog)


def test_every_image_may_have_its_guidance(model):
    both = model.text_to_image("a cat", batch_size=2, seed=[1, 1], unconditional_guidance_scale=[2.0, 9.0], **QUICK)
    alone = model.text_to_image("a cat", seed=1, unconditional_guidance_scale=9.0, **QUICK)
    assert np.abs(both[1].astype(int) - alone[0]).max() <= 1
    assert not np.array_equal(both[0], both[1])


def test_generate_image_is_text_to_image_without_the_text(model):
    context = model.encode_text("a cat")
    assert context.shape == (1, 77, TINY.text_encoder.width)
    expected = model.text_to_image("a cat", batch_size=2, seed=3, **QUICK)

    for encoded in (context, context[0], np.repeat(context, 2, axis=0)):
        images = model.generate_image(encoded, batch_size=2, seed=3, **QUICK)
        np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [3, 4])
def test_noise_may_be_given(model, rank, dtype):
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)[4 - rank :]).astype(dtype)
    images = model.generate_image(model.encode_text("a cat"), batch_size=2, diffusion_noise=noise, **QUICK)
    assert np.array_equal(images[0], images[1]) == (rank == 3)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 40), (8, 128)])
def test_any_size_with_the_same_weights(model, height, width):
    images = model.text_to_image("a cat", seed=0, img_height=height, img_width=width, **QUICK)
    assert images.shape == (1, height, width, 3)


def test_assigned_networks_take_effect(model):
    before = model.text_to_image("a cat", seed=0, **QUICK)
    text_encoder = model.text_encoder
    keras.utils.set_random_seed(7)
    model.text_encoder = TextEncoder(architecture=TINY)
    after = model.text_to_image("a cat", seed=0, **QUICK)
    model.text_encoder = text_encoder

    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(before, model.text_to_image("a cat", seed=0, **QUICK))


def test_callback_sees_every_step_and_may_cancel(model):
    seen = []
    model.text_to_image("a cat", seed=0, num_steps=3, sampler="heun", verbose=0,
                        callback=lambda step, timestep, latents: seen.append((step, timestep, latents.shape)))
    assert [step for step, _, _ in seen] == [1, 2, 3]
    assert [shape for *_, shape in seen] == [(1, 8, 8, 4)] * 3
    assert [timestep for _, timestep, _ in seen] == sorted((t for _, t, _ in seen), reverse=True)

    calls = []
    with pytest.raises(GenerationCancelled, match="after step 2 of 5"):
        model.text_to_image("a cat", num_steps=5, verbose=0,
                            callback=lambda step, *_: calls.append(step) or (False if step == 2 else None))
    assert calls == [1, 2]
    assert model.text_to_image("a cat", **QUICK).shape == (1, 64, 64, 3)


def test_progress_is_silent_on_request(model, capsys):
    model.text_to_image("a cat", seed=0, num_steps=2, verbose=0)
    assert capsys.readouterr() == ("", "")
    model.text_to_image("a cat", seed=0, num_steps=2)
    assert "2/2" in capsys.readouterr().out


def test_dtype_belongs_to_the_object(model):
    half = StableDiffusion(preset=TINY, dtype="mixed_bfloat16")
    assert half.diffusion_model.layers[-1].compute_dtype == "bfloat16"
    assert half.decoder.layers[-1].compute_dtype == "float32"
    assert model.diffusion_model.layers[-1].compute_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
    for ours, theirs in zip(half.diffusion_model.variables, model.diffusion_model.variables, strict=True):
        ours.assign(theirs)
    half.text_encoder.set_weights(model.text_encoder.get_weights())
    half.decoder.set_weights(model.decoder.get_weights())

    a, b = (m.text_to_image("a cat", seed=0, **QUICK).astype(float) for m in (half, model))
    assert 0 < np.abs(a - b).mean() < 4


def test_damaged_weights_are_an_error_not_a_black_image(model):
    bias = model.decoder.get_layer("conv_out").bias
    value = keras.ops.convert_to_numpy(bias).copy()
    bias.assign(value * np.nan)
    try:
        with pytest.raises(NumericalError, match="Decoding"):
            model.text_to_image("a cat", **QUICK)
    finally:
        bias.assign(value)


NOISE = np.zeros((8, 8, 4), "float32")
WRONG = [
    *(("img_height", value, TypeError) for value in (64.0, True, "64", [64])),
    *(("img_width", value, ValueError) for value in (0, -8, 7, 65, 576 + 4, 10**9)),
    *(("num_steps", value, TypeError) for value in (1.5, True, "20", None)),
    *(("num_steps", value, ValueError) for value in (0, -1, 1001)),
    *(("unconditional_guidance_scale", value, ValueError) for value in (float("nan"), float("inf"), -1, [1, 2, 3], [])),
    *(("unconditional_guidance_scale", value, TypeError) for value in ("7.5", None, True, [True])),
    *(("seed", value, TypeError) for value in (1.0, True, "1", [1.5])),
    *(("seed", value, ValueError) for value in (-1, 2**63, [1, 2], [])),
    *(("batch_size", value, TypeError) for value in (1.0, True, "1")),
    *(("batch_size", value, ValueError) for value in (0, -1, 10**9)),
    *(("sampler", value, ValueError) for value in ("", "dpm++ 9M", 3)),
    *(("negative_prompt", value, TypeError) for value in (3, ["a", 3][1:], b"a")),
    *(("negative_prompt", value, ValueError) for value in (["a", "b"], [], "word " * 80)),
    *(("prompt", value, TypeError) for value in (None, 3, b"cat", {"a": 1}, ["a", None])),
    *(("prompt", value, ValueError) for value in ([], "word " * 80)),
]


@pytest.mark.parametrize(("name", "value", "error"), WRONG)
def test_wrong_arguments_are_named_before_anything_is_computed(model, monkeypatch, name, value, error):
    monkeypatch.setattr(model._engine, "run", None)
    with pytest.raises(error) as caught:
        model.text_to_image(**{"prompt": "a cat", **QUICK, name: value})
    message = str(caught.value)
    assert "Received: " in message
    assert len(message) < 1000
    if name == "sampler":
        assert all(sampler in message for sampler in SAMPLERS)


def test_elements_of_a_list_are_named_by_index(model):
    with pytest.raises(TypeError, match=r"prompt\[1\]=None"):
        model.text_to_image(["a", None], **QUICK)


def test_sizes_suggest_their_neighbours(model):
    with pytest.raises(ValueError, match="multiple of 8; the nearest are 576 and 584"):
        model.text_to_image("a cat", img_height=580, **QUICK)


@pytest.mark.parametrize(
    ("noise", "message"),
    [(NOISE[..., :3], "shape"), (NOISE * np.nan, "finite"), (NOISE.astype(str), "numbers"), (None, None)],
)
def test_wrong_noise(model, noise, message):
    context = model.encode_text("a cat")
    if noise is None:
        with pytest.raises(ValueError, match="not both"):
            model.generate_image(context, diffusion_noise=NOISE, seed=1, **QUICK)
    else:
        with pytest.raises(ValueError, match=message):
            model.generate_image(context, diffusion_noise=noise, **QUICK)


@pytest.mark.parametrize("context", [np.zeros((77, 15)), np.zeros((2, 3, 77, 16)), "a cat", np.full((77, 16), np.inf)])
def test_wrong_context(model, context):
    with pytest.raises(ValueError, match="encoded_text"):
        model.generate_image(context, **QUICK)


@pytest.mark.parametrize("dtype", ["float64", "int8", "half", 16, ""])
def test_wrong_dtype(dtype):
    with pytest.raises(ValueError, match="mixed_float16"):
        StableDiffusion(preset=TINY, dtype=dtype)


def test_the_bare_line_says_how_to_get_the_weights():
    with pytest.raises((ValueError, OSError), match="sd14"):
        StableDiffusion(img_height=512, img_width=512)
