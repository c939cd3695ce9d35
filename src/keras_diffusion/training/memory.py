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
        rematerialized: What it would leave more without rematerialisation.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    rematerialized: int = 0

    @property
    def total(self):
        return sum(self) - self.rematerialized

    def __str__(self):
        *parts, saved = (f"{name} {size / 1e9:.2f}" for name, size in self._asdict().items())
        less = f" (without {saved})" if self.rematerialized else ""
        return f"about {self.total / 1e9:.2f} GB: {', '.join(parts)}{less}"


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
        **({"added": (shape.added,)} if shape.added else {}),
    }
    inputs = {
        name: keras.KerasTensor((batch_size, *own), "int32" if name == "tokens" else "float32")
        for name, own in shapes.items()
    }
    kept, blocks = [], []  # sizes of what is kept outside of blocks; of each block, what is kept inside

    def keeping(name, usual):
        def compute(*given):
            result = usual(*given)
            kept.append(KEPT[name] * _bytes(result) + OWN.get(name, lambda *_: 0)(*given))
            return result

        return compute

    def block(layer, *inputs):
        before = len(kept)
        result = layer.compute(*inputs)
        blocks.append((_bytes(inputs[0]), sum(kept[before:])))
        del kept[before:]
        return result

    again, learner.rematerialize = learner.rematerialize, False
    try:
        with replace_operations(block=block, **{name: keeping(name, operation(name)) for name in KEPT}):
            keras.layers.Lambda(learner.prediction)(inputs)
    finally:
        learner.rematerialize = again
    everything = sum(kept) + sum(inside for _, inside in blocks)
    least = sum(kept) + sum(own for own, _ in blocks) + max((inside for _, inside in blocks), default=0)
    activations = least if again else everything
    return Memory(
        sum(map(_bytes, trainer.variables)),
        sum(map(_bytes, trainer.trainable_variables)),
        sum(map(_bytes, trainer.optimizer.variables)),
        activations,
        everything - activations,
    )


def _scores(layer, query, key, value):
    """The weights of an attention, in float32."""
    batch, n, heads, _ = query.shape
    return 4 * batch * heads * n * key.shape[1]


def _copy(layer, x):
    """The copy of a kernel in the precision that is computed in, if it is stored in another."""
    return _bytes(layer.kernel) if layer.variable_dtype != layer.compute_dtype else 0


OWN = {"attend": _scores, "convolve": _copy, "project": _copy}  # operation → what else is kept


def _bytes(array):
    return math.prod(array.shape) * (2 if "16" in str(array.dtype) else 4)
