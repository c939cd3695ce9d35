"""Prompts that change between steps or are joined draw what a loop draws in which contexts are swapped by hand."""

from functools import cache

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion import StableDiffusion
from keras_diffusion.engines.engine import Engine
from keras_diffusion.generation.size_ids import added_vectors
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.prompts.reading import repeat_to_one_length
from keras_diffusion.sampling.samplers import build

from ..small import SMALL
from ..test_sdxl import TINY_SDXL

NOISE = np.random.default_rng(0).standard_normal((1, 4, 4, 4), "float32")
DRAWN = {"num_steps": 4, "unconditional_guidance_scale": 3.0, "verbose": 0, "output": "latents"}
A1111 = {"prompt_weighting": True, "diffusion_noise": NOISE, "img_height": 8, "img_width": 8}


@pytest.fixture(scope="module")
def model():
    return random_model(SMALL)


def random_model(architecture):
    keras.utils.set_random_seed(0)
    return StableDiffusion(preset=architecture, jit_compile=False)


def by_hand(model, rows, negative="", sampler="ddim", guidance=3.0, long_prompts="error"):
    """Draws with the texts of each row, a list of pairs (text, weight), without the library's loop."""
    table = build(sampler, 4, prediction_type=model.architecture.prediction_type)
    latents, history = np.float32(table.initial_scale) * NOISE, np.zeros((5, *NOISE.shape), "float32")
    shape = model.architecture.diffusion_model
    ids = np.float32([8, 8, 0, 0, 8, 8])[: 6 * bool(shape.added)]
    negatives = negative if isinstance(negative, list) else [negative] * len(rows)
    encode = cache(lambda text: model.encode_text(text, long_prompts=long_prompts))

    def predict(texts, row):
        encoded = [encode(text) for text in texts]
        added = [added_vectors(np.concatenate([x.pooled for x in encoded]), ids, shape.id_width)] if shape.added else []
        contexts = repeat_to_one_length(*(x.context if added else x for x in encoded))
        inputs = [np.repeat(latents, len(texts), axis=0), timestep_embedding([row[0]], shape.frequencies)]
        inputs = map(ops.convert_to_tensor, [*inputs, np.concatenate(contexts), *added])
        return ops.convert_to_numpy(model.diffusion_model([*inputs]))

    for row, texts, negative in zip(table.rows.astype("float32"), rows, negatives, strict=True):
        without, *each = predict([negative, *(text for text, _ in texts)], row)
        prediction = without + guidance * sum(w * (x - without) for x, (_, w) in zip(each, texts, strict=True))
        _, p, q, a, _, *b = row
        history = np.concatenate([(p * latents + q * prediction)[None], history[:-1]])
        latents = a * latents + np.tensordot(np.float32(b), history, 1)
    return latents


def repeated(*pairs):
    """The texts of rows, from pairs (text, number of rows)."""
    return [[(text, 1)] for text, count in pairs for _ in range(count)]


@pytest.mark.backend("rows1")
@pytest.mark.parametrize(
    ("prompt", "rows"),
    [
        ("[cat:dog:0.25]", repeated(("cat", 2), ("dog", 2))),  # A1111 takes the first text once more
        (
            "cat:0.5 AND [a|b|[c:d:2]]: -2",
            [[("cat", 0.5), (text, -2)] for text in "aabd"],
        ),
    ],
)
def test_contexts_change_and_join_as_if_by_hand(model, prompt, rows):
    drawn = model.text_to_image(prompt, "sad", **DRAWN, **A1111)

    np.testing.assert_allclose(drawn, by_hand(model, rows, "sad"), atol=1e-4)


def test_two_evaluations_in_a_step_count_twice(model):
    drawn = model.text_to_image("[cat:dog:0.5]", **DRAWN, **A1111, sampler="heun")

    expected = by_hand(model, repeated(("cat", 5), ("dog", 2)), sampler="heun")
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_long_prompts_change_and_so_do_negative_ones(model):
    long = "a " * 80
    drawn = model.text_to_image(f"[{long}|b]", f"[sad:{long}:2]", **DRAWN, **A1111, long_prompts="chunk")

    rows = repeated((long, 2), ("b", 1), (long, 1))
    expected = by_hand(model, rows, ["sad", "sad", "sad", long], long_prompts="chunk")
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_both_text_encoders_of_sdxl_change():
    model = random_model(TINY_SDXL)
    drawn = model.text_to_image("[cat:dog:1] AND sea", "", **DRAWN, **A1111)

    expected = by_hand(model, [[(text, 1), ("sea", 1)] for text in ("cat", "cat", "dog", "dog")])
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_images_of_a_batch_change_each_by_its_prompt(model):
    given = A1111 | {"diffusion_noise": np.repeat(NOISE, 2, axis=0)}
    together = model.text_to_image(["[cat:dog:1]", "sky AND [sea|sun]:0.5"], **DRAWN, **given)

    np.testing.assert_allclose(together[:1], by_hand(model, repeated(("cat", 2), ("dog", 2))), atol=1e-4)
    rows = [[("sky", 1), (text, 0.5)] for text in ("sea", "sea", "sun", "sea")]
    np.testing.assert_allclose(together[1:], by_hand(model, rows), atol=1e-4)


def test_joined_prompts_without_guidance_are_their_sum(model):
    once = DRAWN | {"unconditional_guidance_scale": 1.0}
    drawn = model.text_to_image("cat:0.5 AND dog:0.7", **once, **A1111)
    outside = model.text_to_image("cat:0.5 AND dog:0.7", **DRAWN, **A1111, guidance_interval=(0.9, 1))

    expected = by_hand(model, [[("cat", 0.5), ("dog", 0.7)]] * 4, guidance=1.0)
    np.testing.assert_allclose(drawn, expected, atol=1e-4)
    np.testing.assert_allclose(outside, expected, atol=1e-4)  # before the interval, the whole of these steps


@pytest.mark.backend
def test_nothing_is_compiled_for_another_change(model):
    model.text_to_image("a cat", **DRAWN, **A1111)
    model.text_to_image("a AND b", **DRAWN, **A1111)
    seen = model._engine.compilations
    for prompt in ("[a:b:0.5]", "[a|b|c]", "[a:1] AND b:0.3", "a cat"):
        model.text_to_image(prompt, "[sad:2]", **DRAWN | {"num_steps": 3}, **A1111)

    assert model._engine.compilations == seen


def test_openvino_draws_the_same(model):
    pytest.importorskip("openvino")
    other = random_model(SMALL)
    other._engine = Engine("openvino")
    drawn = {**DRAWN, **A1111, "prompt": "[cat:dog:1] AND sea:0.5"}

    np.testing.assert_allclose(other.text_to_image(**drawn), model.text_to_image(**drawn), atol=1e-3)
