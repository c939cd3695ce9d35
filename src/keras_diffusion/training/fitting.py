"""Checks what `fit` is given, and watches over it."""

import math
import os

import keras
import numpy as np

from keras_diffusion.errors import NumericalError
from keras_diffusion.training.dataset import Examples


class Watch(keras.callbacks.Callback):
    """Tells the examples which epoch it is, and stops at a loss that is not finite.

    Before each step it takes out of the model what was learned, in case that another callback has drawn with it.

    Args:
        examples: What `fit` trains on.
        learner: The `Learner`.
    """

    def __init__(self, examples, learner):
        super().__init__()
        self.examples, self.learner = examples, learner

    def on_epoch_begin(self, epoch, logs=None):
        if isinstance(self.examples, Examples):
            self.examples.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.learner.reset_model()

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise NumericalError(
                f"The loss of step {batch + 1} is not finite, so nothing was changed by it. Lower the learning rate, "
                f"or use dtype='float32' or 'mixed_bfloat16'. Received: loss={loss}"
            )


def require_weights_only(callbacks):
    """Raises an error, before the first step, if a callback would save the trainer as a whole."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.ModelCheckpoint) and not callback.save_weights_only:
            raise ValueError(
                "Save weights alone: ModelCheckpoint('name.weights.h5', save_weights_only=True). "
                f"Received: a ModelCheckpoint of whole models at {callback.filepath!r:.200}"
            )


def require_data(data, batch_size):
    """Raises an error if `data` is nothing to train on, or a batch size is given for examples that have their own."""
    if data is None or isinstance(data, str | os.PathLike | np.ndarray | list | tuple):
        raise TypeError(
            "Train on examples: `trainer.fit(trainer.examples(folder, caption))`. "
            f"Received: x of type {type(data).__name__}"
        )
    if isinstance(data, Examples) and batch_size is not None:
        raise ValueError(f"Give `batch_size` to `examples`, not to `fit`. Received: {batch_size=!r:.200}")
