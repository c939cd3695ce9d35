"""Training by compile and fit: what moves, what is kept, and how it goes on after a stop."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion import NumericalError, StableDiffusion
from keras_diffusion.engines.choice import compiles_always
from keras_diffusion.training.optimizers import default_optimizer
from keras_diffusion.training.trainer import Trainer

from ..golden import lora, networks

pytestmark = pytest.mark.backend


LOSSES = [0.552737, 0.868675, 0.628281, 0.64263, 0.747622, 0.646042]


class Losses(keras.callbacks.Callback, list):
    """Remembers the mean of the losses of an epoch after every step."""

    def on_train_batch_end(self, batch, logs=None):
        self.append(logs["loss"])


def values(variables):
    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def equal(a, b):
    return [np.array_equal(x, y) for x, y in zip(a, b, strict=True)]


@pytest.fixture(scope="module")
def trainer(model):
    trainer = Trainer(model, "lora", rank=2, layers=["attn2.to_q", "attn2.to_out.0"])
    trainer.compile(keras.optimizers.AdamW(1e-2))
    return trainer


def test_fit_moves_the_lora_alone_and_goes_on_after_a_stop(model, trainer, folder, tmp_path):
    examples = trainer.examples(folder, "a cat", steps=3)
    trainer.save_weights(tmp_path / "start.weights.h5")
    frozen, start = values(trainer._frozen), values(trainer.trainable_variables)
    history = trainer.fit(examples, epochs=2, verbose=0).history
    learned = values(trainer.trainable_variables)
    assert len(history["loss"]) == 2
    assert not any(equal(learned, start))
    assert all(equal(values(trainer._frozen), frozen))

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

    trainer.load_weights(tmp_path / "start.weights.h5")
    assert all(equal(values(trainer.trainable_variables), start))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(examples, verbose=0, callbacks=[Stop()])
    trainer.save_weights(tmp_path / "stopped.weights.h5")
    assert not any(equal(values(trainer.trainable_variables), start))
    trainer.load_weights(tmp_path / "start.weights.h5")
    trainer.load_weights(tmp_path / "stopped.weights.h5")
    assert trainer.step == 2
    trainer.fit(trainer.examples(folder, "a cat", steps=4, first_step=trainer.step), verbose=0)
    assert all(equal(values(trainer.trainable_variables), learned))
    assert trainer.learner.variables == [trainer.learner.values]  # files hold what these are, and the optimiser


def test_losses_are_the_same_on_every_backend(folder):
    """Everything that is drawn, both networks, and six steps; the losses are means, as Keras reports them."""
    model = StableDiffusion(16, 16, preset=lora.SMALL)
    for name in ("text_encoder", "diffusion_model", "image_encoder"):
        networks.fill(getattr(model, name), name, model.architecture)
    trainer = Trainer(model, "lora", rank=2, text_encoder=True, seed=3)
    trainer.compile(default_optimizer(1e-2))
    options = {"flip": True, "caption_dropout": 0.2, "snr_gamma": 5.0, "noise_offset": 0.1, "input_perturbation": 0.1}
    means = Losses()
    examples = trainer.examples(folder, ["a toy", "toys"], steps=3, batch_size=2, seed=3, **options)
    trainer.fit(examples, epochs=2, verbose=0, callbacks=[means])
    np.testing.assert_allclose(means, LOSSES, rtol=1e-4)


def test_a_loss_that_is_not_finite_changes_nothing(trainer, folder):
    examples = trainer.examples(folder, "a cat", steps=2)
    examples[0]
    examples.texts[:] = np.nan
    before, state = values(trainer.trainable_variables), trainer.step
    with pytest.raises(NumericalError, match="The loss of step 1 is not finite"):
        trainer.fit(examples, verbose=0)
    assert all(equal(values(trainer.trainable_variables), before))
    assert trainer.step == state


def test_drawing_between_steps_disturbs_nothing(model, trainer, folder, tmp_path):
    """Neither what is learned, nor the losses of the training and of other examples, nor the model."""
    options = {"verbose": 0, "validation_data": trainer.examples(folder, "a cat", seed=5)}
    examples = trainer.examples(folder, "a cat", steps=2)
    frozen = values(trainer._frozen)

    class Draw(keras.callbacks.Callback):
        images = ()

        def on_train_batch_end(self, batch, logs=None):
            self.model.update_model()
            self.images = [*self.images, model.text_to_image("a cat", num_steps=1, seed=0, verbose=0)]

    trainer.save_weights(tmp_path / "start.weights.h5")
    plain, learned = trainer.fit(examples, **options).history, values(trainer.trainable_variables)
    trainer.load_weights(tmp_path / "start.weights.h5")
    draw = Draw()
    assert trainer.fit(examples, callbacks=draw, **options).history == plain
    assert all(equal(values(trainer.trainable_variables), learned))
    assert len(draw.images) == 2
    [name] = model.loras
    assert trainer.evaluate(options["validation_data"], verbose=0) == plain["val_loss"][0]
    assert list(model.loras) == [name]
    trainer.fit(trainer.examples(folder, "a cat", steps=1), verbose=0)
    assert not model.loras
    assert all(equal(values(trainer._frozen), frozen))


def test_what_to_train(model):
    with pytest.raises(ValueError, match="`train` must be one of lora, diffusion_model"):
        Trainer(model, "everything")
    whole = Trainer(model, "diffusion_model")
    assert {id(v) for v in whole.trainable_variables} == {id(v) for v in model.diffusion_model.variables}
    Trainer(model, "lora")
    assert not model.diffusion_model.trainable_variables
    half = StableDiffusion(preset=lora.SMALL, dtype="float32_from_float16")
    with pytest.raises(ValueError, match="half precision cannot be trained"):
        Trainer(half, "diffusion_model")


def test_float16_scales_the_loss():
    """The gradients are those of float32; a step whose gradients overflow is skipped, and the scale halved."""
    gradients = []
    for dtype in ("float32", "mixed_float16"):
        model = StableDiffusion(preset=lora.SMALL, dtype=dtype)
        networks.fill(model.diffusion_model, "diffusion_model", lora.SMALL)
        trainer = Trainer(model, "lora", rank=2, layers=["attn2.to_q", "attn2.to_out.0"])
        trainer.learner.values.assign(np.random.default_rng(0).standard_normal(trainer.learner.values.shape) / 10)
        start = values(trainer.trainable_variables)
        trainer.compile(keras.optimizers.SGD(1.0), run_eagerly=not compiles_always())
        latents = np.random.default_rng(1).standard_normal((2, 1, 8, 8, 4)).astype("float32")
        x = {"latent": latents[0], "timestep_embedding": np.zeros((1, 16), "float32"), "context": np.ones((1, 7, 16))}
        batch = x, latents[1], np.ones(1, "float32")
        trainer.train_on_batch(*batch)
        gradients.append(start[0] - values(trainer.trainable_variables)[0])
    scale = trainer.optimizer.dynamic_scale
    assert float(ops.convert_to_numpy(scale)) == trainer.optimizer.initial_scale == 2**15
    assert np.abs(gradients[0] - gradients[1]).max() < 0.02 * np.abs(gradients[0]).max()

    scale.assign(2.0**40)
    before = values(trainer.trainable_variables)
    trainer.train_on_batch(*batch)
    assert all(equal(values(trainer.trainable_variables), before))
    assert float(ops.convert_to_numpy(scale)) == 2.0**39
    assert trainer.step == 1
