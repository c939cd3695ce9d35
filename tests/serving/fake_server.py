"""Serves models that draw nothing, in a process that may be killed: python tests/serving/fake_server.py FOLDER."""

import sys

from conftest import FakeModels  # beside this file

from keras_diffusion.serving.adapters import Adapters
from keras_diffusion.serving.calls import Limits
from keras_diffusion.serving.security import Rules
from keras_diffusion.serving.server import bind, serve
from keras_diffusion.serving.store import Store

PAUSE = 0.01  # seconds of a step

if __name__ == "__main__":
    listener = bind("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    models = FakeModels()
    models.pause = PAUSE
    serve(listener, Store(sys.argv[1], 1000), models, Adapters(), Limits(), Rules(), "emoji")
