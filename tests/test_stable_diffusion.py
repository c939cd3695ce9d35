"""The facade: KerasCV's calls, reproducible images, and arguments that help when they are wrong."""

import copy
import inspect
import pickle
from dataclasses import replace

import keras
import numpy as np
import pytest

from keras_diffusion import GenerationCancelled, NumericalError, StableDiffusion
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.text_encoder import TextEncoder
from keras_diffusion.sampling.registry import SAMPLERS

from .small import SMALL_OF_EIGHT as ARCHITECTURE

QUICK = {"num_steps": 2, "verbose": 0}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = StableDiffusion(preset=ARCHITECTURE)
    beta = model.text_encoder.get_layer("final_layer_norm").beta
    beta.assign(np.linspace(-1, 2, beta.shape[0]))  # contexts of trained models have a mean
    return model


@pytest.mark.backend
def test_images_are_bytes(model):
    images = model.text_to_image("a slice of pizza", batch_size=2, seed=1, **QUICK)

    assert images.shape == (2, 64, 64, 3)
    assert images.dtype == np.uint8
    assert images.std() > 1
    assert not np.array_equal(images[0], images[1])


def test_signatures_are_those_of_keras_cv():
    parameters = {
        name: inspect.signature(getattr(StableDiffusion, name)).parameters
        for name in ("__init__", "text_to_image", "encode_text", "generate_image")
    }
    assert list(parameters["__init__"])[:4] == ["self", "img_height", "img_width", "jit_compile"]
    assert list(parameters["encode_text"])[:2] == ["self", "prompt"]
    common = ["negative_prompt", "batch_size", "num_steps", "unconditional_guidance_scale"]
    assert list(parameters["text_to_image"])[:7] == ["self", "prompt", *common, "seed"]
    assert list(parameters["generate_image"])[:8] == ["self", "encoded_text", *common, "diffusion_noise", "seed"]
    for name in ("text_to_image", "generate_image"):
        assert parameters[name]["num_steps"].default is None
        assert parameters[name]["unconditional_guidance_scale"].default is None


