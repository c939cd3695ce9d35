"""Gradients of a step, ours and torch's, by the names that diffusers and peft have for what is trained."""

import keras
import numpy as np
import pytest

torch = pytest.importorskip("torch")

TOLERANCE = 1e-5


class Gradients(keras.optimizers.SGD):
    """Puts every gradient where the variable was."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign(variable, gradient)


def require_equal(ours, theirs, floor=1e-3):
    """Compares the gradients of tensors by name, each alone and all together.

    Where large terms cancel, rounding counts for more: a tensor below the share `floor` of the largest counts as that.
    """
    assert ours.keys() == theirs.keys()
    errors = {name: ours[name].reshape(gradient.shape) - gradient.numpy() for name, gradient in theirs.items()}
    assert norm(errors.values()) <= TOLERANCE * norm(theirs.values())
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, error in errors.items():
        assert np.abs(error).max() <= TOLERANCE * max(float(theirs[name].abs().max()), floor * largest), name


def norm(tensors):
    return np.linalg.norm([np.linalg.norm(tensor) for tensor in tensors])


def halves(trainer):
    """What stands in the place of a LoRA's halves, by their names in peft."""
    return {
        f"{key.partition('/')[2]}.{half}.default_0.weight": value
        for key, pair in trainer.learner.stored().items()
        for half, value in zip(("lora_A", "lora_B"), pair, strict=True)
    }


def gradients(loss, module):
    parameters = dict(module.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True))
