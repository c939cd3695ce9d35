"""Trains by the clock on a processor that others use too: the learning rate follows the share of the time."""

import math
import time

import numpy as np
import training

WARM_UP = 0.04
LAST = 0.02  # share of the highest learning rate at the end
LOG_EVERY = 60  # seconds


def train(trainer, batch, minutes, peak, path):
    """Trains on `batch(step)` for some minutes, going on from the state in `path` and saving it every ten minutes.

    Args:
        trainer: A compiled Keras model.
        batch: Function of the number of a step that returns its data.
        minutes: How long, from the end of the first step on, which compiles.
        peak: The highest learning rate.
        path: Name of the file of the state.
    """
    step, losses = training.load(path, trainer), []
    saved = logged = begin = time.monotonic()
    progress, first = 0.0, step
    while progress < 1:
        warm = min(1.0, (progress + 0.005) / WARM_UP)
        cosine = 0.5 + 0.5 * math.cos(math.pi * progress)
        trainer.optimizer.learning_rate = peak * warm * (LAST + (1 - LAST) * cosine)
        losses.append(float(trainer.train_on_batch(*batch(step), return_dict=True)["loss"]))
        trainer.reset_metrics()
        step += 1
        now = time.monotonic()
        begin = now if step == first + 1 else begin
        progress = (now - begin) / (60 * minutes) if minutes else 1.0
        if now - logged > LOG_EVERY:
            print(f"{time.strftime('%H:%M:%S')} step {step}, {progress:.0%}, loss {np.mean(losses):.4f}", flush=True)
            losses, logged = [], now
        if now - saved > training.SAVE_EVERY:
            training.save(path, trainer, step)
            saved = now
    training.save(path, trainer, step)
    print(f"{step} steps", flush=True)