@pytest.mark.backend
def test_the_same_seed_is_the_same_image(model):
    first, again, other = (model.text_to_image("a cat", seed=seed, **QUICK) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_a_seed_every_image_is_another(model):
    first, second = (model.text_to_image("a cat", **QUICK) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.backend
@pytest.mark.parametrize("sampler", [None, "dpmpp_2m", "euler_ancestral"])
def test_an_image_of_a_batch_can_be_made_alone(model, sampler):
    batch = model.text_to_image("a cat", batch_size=2, seed=10, sampler=sampler, **QUICK)
    alone = model.text_to_image("a cat", seed=11, sampler=sampler, **QUICK)
    listed = model.text_to_image("a cat", batch_size=2, seed=[11, 10], sampler=sampler, **QUICK)

    assert np.abs(batch[1].astype(int) - alone[0]).max() <= 1
    assert np.abs(batch[::-1].astype(int) - listed).max() <= 1


@pytest.mark.backend
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


def test_guidance_of_zero_follows_the_negative_prompt_alone_with_a_warning(model, caplog):
    settings = {"seed": 0, "unconditional_guidance_scale": 0, **QUICK}
    cat, dog = (model.text_to_image(prompt, "a bird", **settings) for prompt in ("a cat", "a dog"))
    np.testing.assert_array_equal(cat, dog)
    assert "For the prompt alone, as diffusers takes guidance_scale=0, choose 1." in caplog.text


def test_every_image_may_have_its_guidance(model):
    both = model.text_to_image("a cat", batch_size=2, seed=[1, 1], unconditional_guidance_scale=[2.0, 9.0], **QUICK)
    alone = model.text_to_image("a cat", seed=1, unconditional_guidance_scale=9.0, **QUICK)
    assert np.abs(both[1].astype(int) - alone[0]).max() <= 1
    assert not np.array_equal(both[0], both[1])


def test_generate_image_is_text_to_image_without_the_text(model):
    context = model.encode_text("a cat")
    assert context.shape == (1, 77, ARCHITECTURE.text_encoder.width)
    expected = model.text_to_image("a cat", batch_size=2, seed=3, **QUICK)

    for encoded in (context, context[0], np.repeat(context, 2, axis=0)):
        images = model.generate_image(encoded, batch_size=2, seed=3, **QUICK)
        np.testing.assert_array_equal(images, expected)


def contexts(model, *tokens, clip_skip=0):
    """What the text encoder makes of rows of tokens between start and end."""
    rows = np.full((len(tokens), 77), 49407)
    rows[:, 0] = 49406
    for row, words in zip(rows, tokens, strict=True):
        row[1 : len(words) + 1] = words
    inputs = [rows, np.arange(77)[None]]
    return keras.ops.convert_to_numpy(model.text_encoder.skip(inputs, clip_skip))


def words(model, text):
    return model.tokenizer.encode(text)[1:-1]


@pytest.mark.backend
def test_words_have_weights(model):
    (context,) = model.encode_text("a (black cat:1.4), [red]", prompt_weighting=True)
    (plain,) = contexts(model, words(model, "a black cat, red"))
    weighted = plain * np.array([1, 1.4, 1.4, 1, 1 / 1.1])[[0, 0, 1, 2, 3, 4] + [0] * 71, None]
    np.testing.assert_allclose(context, weighted * plain.mean() / weighted.mean(), rtol=0, atol=2e-5)
    assert np.abs(context - plain).max() > 0.1


def test_brackets_are_text_unless_asked(model):
    (context,) = model.encode_text("a (cat:1.4)")
    (plain,) = contexts(model, words(model, "a (cat:1.4)"))
    np.testing.assert_allclose(context, plain, rtol=0, atol=2e-5)


@pytest.mark.backend
def test_clip_skip_leaves_out_blocks(model):
    context = model.encode_text("a cat", clip_skip=1)
    np.testing.assert_allclose(context, contexts(model, words(model, "a cat"), clip_skip=1), rtol=0, atol=2e-5)
    assert np.abs(context - model.encode_text("a cat")).max() > 0.01
    drawn = model.text_to_image("a cat", "a dog", seed=0, clip_skip=1, **QUICK)
    expected = model.generate_image(context, model.encode_text("a dog", clip_skip=1), seed=0, **QUICK)
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.backend
def test_long_prompts_are_chunks(model):
    long = words(model, "cat dog " * 40)
    found = model.encode_text(["cat dog " * 40, "a BREAK", "a"], long_prompts="chunk")
    first, second, third = contexts(model, long[:75], long[75:], words(model, "a"))
    assert found.shape == (3, 154, ARCHITECTURE.text_encoder.width)
    np.testing.assert_allclose(found[0], np.concatenate([first, second]), rtol=0, atol=2e-5)
    np.testing.assert_allclose(found[2], np.concatenate([third, third]), rtol=0, atol=2e-5)


def test_a_prompt_of_any_length_is_drawn_alone_or_with_others(model):
    settings = {"long_prompts": "chunk", **QUICK}
    prompts, negatives = ["a cat", "a bird " * 40], ["blue " * 80, ""]
    both = model.text_to_image(prompts, negatives, seed=[3, 3], **settings)
    for image, prompt, negative in zip(both, prompts, negatives, strict=True):
        alone = model.text_to_image(prompt, negative, seed=3, **settings)
        assert np.abs(image.astype(int) - alone[0]).max() <= 1
    plain = model.text_to_image("a cat", seed=3, **QUICK)
    twice = np.tile(model.encode_text("a cat"), (1, 2, 1))
    assert np.abs(model.generate_image(twice, seed=3, **QUICK).astype(int) - plain).max() <= 1


def test_truncation_draws_what_fits(model, caplog):
    drawn = model.text_to_image("a " * 75 + "dog", seed=1, long_prompts="truncate", **QUICK)
    assert "dog" in caplog.text
    np.testing.assert_array_equal(drawn, model.text_to_image("a " * 75, seed=1, **QUICK))


def test_options_hold_for_the_negative_prompt(model):
    settings = {"seed": 1, "prompt_weighting": True, **QUICK}
    drawn = model.text_to_image("a cat", "(blue:1.4) sky", **settings)
    context, negative = (model.encode_text(p, prompt_weighting=True) for p in ("a cat", "(blue:1.4) sky"))
    for contexts_of in (negative, negative[0]):
        np.testing.assert_array_equal(model.generate_image(context, contexts_of, seed=1, **QUICK), drawn)
    np.testing.assert_array_equal(model.generate_image(context, "(blue:1.4) sky", **settings), drawn)
    assert not np.array_equal(model.text_to_image("a cat", "(blue:1.4) sky", seed=1, **QUICK), drawn)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [3, 4])
def test_noise_may_be_given(model, rank, dtype):
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)[4 - rank :]).astype(dtype)
    images = model.generate_image(model.encode_text("a cat"), batch_size=2, diffusion_noise=noise, **QUICK)
    difference = np.abs(images[0].astype(int) - images[1]).max()  # matrix products round differently by row
    assert (difference <= 1) == (rank == 3)


