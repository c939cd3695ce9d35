"""Hands in jobs, waits for them and shows them, for all APIs of the server."""

import asyncio
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from starlette.concurrency import run_in_threadpool

from keras_diffusion.serving import calls
from keras_diffusion.serving.adapters import Adapters
from keras_diffusion.serving.calls import Limits
from keras_diffusion.serving.problems import Problem
from keras_diffusion.serving.store import FAILED, QUEUED, RUNNING, Job, Store
from keras_diffusion.serving.worker import Worker, steps

EVERY = 0.1  # seconds between two looks at a job


@dataclass
class Service:
    """The parts of the server.

    Args:
        store: The `Store`.
        worker: The `Worker`.
        adapters: The `Adapters`.
        limits: The `Limits`.
        model: The name of the model of jobs that name none.
    """

    store: Store
    worker: Worker
    adapters: Adapters
    limits: Limits
    model: str

    async def descriptions(self):
        """Waits until the models are known, and returns the `Description` of each by its name."""
        while not self.worker.ready.is_set():
            await asyncio.sleep(EVERY)
        if self.worker.failure:
            raise Problem(f"The models cannot be read: {self.worker.failure}", 503, code="no_models")
        return self.worker.descriptions

    async def describe(self, name=None):
        """Returns the `Description` of a model, or of the one of jobs that name none."""
        known = await self.descriptions()
        name = name or self.model
        if not isinstance(name, str) or name not in known:
            message = f"There is no such model; there are {', '.join(known)}. Received: {name!r:.200}"
            raise Problem(message, 404, param="model", code="model_not_found")
        return known[name]

    async def submit(self, task, given, inputs=(), model=None):
        """Hands in a job.

        Args:
            task: The name of the method that draws.
            given: Its arguments as the client gave them, a dict.
            inputs: A list of `uploads.Input`, what it starts from.
            model: The name of the model, or None.

        Returns:
            The `Job`.

        Raises:
            Problem: If anything of it is wrong, or the queue is full.
        """
        description = await self.describe(model)
        return await run_in_threadpool(self._submit, task, given, inputs, description)

    def _submit(self, task, given, inputs, description):
        if task not in calls.TASKS:
            raise Problem(f"`task` must be one of {', '.join(calls.TASKS)}. Received: {task!r:.200}", param="task")
        names = {it.name for it in inputs}
        for name in calls.TASKS[task]:
            if name not in names:
                raise Problem(f"{task} needs `{name}`, an image in base64.", param=name)
        for name in names - {*calls.TASKS[task], calls.CONTROL}:
            raise Problem(f"{task} takes no `{name}`. Received: `{name}`", param=name)
        call = calls.check(task, given, description, self.limits, self.adapters)
        if sum(it.name == calls.CONTROL for it in inputs) != len(call.get("controls", ())):
            raise Problem("Each of `controls` needs an `image` in base64.", param="controls")
        calls.check_sizes(call, inputs, description, self.limits)
        if self.store.counts()[QUEUED] >= self.limits.max_queue:
            message = f"The queue is full, {self.limits.max_queue} jobs wait. Try again later."
            raise Problem(message, 429, code="queue_full", headers={"Retry-After": "10"})
        numbered = {f"{it.name}.{i}": it.content for i, it in enumerate(inputs)}
        job = self.store.add(task, description.name, call, numbered)
        self.worker.wake()
        return job

    def cancel(self, job):
        """Cancels a job, and returns it as it is then."""
        self.worker.cancel(job.id)
        return self.store.get(job.id) or job

    async def ended(self, id):
        """Waits for a job to end, and returns it.

        Raises:
            Problem: If it failed, or was deleted.
        """
        job, seen = None, None
        while not job or not job.ended:
            if seen != self.store.changes:
                seen = self.store.changes
                job = await run_in_threadpool(self.store.get, id)
                if not job:
                    raise Problem("The job was deleted.", 410, code="job_deleted")
            if not job.ended:
                await asyncio.sleep(EVERY / 2)
        if job.state == FAILED:
            raise Problem(job.error, 400 if job.error_type == "invalid_request_error" else 500, code="job_failed")
        return job

    def images(self, job):
        """Returns the PNGs of a job that is done, a list of bytes."""
        return [self.store.read(job.id, f"{i}.png") for i in range(job.images)]

    def progress(self, id):
        """Returns the `Progress` of a job if it is running, else None."""
        progress = self.worker.progress
        return progress if progress and progress.id == id else None

    def show(self, job: Job):
        """Returns a job as clients see it, a dict."""
        progress, total = self.progress(job.id), steps(job.arguments)
        running = job.state == RUNNING and progress
        path = f"/v1/jobs/{job.id}"
        return {
            "id": job.id,
            "task": job.task,
            "model": job.model,
            "state": job.state,
            "place": self.store.place(job),
            "step": progress.step if running else job.steps,
            "num_steps": total,
            "seconds_left": round(progress.seconds_left, 2) if running and progress.step > 1 else None,
            "error": job.error,
            "arguments": job.arguments,
            "created": job.created,
            "started": job.started,
            "finished": job.finished,
            "images": [f"{path}/images/{i}.png" for i in range(job.images)],
            "preview": f"{path}/preview.png" if running and progress.preview is not None else None,
        }


def preview_png(progress, scale=1):
    """Returns the rough images of a `Progress` side by side as a PNG, bytes, or None if there is none yet.

    Args:
        progress: A `Progress`, or None.
        scale: The factor by which to enlarge images of one pixel for each place of the latents; a tiny decoder's have
            their full size.
    """
    if not progress or progress.preview is None:
        return None
    image = Image.fromarray(np.concatenate(list(progress.preview), axis=1))
    content, scale = io.BytesIO(), scale if image.height == len(progress.latents[0]) else 1
    image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC).save(content, "PNG")
    return content.getvalue()
