"""Training in one call, of every kind: from a folder to a model that draws what it learned."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion import NumericalError, SimpleTokenizer
from keras_diffusion.engines.choice import compiles_always
from keras_diffusion.training.controlnet import copied
from keras_diffusion.training.dataset import Examples
from keras_diffusion.training.trainer import Trainer

pytestmark = pytest.mark.backend


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Has every step run as it stands where that is possible: to trace one takes longer than two steps."""
    compile = Trainer.compile
    monkeypatch.setattr(
        Trainer, "compile", lambda self, *given: compile(self, *given, run_eagerly=not compiles_always())
    )


def values(variables):
    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def test_textual_inversion(model, folder, tmp_path):
    model = copy.copy(model)
    model.tokenizer = SimpleTokenizer()
    options = {"steps": 2, "learning_rate": 1e-2, "verbose": 0}
    trainer = model.train_textual_inversion(folder, "<toy>", "toy", vectors=2, **options)
    assert trainer.step == 2
    assert len(trainer.trainable_variables) == 1
    toy, word = model.encode_text(["toy toy", "<toy>"])
    assert np.abs(toy - word).max() > 1e-3
    with pytest.raises(ValueError, match="is token"):
        model.train_textual_inversion(folder, "<toy>", "toy")
    with pytest.raises(ValueError, match="`learning_rate` must be a number from"):
        model.train_lora(folder, "a toy", learning_rate=1)
    with pytest.raises(ValueError, match="Only train='lora'"):
        trainer.save_lora(tmp_path / "toy.safetensors")


def test_controlnet(model, folder, tmp_path):
    """It begins as a copy that adds nothing, and learns to add something."""
    start = copied(model.diffusion_model, seed=3)
    inputs = [np.ones((1, *x.shape[1:]), "float32") for x in (np.empty((1, 4, 4, 4)), np.empty((1, 16)))]
    inputs += [np.ones((1, 77, 16), "float32"), np.ones((1, 16, 16, 3), "float32")]
    assert not any(ops.convert_to_numpy(residual).any() for residual in start(inputs))
    trainer = model.train_controlnet(folder, folder, "a toy", start, steps=1, batch_size=1, verbose=0)
    assert trainer.controlnet is start
    assert all(ops.convert_to_numpy(residual).any() for residual in start(inputs))
    assert not model.diffusion_model.trainable_variables

    trainer.save_controlnet(tmp_path / "trained")
    loaded = model.load_controlnet(tmp_path / "trained")
    for ours, theirs in zip(start.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))


def test_dreambooth(model, folder, tmp_path):
    """The model draws the class images that are missing; the weights end as their averages."""
    model, calls = copy.copy(model), []
    before = values(model.diffusion_model.variables)

    def draw(prompt, batch_size, seed):
        calls.append((prompt, batch_size, seed))
        return np.random.default_rng(seed).integers(0, 256, (batch_size, 16, 16, 3), dtype="uint8")

    model.text_to_image = draw
    options = {"class_folder": tmp_path / "class", "class_images": 5, "ema": 0.9, "seed": 7, "verbose": 0}
    trainer = model.train_diffusion_model(folder, "a sks toy", "a toy", steps=2, **options)
    assert calls == [("a toy", 4, 7), ("a toy", 1, 11)]
    assert len(list((tmp_path / "class").glob("*.png"))) == 5
    assert trainer.step == 2
    averages = trainer.optimizer.inner_optimizer._model_variables_moving_average
    for value, average, start in zip(values(model.diffusion_model.variables), values(averages), before, strict=True):
        np.testing.assert_array_equal(value, average)
        assert not np.array_equal(value, start)
    for variable, start in zip(model.diffusion_model.variables, before, strict=True):
        variable.assign(start)
    with pytest.raises(TypeError, match="`class_caption` must be a str"):
        model.train_lora(folder, "a sks toy", class_images=5)


def test_a_loss_that_is_not_finite_leaves_what_was_learned(model, folder, monkeypatch):
    draw = Examples.__getitem__

    def poisoned(self, index):
        x, target, weights = draw(self, index)
        return x, target * (np.nan if index else 1), weights

    monkeypatch.setattr(Examples, "__getitem__", poisoned)
    with pytest.raises(NumericalError, match="The loss of step 2 is not finite") as caught:
        model.train_lora(folder, "a toy", steps=3, verbose=0)
    trainer = caught.value.trainer
    assert trainer.step == 1
    assert all(half.up.any() for half in trainer.learner.stored().values())
    assert not model.loras


def test_ctrl_c_keeps_what_was_learned(model, folder):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    trainer = model.train_lora(folder, "a toy", steps=3, verbose=0, callbacks=[Stop()])
    assert trainer.step == 1
    [name] = model.loras
    model.unload_lora(name)


def test_what_a_controlnet_needs(model, folder, tmp_path):
    (tmp_path / "0.png").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(ValueError, match=r"without those of 1\.png"):
        model.train_controlnet(folder, tmp_path, "a toy")
    with pytest.raises(ValueError, match="nothing else does"):
        model.train_lora(folder, "a toy", condition_folder=folder)
    with pytest.raises(TypeError, match="`controlnet` must be a ControlNet"):
        model.train_controlnet(folder, folder, "a toy", model.diffusion_model)
