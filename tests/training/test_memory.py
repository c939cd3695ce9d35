"""The memory of a training, estimated before it begins."""

import keras
import numpy as np
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.training.trainer import Trainer

from ..golden import lora


@pytest.mark.backend
def test_the_estimate():
    """It counts weights exactly; activations grow with the batch and the size."""
    model = StableDiffusion(16, 16, preset=lora.SMALL)
    whole = Trainer(model, "diffusion_model")
    whole.compile()
    parameters = model.diffusion_model.count_params()
    small = whole.memory()
    assert (small.weights, small.gradients) == (4 * parameters, 4 * parameters)
    assert 8 * parameters <= small.optimizer < 8 * parameters + 100
    assert whole.memory(batch_size=3).activations == 3 * small.activations
    assert small.total == sum(small)
    assert str(small).startswith("about 0.00 GB: weights 0.00")
    adapter = Trainer(model, "lora")
    adapter.compile()
    large = adapter.memory(size=(32, 32))
    assert large.activations > 2 * small.activations
    assert large.gradients < small.gradients / 10


@pytest.mark.backend
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch alone tells what it keeps")
def test_activations_are_about_those_that_torch_keeps():
    """The figures of `KEPT` were calibrated by this measure; a wrong one shows here."""
    torch = pytest.importorskip("torch")
    model = StableDiffusion(64, 64, preset=lora.SMALL)
    trainer = Trainer(model, "diffusion_model")
    trainer.compile()
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    shapes = {"latent": (1, 16, 16, 4), "timestep_embedding": (1, 16), "context": (1, 77, 16)}
    inputs = {name: torch.tensor(np.ones(shape, "float32")) for name, shape in shapes.items()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer(inputs).square().mean()
    weights = {variable.value.untyped_storage().data_ptr() for variable in trainer.variables}
    measured = sum(size for place, size in kept.items() if place not in weights)
    assert trainer.memory().activations == pytest.approx(measured, rel=0.5)
