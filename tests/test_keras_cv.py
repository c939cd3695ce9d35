"""KerasCV's published tutorials, with the import line alone changed, and models side by side in one process."""

import gc
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import keras_diffusion
from keras_diffusion import StableDiffusion

from .small import SMALL_OF_EIGHT as ARCHITECTURE

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return StableDiffusion(img_width=64, img_height=64, jit_compile=False, preset=ARCHITECTURE)


def test_generating_images():
    """High-performance image generation with Stable Diffusion in KerasCV."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        half = StableDiffusion(img_width=64, img_height=64, preset=ARCHITECTURE)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert half.diffusion_model.compute_dtype == "float16"
    images = half.text_to_image("a cute magical flying dog", batch_size=3, num_steps=2)
    assert images.shape == (3, 64, 64, 3)

    keras.backend.clear_session()
    model = StableDiffusion(img_width=64, img_height=64, preset=ARCHITECTURE)
    assert model.diffusion_model.compute_dtype == "float32"
    assert model.text_to_image("photograph of an astronaut", num_steps=2).shape == (1, 64, 64, 3)


def test_walking_between_prompts(model):
    """A walk through latent space with Stable Diffusion: interpolation between two prompts."""
    interpolation_steps = 4
    encoding_1 = ops.squeeze(model.encode_text("A watercolor painting of a Golden Retriever at the beach"))
    encoding_2 = ops.squeeze(model.encode_text("A still life DSLR photo of a bowl of fruit"))
    interpolated_encodings = ops.linspace(encoding_1, encoding_2, interpolation_steps)
    noise = np.random.default_rng(12345).normal(size=(64 // 8, 64 // 8, 4))  # float64
    batches = ops.split(interpolated_encodings, 2)
    images = []
    for batch in batches:
        images += list(model.generate_image(batch, batch_size=2, num_steps=2, diffusion_noise=noise, verbose=0))
    assert [image.shape for image in images] == [(64, 64, 3)] * 4
    first = model.generate_image(encoding_1, num_steps=2, diffusion_noise=noise, verbose=0)[0]
    assert np.abs(images[0].astype(int) - first).max() <= 1


def test_walking_among_four_prompts(model):
    """The same tutorial: interpolation between four prompts, in two directions."""
    prompts = ["a dog", "a bowl of fruit", "the Eiffel tower", "a skyscraper"]
    encodings = [ops.squeeze(model.encode_text(prompt)) for prompt in prompts]
    steps = 2
    interpolated = ops.linspace(
        ops.linspace(encodings[0], encodings[1], steps), ops.linspace(encodings[2], encodings[3], steps), steps
    )
    interpolated = ops.reshape(interpolated, (steps**2, 77, ARCHITECTURE.text_encoder.width))
    noise = np.random.default_rng(0).normal(size=(8, 8, 4)).astype("float32")
    images = model.generate_image(interpolated, batch_size=steps**2, num_steps=2, diffusion_noise=noise, verbose=0)
    assert images.shape == (4, 64, 64, 3)


def test_walking_through_noise(model):
    """The same tutorial: one prompt, and noise that goes round a circle."""
    encoding = ops.squeeze(model.encode_text("An oil painting of cows in a field"))
    walk_noise_x, walk_noise_y = (keras.random.normal((8, 8, 4), dtype="float32", seed=seed) for seed in (1, 2))
    angles = ops.linspace(0, 2, 4) * math.pi
    noise = ops.stack([ops.cos(a) * walk_noise_x + ops.sin(a) * walk_noise_y for a in angles])
    images = model.generate_image(encoding, batch_size=4, num_steps=2, diffusion_noise=noise, verbose=0)
    assert images.shape == (4, 64, 64, 3)
    assert np.abs(images[0].astype(int) - images[3]).max() <= 1  # all the way round


def test_eight_threads_draw_what_one_draws(model):
    def draw(seed):
        return model.text_to_image("a cat", seed=seed, num_steps=2, verbose=0)

    seeds = list(range(16))
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(draw, seeds))
    for seed in seeds[::5]:
        np.testing.assert_array_equal(together[seed], draw(seed))


def test_many_first_calls_at_once_compile_once():
    model = StableDiffusion(preset=ARCHITECTURE)
    with ThreadPoolExecutor(16) as pool:
        images = list(pool.map(lambda _: model.text_to_image("a cat", seed=1, num_steps=1, verbose=0), range(16)))
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])


def test_a_hundred_calls_leave_nothing_behind(model):
    def draw(seeds):
        for seed in seeds:
            model.text_to_image(f"a cat {seed}", seed=seed, num_steps=1, verbose=0)
        gc.collect()
        return model._engine.compilations, memory()

    (compilations, before), (compilations_after, after) = draw(range(20)), draw(range(60))
    assert compilations_after == compilations
    assert after - before < 10e6  # sixty copies of the decoder are 12 MB


def memory():
    """Bytes of memory in use, 0 where there is no /proc."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def test_the_names_of_keras_cv_are_here():
    names = {"StableDiffusion", "TextEncoder", "DiffusionModel", "Decoder", "ImageEncoder", "SimpleTokenizer"}
    assert names <= set(keras_diffusion.__all__)
