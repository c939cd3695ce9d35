"""Draws on virtual devices of JAX and prints as JSON what differs; a process, as JAX counts devices when it starts."""

import json

import jax
import keras
import numpy as np

from keras_diffusion import StableDiffusion
from tests.small import SMALL

jit, operations = jax.jit, []


def counting(function, **options):
    """Compiles as `jax.jit` does, and notes how many operations each device has to do."""

    def call(*arguments):
        compiled = jit(function, **options).lower(*arguments).compile()
        operations.append(compiled.cost_analysis()["flops"])
        return compiled(*arguments)

    return call


def model_on(count):
    """A model with the same random weights every time, on some devices."""
    devices = keras.distribution.list_devices()[:count]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices) if count > 1 else None)
    keras.utils.set_random_seed(0)
    model, generator = StableDiffusion(preset=SMALL), np.random.default_rng(0)
    for variable in model.diffusion_model.variables:
        variable.assign(generator.normal(0, 0.1, variable.shape))
    return model


def draw(model, batch_size):
    """Latents, and the operations of one device for the step that takes most."""
    operations.clear()
    call = {"batch_size": batch_size, "unconditional_guidance_scale": 5.0, "output": "latents", "verbose": 0}
    return model.text_to_image("a toy", num_steps=1, seed=3, **call), max(operations)


jax.jit = counting
whole, work = draw(model_on(1), 8)
found, model = {}, model_on(8)
for batch in (1, 3, 8):
    latents, share = draw(model, batch)
    found[batch] = [float(np.abs(latents - whole[:batch]).max()), share / (work * batch / 8)]
print(json.dumps(found))
