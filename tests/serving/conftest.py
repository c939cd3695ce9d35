"""A server whose models draw nothing: an image is one colour, and a step waits where a test wants it to."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient

from keras_diffusion.errors import GenerationCancelled
from keras_diffusion.images import job_settings
from keras_diffusion.serving.adapters import Adapters
from keras_diffusion.serving.app import make_app
from keras_diffusion.serving.calls import Limits
from keras_diffusion.serving.models import Description
from keras_diffusion.serving.security import Rules
from keras_diffusion.serving.service import Service
from keras_diffusion.serving.store import Store
from keras_diffusion.serving.worker import Worker

DESCRIPTIONS = {name: Description(name, 4, 2.0, "dpmpp_2m", None, 64, 64, 8) for name in ("emoji", "other")}


class FakeModels:
    """Stands for `Models`.

    Attributes:
        go: Cleared by tests that want jobs to wait before each step.
        drawn: (job, inputs) of each call of `draw`.
        pause: Seconds that a step takes.
        error: What the next call raises, or None.
    """

    def __init__(self):
        self.go, self.drawn, self.error, self.loaded, self.names = threading.Event(), [], None, None, [*DESCRIPTIONS]
        self.go.set()
        self.pause = 0

    def describe(self):
        return DESCRIPTIONS

    def draw(self, job, inputs, on_step):
        self.drawn.append((job, inputs))
        self.loaded = job.model
        if self.error:
            error, self.error = self.error, None
            raise error
        call = job.arguments
        for step in range(call["num_steps"]):
            self.go.wait(10)
            time.sleep(self.pause)
            if on_step(step + 1, np.zeros((call["batch_size"], 8, 8, 4), "float32")) is False:
                raise GenerationCancelled
        shape = call["batch_size"], call.get("img_height", 64), call.get("img_width", 64), 3
        images = np.zeros(shape, "uint8") + np.arange(shape[0], dtype="uint8").reshape(-1, 1, 1, 1) + 7
        its = DESCRIPTIONS[job.model]
        architecture = SimpleNamespace(prediction_type="epsilon")
        model = SimpleNamespace(defaults=its, sampler=its.sampler, architecture=architecture)
        return images, job_settings.settings(job.arguments, model, shape, {"Model": job.model}, "0")

    def preview(self, latents):
        return np.zeros((*latents.shape[:3], 3), "uint8")

    def decode(self, latents):
        return np.zeros((len(latents), 64, 64, 3), "uint8")

    def unload(self):
        self.loaded = None


class Client(TestClient):
    """A client of a server under test.

    Attributes:
        service: The `Service`.
        models: The `FakeModels`.
    """

    def draw(self, wait=True, **fields):
        """Hands in a job, and returns it, at its end if `wait`."""
        answer = self.post("/v1/jobs", json={"prompt": "a cat", **fields})
        assert answer.status_code == 202, answer.text
        return self.until(answer.json()["id"], lambda job: job["finished"] or not wait)

    def until(self, id, condition):
        """Returns a job as soon as a condition holds."""
        return self.wait_for(f"/v1/jobs/{id}", condition)

    def wait_for(self, path, condition):
        """Returns what is at a path as soon as a condition holds."""
        deadline = time.monotonic() + 20
        while not condition(found := self.get(path).json()):
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        return found


@pytest.fixture(scope="module")
def module_start(tmp_path_factory):
    """`start` for a server that all tests of a module share."""
    yield from starting(tmp_path_factory.mktemp("server"))


@pytest.fixture
def start(tmp_path):
    """Gives a function of limits, rules and folders that starts a server and returns its `Client`."""
    yield from starting(tmp_path)


def starting(tmp_path):
    started = []

    def start(limits=None, rules=None, keep=100, jobs="jobs", **folders):
        store, models = Store(tmp_path / jobs, keep), FakeModels()
        worker, adapters = Worker(store, models, [tmp_path]), Adapters(**folders)
        service = Service(store, worker, adapters, limits or Limits(), "emoji")
        app = make_app(service, rules or Rules())
        client = Client(app, base_url="http://localhost:7860", raise_server_exceptions=False)
        client.service, client.models = service, models
        worker.start()
        started.append(client)
        return client

    yield start
    for client in started:
        client.models.go.set()
        client.service.worker.stop()
        client.service.store.close()


@pytest.fixture
def client(start):
    return start()
