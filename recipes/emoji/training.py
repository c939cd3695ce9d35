"""What both training stages share: a resumable loop whose batches depend on the step alone."""

import os
import time
from pathlib import Path

import numpy as np

SAVE_EVERY = 600  # seconds


def save(path, trainer, step):
    """Writes every variable of the trainer and its optimizer, atomically."""
    arrays = [np.asarray(v) for v in trainer.variables + trainer.optimizer.variables]
    temporary = Path(path).with_suffix(".part")
    with open(temporary, "wb") as file:
        np.savez(file, *arrays, step=step)
    os.replace(temporary, path)


def load(path, trainer):
    """Reads what `save` wrote; returns the step it was written at, 0 where there is no file."""
    if not Path(path).exists():
        return 0
    with np.load(path) as state:
        for i, variable in enumerate(trainer.variables + trainer.optimizer.variables):
            variable.assign(state[f"arr_{i}"])
        return int(state["step"])


def train(trainer, batch, steps, path):
    """Runs `steps` steps of `trainer` on `batch(step)`, resuming from and saving to `path`."""
    trainer.optimizer.build(trainer.trainable_variables)
    first = load(path, trainer)
    saved = time.monotonic()
    losses = []
    for step in range(first, steps):
        losses.append(float(trainer.train_on_batch(*batch(step))))
        if step % 50 == 49:
            print(
                f"{time.strftime('%H:%M:%S')} step {step + 1}/{steps} loss {np.mean(losses[-50:]):.4f}",
                flush=True,
            )
        if time.monotonic() - saved > SAVE_EVERY:
            save(path, trainer, step + 1)
            saved = time.monotonic()
    save(path, trainer, steps)
