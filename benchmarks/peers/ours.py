"""keras-diffusion, on every backend."""

import numpy as np

from peers import GUIDANCE, LENGTH, PROMPT, arrays

DTYPES = {"float32": "float32", "float16": "mixed_float16", "stored": "float32_from_float16"}


def step(size, batch, dtype, jit_compile, **_):
    from keras_diffusion import DiffusionModel
    from keras_diffusion.engines.engine import Engine
    from keras_diffusion.engines.stages import Conditions
    from keras_diffusion.sampling.samplers import build

    latents, context = arrays(size, batch)
    conditions = Conditions(context, np.full(batch, GUIDANCE, "float32"))
    network, table = DiffusionModel(dtype=DTYPES[dtype]), build("ddim", 1000)
    steps = Engine(jit_compile).denoise(network, latents, conditions, table, None)
    return lambda: next(steps)


def decode(size, batch, jit_compile, **_):
    from keras_diffusion import Decoder
    from keras_diffusion.engines.engine import Engine

    engine, decoder, (latents, _) = Engine(jit_compile), Decoder(), arrays(size, batch)
    return lambda: engine.decode(decoder, latents)


def encode(batch, dtype, jit_compile, **_):
    from keras_diffusion import TextEncoder
    from keras_diffusion.engines.engine import Engine

    engine, encoder = Engine(jit_compile), TextEncoder(dtype=DTYPES[dtype])
    return lambda: engine.encode(encoder, np.zeros((batch, LENGTH), "int32"))


def image(size, batch, steps, dtype, preset, jit_compile, **_):
    from keras_diffusion import StableDiffusion

    model = StableDiffusion.from_preset(preset, DTYPES[dtype], size, size, jit_compile)
    return lambda: model.text_to_image(PROMPT, batch_size=batch, num_steps=steps, seed=0, verbose=0)


def cold(batch, steps, jit_compile, **_):
    from keras_diffusion import StableDiffusion

    model = StableDiffusion.from_preset("emoji", jit_compile=jit_compile)
    return lambda: model.text_to_image(PROMPT, batch_size=batch, num_steps=steps, seed=0, verbose=0)


def build(size, dtype, preset, jit_compile, **_):
    from keras_diffusion import StableDiffusion

    return lambda: StableDiffusion.from_preset(preset, DTYPES[dtype], size, size, jit_compile)
