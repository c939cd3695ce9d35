"""Draws the jobs of the store, one after another, in a thread of its own that alone calls the models."""

import logging
import os
import sqlite3
import threading
import time
import traceback
from typing import NamedTuple

import numpy as np

from keras_diffusion.errors import FlaggedImagesError, GenerationCancelled, NumericalError
from keras_diffusion.images import job_settings
from keras_diffusion.serving.store import CANCELLED, DONE, FAILED

PAUSE = 5  # seconds until what failed is tried again
PATIENCE = 20  # seconds that a step may take when the server stops; the process ends without it then
EXPLAINED = (ValueError, TypeError, NumericalError, FlaggedImagesError, OSError, MemoryError)  # say what is wrong

logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """Holds the progress of the job that is running.

    Args:
        id: Its id.
        step: How many steps are done.
        num_steps: Of how many.
        started: When the first step was done, in seconds of `time.monotonic`: it is the one that may compile.
        latents: What it has come to, or None.
        preview: Rough images of that, uint8 (b, h, w, 3), or None.
    """

    id: str
    step: int
    num_steps: int
    started: float
    latents: np.ndarray | None
    preview: np.ndarray | None

    @property
    def seconds_left(self):
        """Estimates the seconds that the other steps take, from those that are done; None before the second."""
        if self.step < 2:
            return None
        return (time.monotonic() - self.started) / (self.step - 1) * (self.num_steps - self.step)


class Worker(threading.Thread):
    """The thread.

    Args:
        store: The `Store`.
        models: The `Models`.
        secret: Names of folders that clients do not get to see.

    Attributes:
        descriptions: The `Description` of each model by its name, once `ready` is set.
        ready: Set when the models are known.
        failure: Why they are not known, or None.
        progress: The `Progress` of the job that is running, or None.
        images: How many images were drawn.
        seconds: How long it took.
    """

    def __init__(self, store, models, secret=()):
        super().__init__(name="worker", daemon=True)
        self.store, self.models, self._secret = store, models, [str(folder) for folder in secret if folder]
        self.descriptions, self.ready, self.failure, self.progress = {}, threading.Event(), None, None
        self.images, self.seconds = 0, 0.0
        self._wake, self._stopping, self._cancelled, self._unload = threading.Event(), False, {}, False

    def run(self):
        try:
            self.descriptions = self.models.describe()
        except Exception as error:
            self.failure = self._message(error)
            logger.error("The models cannot be read: %s", error)
        self.ready.set()
        while not (self._stopping or self.failure):
            try:
                self._next()
            except sqlite3.Error as error:  # such as a full disk
                logger.error("The jobs cannot be read or written: %s", error)
                self._wake.wait(PAUSE)

    def _next(self):
        """Draws the next job, or waits for one."""
        self._wake.clear()
        if self._unload:
            self.models.unload()
            self._unload = False
        if job := self.store.take():
            self._work(job)
        else:
            self._wake.wait()

    def wake(self):
        """Has the worker look into the store."""
        self._wake.set()

    def cancel(self, id, keep=False):
        """Cancels a job: one that waits at once, one that is running after its step.

        Args:
            id: Its id.
            keep: Whether a job that is running keeps the images that it has come to.
        """
        self._cancelled[id] = keep
        self.store.cancel_queued(id)
        if not (job := self.store.get(id)) or job.ended:
            self._cancelled.pop(id, None)

    def unload(self):
        """Frees the memory of the model, after the job that is running."""
        self._unload = True
        self.wake()

    def stop(self):
        """Ends the thread after the step that is running, if that ends soon; its job goes back into the queue."""
        self._stopping = True
        self.wake()
        self.join(PATIENCE)

    def _work(self, job):
        begun = time.monotonic()
        self.progress = Progress(job.id, 0, steps(job.arguments), begun, None, None)
        state, error, error_type, count, done = DONE, None, None, 0, 0
        try:
            count = self._draw(job)
        except GenerationCancelled:
            if job.id not in self._cancelled:
                self.store.put_back(job.id)
                return
            state = CANCELLED
            count = self._keep(job) if self._cancelled[job.id] else 0
        except Exception as failure:
            state, error = FAILED, self._message(failure)
            error_type = "invalid_request_error" if isinstance(failure, ValueError | TypeError) else "server_error"
        finally:
            done, self.progress = self.progress.step, None
            self._cancelled.pop(job.id, None)
        self.store.finish(job.id, state, error, error_type, count, done)
        seconds = time.monotonic() - begun
        self.images, self.seconds = self.images + count, self.seconds + seconds
        logger.info("job %s: %s in %.1f s, images: %d", job.id, state, seconds, count)

    def _draw(self, job):
        """Draws the images of a job and writes them; returns how many there are."""
        inputs = {}
        for name in job.inputs:
            inputs.setdefault(name.partition(".")[0], []).append(self.store.read(job.id, name))
        return self._write(job, *self.models.draw(job, inputs, self._step))

    def _keep(self, job):
        """Writes the images that a cancelled job has come to, if that can be done; returns how many there are."""
        try:
            return self._write(job, self.models.decode(self.progress.latents))
        except EXPLAINED as error:
            logger.warning("job %s: %s", job.id, self._message(error))
            return 0

    def _write(self, job, images, settings=None):
        """Writes the images of a job, with their settings if they are whole; returns how many there are."""
        for i, image in enumerate(images):
            self.store.write(job.id, f"{i}.png", job_settings.png(image, settings and settings[i]))
        return len(images)

    def _step(self, step, latents):
        """Notes how far the job is; returns False where it is to stop."""
        now = self.progress
        started = time.monotonic() if step == 1 else now.started
        preview = self.models.preview(latents)
        self.progress = now._replace(step=step, started=started, latents=latents, preview=preview)
        return not (self._stopping or now.id in self._cancelled)

    def _message(self, error):
        """Returns the words of an error without paths; of a defect, only its type."""
        if not isinstance(error, EXPLAINED):
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s in %s, line %d", type(error).__name__, place.filename, place.lineno)
            return f"The server has a defect ({type(error).__name__}); its log says where."
        message = str(error) or type(error).__name__
        for folder in self._secret:
            message = message.replace(folder + os.sep, "").replace(folder, "…")
        return message


def steps(arguments):
    """Returns how many steps a job takes: a strength leaves some out."""
    return max(1, int(arguments["num_steps"] * arguments.get("strength", 1)))
