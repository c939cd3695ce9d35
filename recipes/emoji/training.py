"""What both training stages share: the optimizer, a resumable loop whose batches depend on the step, and files."""

import os
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops

SAVE_EVERY = 600  # seconds


class Muon(keras.optimizers.Muon):
    """Muon (Jordan et al. 2024) for convolutions too, each as a matrix of inputs by outputs; AdamW for the rest."""

    def _should_use_adamw(self, variable):
        return len(variable.shape) not in (2, 4) or "embedding" in variable.path

    def _muon_update_step(self, gradient, variable, lr, m):
        self.assign(m, self.momentum * m + gradient)
        update = ops.reshape(gradient + self.momentum * m, (-1, variable.shape[-1]))
        update = self.zeropower_via_newtonschulz5(ops.cast(update, "bfloat16"), self.ns_steps)
        update = self.lr_adjust(lr * ops.cast(update, variable.dtype))
        self.assign_sub(variable, ops.reshape(update, variable.shape))


def write(path, **arrays):
    """Writes an .npz file atomically."""
    temporary = Path(f"{path}.part")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def state(trainer):
    """Every variable of a trainer and its optimizer, by number."""
    return {f"variable_{i}": v for i, v in enumerate(trainer.variables + trainer.optimizer.variables)}


def save(path, trainer, step):
    """Writes the state of the training after `step` steps."""
    write(path, step=step, **{name: np.asarray(variable) for name, variable in state(trainer).items()})


def load(path, trainer):
    """Reads what `save` wrote; returns its step, 0 where there is no file yet."""
    trainer.optimizer.build(trainer.trainable_variables)
    if not Path(path).exists():
        return 0
    with np.load(path) as arrays:
        for name, variable in state(trainer).items():
            variable.assign(arrays[name])
        return int(arrays["step"])


def train(trainer, batch, steps, path):
    """Trains on `batch(step)` until `steps` steps are done, resuming from and saving to `path`."""
    losses, saved = [], time.monotonic()
    for step in range(load(path, trainer), steps):
        losses.append(float(trainer.train_on_batch(*batch(step), return_dict=True)["loss"]))
        trainer.reset_metrics()
        if step % 50 == 49:
            print(f"{time.strftime('%H:%M:%S')} step {step + 1}/{steps} loss {np.mean(losses[-50:]):.4f}", flush=True)
        if time.monotonic() - saved > SAVE_EVERY:
            save(path, trainer, step + 1)
            saved = time.monotonic()
    save(path, trainer, steps)
