"""What both training stages share: a resumable loop whose batches depend on the step alone, and files of variables."""

import os
import time
from pathlib import Path

import numpy as np

SAVE_EVERY = 600  # seconds


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
