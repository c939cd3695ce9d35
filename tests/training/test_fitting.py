"""What Keras' users try with a trainer, and it cannot do: refused by name, before the first step."""

import keras
import numpy as np
import pytest

from keras_diffusion.training.trainer import Trainer


@pytest.fixture(scope="module")
def trainer(model):
    trainer = Trainer(model, "lora", rank=2)
    trainer.compile()
    return trainer


@pytest.fixture(scope="module")
def examples(trainer, folder):
    return trainer.examples(folder, "a cat")


@pytest.mark.parametrize("x", [None, "folder", np.zeros((1, 16, 16, 3)), [1]])
def test_what_is_no_examples(trainer, x):
    with pytest.raises(TypeError, match=rf"`trainer.fit\(trainer.examples.* of type {type(x).__name__}"):
        trainer.fit(x)


def test_options_that_would_be_ignored(trainer, examples):
    with pytest.raises(ValueError, match="Give `batch_size` to `examples`"):
        trainer.fit(examples, batch_size=2)
    with pytest.raises(ValueError, match=r"The loss belongs to what is trained.* Received: loss"):
        trainer.compile(loss="mse")


def test_examples_of_something_else(model, trainer, examples):
    with pytest.raises(ValueError, match="without latent, timestep_embedding, context"):
        trainer.predict(np.zeros((1, 16, 16, 3)), verbose=0)
    with pytest.raises(ValueError, match=r"batches of its own `examples`.* without image"):
        Trainer(model, "controlnet")(examples[0][0])
    assert set(Trainer(model, "lcm_lora", rank=2).learner.input_names) > {*examples[0][0]}


def test_saving_as_a_whole(trainer, examples, tmp_path):
    callbacks = [keras.callbacks.ModelCheckpoint(tmp_path / "trainer.keras")]
    with pytest.raises(ValueError, match="save_weights_only=True"):
        trainer.fit(examples, callbacks=callbacks)
    for save in (trainer.save, trainer.export):
        with pytest.raises(NotImplementedError, match="`save_weights` keeps a training"):
            save(tmp_path / "trainer.keras")
    assert not list(tmp_path.iterdir())
