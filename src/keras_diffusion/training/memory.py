"""Estimates the memory that a training takes, before it begins."""

import math
from typing import NamedTuple

import keras

from keras_diffusion.networks.operations import operation, replace_operations

# Operation → how many arrays of the size of its result the backward pass keeps, as measured by torch's saved tensors.
KEPT = {"convolve": 1, "project": 1, "modulate": 2, "feed": 4, "attend": 2}


class Memory(NamedTuple):
    """Holds an estimate in bytes.

    Args:
        weights: All weights that a step computes with.
        gradients: The gradients of what is trained.
        optimizer: What the optimiser remembers, such as moments and averages.
        activations: What the forward pass leaves for the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self):
        return sum(self)

    def __str__(self):
        parts = (f"{name} {size / 1e9:.2f}" for name, size in self._asdict().items())
        return f"about {self.total / 1e9:.2f} GB: {', '.join(parts)}"


def estimate(trainer, batch_size, size, tokens):
    """Estimates the memory of a step; the libraries themselves, and the images in memory, come on top.

    Args:
        trainer: A `Trainer` that is compiled.
        batch_size: Number of images in a step, class images included.
        size: Their (height, width).
        tokens: Number of tokens of a caption.

    Returns:
        A `Memory`.
    """
    learner = trainer.learner
    shape, factor = learner.model.architecture.diffusion_model, learner.model.architecture.autoencoder.factor
    shapes = {
        "latent": (*(side // factor for side in size), shape.in_channels),
        "timestep_embedding": (shape.frequencies,),
        "context": (tokens, shape.context),
        "tokens": (tokens,),
        "image": (*size, 3),
    }
    inputs = {
        name: keras.KerasTensor((batch_size, *own), "int32" if name == "tokens" else "float32")
        for name, own in shapes.items()
    }
    kept = []

    def keeping(name, usual):
        def compute(*given):
            result = usual(*given)
            kept.append(KEPT[name] * _bytes(result))
            if name == "attend":
                _, query, key, _ = given
                batch, n, heads, _ = query.shape
                kept.append(4 * batch * heads * n * key.shape[1])  # the weights, in float32
            return result

        return compute

    with replace_operations(**{name: keeping(name, operation(name)) for name in KEPT}):
        learner(inputs)
    return Memory(
        sum(map(_bytes, trainer.variables)),
        sum(map(_bytes, trainer.trainable_variables)),
        sum(map(_bytes, trainer.optimizer.variables)),
        sum(kept),
    )


def _bytes(array):
    return math.prod(array.shape) * (2 if "16" in str(array.dtype) else 4)