@pytest.mark.backend
@pytest.mark.parametrize(("height", "width"), [(64, 64), (8, 72)])
def test_any_size_with_the_same_weights(model, height, width):
    images = model.text_to_image("a cat", seed=0, img_height=height, img_width=width, **QUICK)
    assert images.shape == (1, height, width, 3)


@pytest.mark.backend
def test_variables_are_made_with_the_values_of_the_checkpoint(monkeypatch):
    """And not before, with others."""
    assigned = []
    monkeypatch.setattr(keras.Variable, "assign", lambda variable, _: assigned.append(variable.path))
    model = StableDiffusion.from_preset("emoji")
    assert not assigned
    assert np.any(keras.ops.convert_to_numpy(model.decoder.layers[-1].kernel))


@pytest.mark.backend
def test_assigned_networks_take_effect(model):
    before = model.text_to_image("a cat", seed=0, **QUICK)
    text_encoder = model.text_encoder
    keras.utils.set_random_seed(7)
    model.text_encoder = TextEncoder(architecture=ARCHITECTURE)
    after = model.text_to_image("a cat", seed=0, **QUICK)
    model.text_encoder = text_encoder

    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(before, model.text_to_image("a cat", seed=0, **QUICK))


@pytest.mark.backend
def test_callback_sees_every_step_and_may_cancel(model):
    seen = []
    model.text_to_image(
        "a cat",
        seed=0,
        num_steps=3,
        sampler="heun",
        verbose=0,
        callback=lambda step, timestep, latents: seen.append((step, timestep, latents.shape)),
    )
    assert [step for step, _, _ in seen] == [1, 2, 3]
    assert [shape for *_, shape in seen] == [(1, 8, 8, 4)] * 3
    assert [timestep for _, timestep, _ in seen] == sorted((t for _, t, _ in seen), reverse=True)

    calls = []
    with pytest.raises(GenerationCancelled, match="after step 2 of 5"):
        model.text_to_image(
            "a cat",
            num_steps=5,
            verbose=0,
            callback=lambda step, *_: calls.append(step) or (False if step == 2 else None),
        )
    assert calls == [1, 2]
    assert model.text_to_image("a cat", **QUICK).shape == (1, 64, 64, 3)


