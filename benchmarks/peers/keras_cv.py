"""KerasCV 0.9 with random weights: its constructors are kept from downloading theirs."""

import sys
from types import ModuleType

import numpy as np

from peers import GUIDANCE, LENGTH, PROMPT, arrays

SIGNAL, SIGNAL_BEFORE = 0.5, 0.6  # alphas_cumprod of some step


def models(dtype):
    """keras_cv.models, without TensorFlow's data sets that KerasCV imports beside them."""
    sys.modules.setdefault("tensorflow_datasets", ModuleType("tensorflow_datasets"))
    import keras
    from keras_cv import models

    keras.mixed_precision.set_global_policy({"float32": "float32", "float16": "mixed_float16"}[dtype])
    return models


def empty(kind, *shape, dtype, jit_compile):
    """A network, compiled as KerasCV does it; a network that nobody compiles is one that Keras would."""
    network = getattr(models(dtype).stable_diffusion, kind)(*shape, download_weights=False)
    network.compile(jit_compile=jit_compile)
    return network


def networks(size, **options):
    return {
        "_text_encoder": empty("TextEncoder", LENGTH, **options),
        "_diffusion_model": empty("DiffusionModel", size, size, LENGTH, **options),
        "_decoder": empty("Decoder", size, size, **options),
    }


def step(size, batch, dtype, jit_compile, **_):
    """The body of the loop in `generate_image`: one call for each half of the context."""
    network = empty("DiffusionModel", size, size, LENGTH, dtype=dtype, jit_compile=jit_compile)
    latents, context = arrays(size, batch)
    inputs = {"timestep_embedding": np.ones((batch, 320), "float32")}

    def step():
        nonlocal latents
        halves = [{**inputs, "latent": latents, "context": half} for half in np.split(context, 2)]
        negative, positive = map(network.predict_on_batch, halves)
        noise = negative + GUIDANCE * (positive - negative)
        denoised = (latents - (1 - SIGNAL) ** 0.5 * noise) / SIGNAL**0.5
        latents = SIGNAL_BEFORE**0.5 * denoised + (1 - SIGNAL_BEFORE) ** 0.5 * noise

    return step


def decode(size, batch, dtype, jit_compile, **_):
    network = empty("Decoder", size, size, dtype=dtype, jit_compile=jit_compile)
    latents, _ = arrays(size, batch)
    return lambda: np.clip((network.predict_on_batch(latents) + 1) / 2 * 255, 0, 255).astype("uint8")


def encode(batch, dtype, jit_compile, **_):
    network = empty("TextEncoder", LENGTH, dtype=dtype, jit_compile=jit_compile)
    tokens, positions = np.zeros((batch, LENGTH), "int32"), np.arange(LENGTH, dtype="int32")[None]
    return lambda: network.predict_on_batch({"tokens": tokens, "positions": positions.repeat(batch, 0)})


def image(size, batch, steps, dtype, jit_compile, **_):
    from keras_diffusion import SimpleTokenizer

    model = models(dtype).StableDiffusion(size, size, jit_compile)
    vars(model).update(_tokenizer=SimpleTokenizer(), **networks(size, dtype=dtype, jit_compile=jit_compile))
    return lambda: model.text_to_image(PROMPT, batch_size=batch, num_steps=steps, seed=0)


def build(size, dtype, jit_compile, **_):
    models(dtype)
    return lambda: networks(size, dtype=dtype, jit_compile=jit_compile)
