"""Small models and their folders, and a process to read hostile files in."""

import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_diffusion.architectures import (
    ARCHITECTURES,
    Architecture,
    AutoencoderShape,
    DiffusionModelShape,
    Level,
    TextEncoderShape,
)
from keras_diffusion.checkpoints.layouts import diffusers_folder
from keras_diffusion.networks.classes import make


@pytest.fixture(scope="session")
def build():
    """Builds the networks of an architecture, or those named, by name; all their kernels are zero."""
    return lambda architecture, names=None, **options: {
        name: make(name, architecture=architecture, initialize=False, **options)
        for name in names or architecture.networks
    }


@pytest.fixture(scope="session")
def emptied(build):
    """Gives the networks of an architecture as `build` does, but makes them once and empties them every time."""
    built = cache(build)

    def emptied(architecture):
        networks = built(architecture)
        for network in networks.values():
            for variable in network.variables:
                variable.assign(np.full(variable.shape, float(variable.name == "gamma")))
        return networks

    return emptied


@pytest.fixture(scope="session")
def full_size(build):
    """Builds the networks of an architecture that is known by name, with shapes and no values."""

    @cache
    def full_size(name):
        with keras.StatelessScope(initialize_variables=False):
            return build(ARCHITECTURES[name])

    return full_size


@pytest.fixture(scope="session")
def values():
    """Copies the values of networks: by network, a dict from paths to arrays."""
    return lambda networks: {
        name: {variable.path: np.array(keras.ops.convert_to_numpy(variable)) for variable in network.variables}
        for name, network in networks.items()
    }


@pytest.fixture(scope="session")
def small():
    return Architecture(
        "custom",
        TextEncoderShape(width=8, layers=1, heads=2, vocabulary=50),
        DiffusionModelShape(levels=(Level(8, 2, 1), Level(16, 2, 0)), blocks=1, context=8, groups=4),
        AutoencoderShape(channels=(8, 16), blocks=1, groups=4),
        image_size=16,
    )


@pytest.fixture(scope="session")
def networks(small, build):
    """The networks of `small` with random values, not to be changed."""
    networks, random = build(small), np.random.default_rng(0)
    for network in networks.values():
        for variable in network.variables:
            variable.assign(random.normal(size=tuple(variable.shape)).astype("float32"))
    return networks


@pytest.fixture(scope="session")
def saved(networks, small, tmp_path_factory):
    """Their folder, not to be changed."""
    path = tmp_path_factory.mktemp("saved") / "small"
    diffusers_folder.save(path, small, **networks)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the folder."""
    return shutil.copytree(saved, tmp_path / "small")


@pytest.fixture(scope="session")
def sandbox():
    """Reads a file in a process of its own, with 64 MiB and 10 s: `sandbox(reader, path)` gives what it sends."""
    command, processes = [sys.executable, Path(__file__).with_name("sandbox.py")], []

    def run(reader, path):
        if not processes:
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        process = processes[0]
        process.stdin.write(json.dumps([reader, str(path)]).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            processes.remove(process)
        assert line, f"The process that read {path} ended with {process.wait()}."
        return json.loads(line)

    yield run
    for process in processes:
        process.communicate()


@pytest.fixture(scope="session")
def serving():
    """Has a server answer meanwhile: `with serving(server):`."""

    @contextmanager
    def run(server):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        server.server_close()
        thread.join()

    return run


@pytest.fixture
def refused(sandbox):
    """Gives the message about a file that is not to be read: it costs little, and nothing but the file is touched."""

    def run(reader, path, error="CorruptCheckpointError"):
        outcome = sandbox(reader, path)
        assert outcome["error"] == error, outcome
        assert {tuple(event) for event in outcome["events"]} == {("open", str(path))}
        assert outcome["cause"] not in ("RecursionError", "MemoryError")
        assert str(path) in outcome["message"]
        assert len(outcome["message"]) < 1000
        return outcome["message"]

    return run
