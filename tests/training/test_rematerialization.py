"""Blocks that are computed again in the backward pass: the same gradients, and less in memory."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion import StableDiffusion
from keras_diffusion.engines.choice import compiles_always
from keras_diffusion.training.trainer import Trainer

from ..golden import lora, networks

pytestmark = pytest.mark.backend

INPUTS = {"latent": (2, 8, 8, 4), "timestep_embedding": (2, 16), "context": (2, 7, 16)}


def examples(extra=()):
    generator = np.random.default_rng(0)
    x = {name: generator.standard_normal(shape).astype("float32") for name, shape in {**INPUTS, **dict(extra)}.items()}
    return x, generator.standard_normal((2, 8, 8, 4)).astype("float32"), np.ones(2, "float32")


def trained(model, train, batch, **options):
    """What one step of plain gradient descent makes of what is trained, and of the model."""
    trainer = Trainer(model, train, **options)
    generator = np.random.default_rng(1)
    if train != "diffusion_model":
        for variable in trainer.trainable_variables:
            variable.assign(generator.standard_normal(variable.shape) / 10)
    before = [np.array(ops.convert_to_numpy(v)) for v in trainer.trainable_variables]
    trainer.compile(keras.optimizers.SGD(1.0), run_eagerly=not compiles_always())
    loss = float(trainer.train_on_batch(*batch))
    after = [np.array(ops.convert_to_numpy(v)) for v in trainer.trainable_variables]
    for variable, value in zip(trainer.trainable_variables, before, strict=True):
        variable.assign(value)
    return loss, np.concatenate([(x - y).ravel() for x, y in zip(before, after, strict=True)])


@pytest.mark.parametrize(("train", "dtype"), [("lora", "float32_from_float16"), ("controlnet", "float32")])
def test_gradients_are_the_same(train, dtype):
    """Of a LoRA in another precision than that of the weights, and of weights themselves."""
    if compiles_always():
        pytest.skip("to compile two steps takes a minute")
    model = StableDiffusion(32, 32, preset=lora.SMALL, dtype=dtype)
    networks.fill(model.diffusion_model, "diffusion_model", model.architecture)
    batch = examples({"image": (2, 32, 32, 3)} if train == "controlnet" else ())
    options = {"rank": 2} if train == "lora" else {}
    (loss, kept), (again, computed) = (
        trained(model, train, batch, rematerialize=choice, **options) for choice in (False, True)
    )
    assert loss == pytest.approx(again, rel=1e-6)
    assert np.linalg.norm(kept) > 0
    assert np.linalg.norm(kept - computed) <= 1e-6 * np.linalg.norm(kept)


def test_half_precision_is_not_copied_whole():
    """Weights that are stored in half precision are rematerialised unless told otherwise, and the estimate tells."""
    model = StableDiffusion(32, 32, preset=lora.SMALL, dtype="float32_from_float16")
    trainers = [Trainer(model, "lora", rank=2), Trainer(model, "lora", rank=2, rematerialize=False)]
    for trainer in trainers:
        trainer.compile()
    less, more = (trainer.memory() for trainer in trainers)
    parameters = model.diffusion_model.count_params()
    assert more.activations - less.activations == less.rematerialized > 4 * 0.6 * parameters
    assert less.total == less.weights + less.gradients + less.optimizer + less.activations
    assert more.rematerialized == 0
    assert "(without rematerialized" in str(less)
    if keras.backend.backend() == "jax":
        jax = pytest.importorskip("jax")
        programs = [str(jax.make_jaxpr(trainer)(examples()[0])) for trainer in trainers]
        assert ["remat" in program for program in programs] == [True, False]
    if keras.backend.backend() == "torch":
        assert kept(trainers[0]) < 0.4 * kept(trainers[1])


def kept(trainer):
    """Bytes that torch keeps for the backward pass, but for the weights."""
    torch = pytest.importorskip("torch")
    sizes = {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    inputs = {name: torch.tensor(array) for name, array in examples()[0].items()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer(inputs).square().mean()
    weights = {variable.value.untyped_storage().data_ptr() for variable in trainer.variables}
    return sum(size for place, (size, _) in sizes.items() if place not in weights)