def test_an_interrupt_leaves_the_model_usable(model):
    def interrupt(step, timestep, latents):
        raise KeyboardInterrupt

    before = model.text_to_image("a cat", seed=0, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        model.text_to_image("a dog", seed=1, callback=interrupt, **QUICK)
    np.testing.assert_array_equal(model.text_to_image("a cat", seed=0, **QUICK), before)


def test_a_callback_may_fail_or_draw_itself(model):
    def fail(step, timestep, latents):
        raise RuntimeError("of one's own")

    inner = []
    before, other = (model.text_to_image(prompt, seed=0, **QUICK) for prompt in ("a cat", "a dog"))
    with pytest.raises(RuntimeError, match="of one's own"):
        model.text_to_image("a dog", seed=1, callback=fail, **QUICK)
    again = model.text_to_image(
        "a cat", seed=0, callback=lambda *_: inner.append(model.text_to_image("a dog", seed=0, **QUICK)), **QUICK
    )
    np.testing.assert_array_equal(again, before)
    np.testing.assert_array_equal(inner[0], other)


ODD_PROMPTS = {
    "nothing": "",
    "a million spaces": " " * 10**6,
    "a zero": "a\0cat",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x9b31m",
    "from right to left": "\u202ea cat\u202c \u2066dog\u2069",
    "half a character": "a \ud83d cat",
    "a family": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "another encoding's": "un Ã©tÃ©",
    "HTML": "<b>a cat</b> &amp; <script>",
    "the end": "a <|endoftext|> cat <|startoftext|>",
}


@pytest.mark.parametrize("kind", ODD_PROMPTS)
def test_odd_prompts_are_drawn(model, kind):
    assert model.text_to_image(ODD_PROMPTS[kind], seed=0, **QUICK).shape == (1, 64, 64, 3)


@pytest.mark.parametrize("word", ["a", "cat ", "\U0001f468\u200d", "\u0301"])
def test_a_million_characters_are_counted(model, word):
    with pytest.raises(ValueError, match=r"this one has \d+") as caught:
        model.text_to_image(word * (10**6 // len(word)), **QUICK)
    assert len(str(caught.value)) < 1000


def test_progress_is_silent_on_request(model, capsys):
    model.text_to_image("a cat", seed=0, num_steps=2, verbose=0)
    assert capsys.readouterr() == ("", "")
    model.text_to_image("a cat", seed=0, num_steps=2)
    assert "2/2" in capsys.readouterr().out


@pytest.mark.backend
def test_dtype_belongs_to_the_object(model):
    half = StableDiffusion(preset=ARCHITECTURE, dtype="mixed_bfloat16")
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


def test_an_untrained_model_predicts_what_it_is_told():
    model = StableDiffusion(preset=ARCHITECTURE, prediction_type="v_prediction")
    assert model.architecture == replace(ARCHITECTURE, prediction_type="v_prediction")
    assert model.schedule["prediction_type"] == "v_prediction"
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample"):
        StableDiffusion(preset=ARCHITECTURE, prediction_type="v")


def test_repr_says_preset_size_dtype_and_backend(model):
    backend = keras.backend.backend()
    shown = f"StableDiffusion(preset='random weights', img_height=64, img_width=64, dtype='float32', {backend=})"
    assert repr(model) == shown
    assert "preset='emoji'" in repr(StableDiffusion.from_preset("emoji"))


@pytest.mark.backend
def test_damaged_weights_are_an_error_not_a_black_image(model):
    bias = model.decoder.get_layer("conv_out").bias
    value = keras.ops.convert_to_numpy(bias).copy()
    bias.assign(value * np.nan)
    try:
        with pytest.raises(NumericalError, match="Decoding"):
            model.text_to_image("a cat", **QUICK)
    finally:
        bias.assign(value)


@pytest.mark.parametrize(("form", "suffix"), [("save_to_preset", ""), ("export_checkpoint", ".safetensors")])
def test_what_is_saved_draws_the_same(model, tmp_path, form, suffix):
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    getattr(model, form)(first)
    again = StableDiffusion.from_preset(first)
    assert again.architecture == model.architecture
    for network in ("text_encoder", "diffusion_model", "image_encoder", "decoder"):
        for one, other in zip(getattr(model, network).variables, getattr(again, network).variables, strict=True):
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)))
    if keras.backend.backend() == "torch":  # which rounds otherwise where random kernels lie otherwise in memory
        model = again
        getattr(model, form)(second)
        again = StableDiffusion.from_preset(second)
    expected, found = (m.text_to_image("a cat", seed=0, sampler="ddim", **QUICK).astype(int) for m in (model, again))
    np.testing.assert_array_equal(found, expected)
    other = StableDiffusion.from_preset(first, prediction_type="v_prediction")
    assert other.architecture == replace(again.architecture, prediction_type="v_prediction")
    assert other.schedule["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_draw_the_same(model, copied):
    again, drawn = copied(model), {"seed": 0, "output": "latents", **QUICK}
    expected, found = (m.text_to_image("a cat", **drawn) for m in (model, again))
    np.testing.assert_array_equal(found, expected)
    assert (again.decoder is model.decoder) == (again._engine is model._engine) == (copied is copy.copy)
    again.diffusion_model = DiffusionModel(architecture=ARCHITECTURE)
    np.testing.assert_array_equal(model.text_to_image("a cat", **drawn), expected)


NOISE = np.zeros((8, 8, 4), "float32")
WRONG = [
    *(("img_height", value, TypeError) for value in (64.0, True, "64", [64])),
    *(("img_width", value, ValueError) for value in (0, -8, 7, 65, 576 + 4, 10**9)),
    *(("num_steps", value, TypeError) for value in (1.5, True, "20")),
    *(("num_steps", value, ValueError) for value in (0, -1, 1001)),
    *(("unconditional_guidance_scale", value, ValueError) for value in (float("nan"), float("inf"), -1, [1, 2, 3], [])),
    *(("unconditional_guidance_scale", value, TypeError) for value in ("7.5", True, [True])),
    *(("seed", value, TypeError) for value in (1.0, True, "1", [1.5])),
    *(("seed", value, ValueError) for value in (-1, 2**63, [1, 2], [])),
    *(("batch_size", value, TypeError) for value in (1.0, True, "1")),
    *(("batch_size", value, ValueError) for value in (0, -1, 10**9)),
    *(("sampler", value, ValueError) for value in ("", "dpm++ 9M", 3)),
    *(("negative_prompt", value, TypeError) for value in (3, ["a", 3][1:], b"a")),
    *(("negative_prompt", value, ValueError) for value in (["a", "b"], [], "word " * 80)),
    *(("negative_prompt", np.zeros(shape), ValueError) for shape in ((77, 15), (3, 77, 16), (76, 16), (0, 16), (77,))),
    *(("prompt_weighting", value, TypeError) for value in (1, "yes", None)),
    *(("long_prompts", value, ValueError) for value in ("cut", True, None)),
    *(("clip_skip", value, ValueError) for value in (-1, 2, 10**9)),
    *(("clip_skip", value, TypeError) for value in (1.0, True, "1", None)),
    *(("prompt", value, TypeError) for value in (np.zeros((77, 16)), None, 3, b"cat", {"a": 1}, ["a", None])),
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
        StableDiffusion(preset=ARCHITECTURE, dtype=dtype)


def test_random_weights_have_no_averages():
    with pytest.raises(ValueError, match="`ema` is for checkpoints"):
        StableDiffusion(preset=ARCHITECTURE, ema=True)


@pytest.mark.parametrize("name", ["model", "model.ckpt", "model.h5"])
def test_a_checkpoint_is_called_what_it_is(model, tmp_path, name):
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        model.export_checkpoint(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_preset_in_the_place_of_a_height_is_not_taken_for_the_bare_line():
    with pytest.raises(TypeError, match=r"`img_height` must be an int.* Received: img_height='emoji'"):
        StableDiffusion("emoji")


def test_the_bare_line_says_how_to_get_the_weights():
    with pytest.raises((ValueError, OSError), match="sd14"):
        StableDiffusion(img_height=512, img_width=512)
