"""What holds for every test: no network, and which tests run again on the other backends."""

import os
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest

# Before anything imports Keras or a Hugging Face package.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["KERAS_DIFFUSION_COMPILE_CACHE"] = "0"
# Processes side by side share the cores: the names under which TensorFlow, JAX, and OpenMP take the number of threads.
if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    threads = max(1, (os.cpu_count() or 1) // int(processes))
    for name in "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC", "OMP_NUM_THREADS":
        os.environ.setdefault(name, str(threads))
# On JAX most of the time goes into compiling: what one test compiled, the others of this run take, in either process.
if os.environ["KERAS_BACKEND"] == "jax" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.TemporaryDirectory(prefix="programs-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

# Modules that compute with Keras: every test of theirs carries the marker `backend`.
COMPUTING = {
    "choice",
    "compile_cache",
    "controlnet",
    "decoder",
    "deep_cache",
    "diffusion_model",
    "engine",
    "image_encoder",
    "layers",
    "openvino",
    "text_encoder",
}
# Audit events that reach for the network, and the host each one names.
NETWORK = {
    "socket.connect": lambda _socket, address: address[0] if isinstance(address, tuple) else None,
    "socket.getaddrinfo": lambda host, *_: host,
    "socket.gethostbyname": lambda host: host,
}
HERE = {None, "", "127.0.0.1", "::1", "localhost"}


def pytest_collection_modifyitems(config, items):
    for item in items:
        path = Path(item.path)
        if path.stem.removeprefix("test_") in COMPUTING and path.parent.name != "exporting":  # on TensorFlow alone
            item.add_marker(pytest.mark.backend)
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        config.hook.pytest_deselected(items=[item for item in items if not runs_elsewhere(item)])
        items[:] = filter(runs_elsewhere, items)


def runs_elsewhere(item):
    """Tells whether JAX and torch run a test: all its parameters, or those that its marker `backend` names.

    A backend computes an operation wrong, or a dtype, but hardly one size of a network and not another.
    """
    named = {name for marker in item.iter_markers("backend") for name in marker.args}
    return not named or not hasattr(item, "callspec") or not named.isdisjoint(item.callspec.id.split("-"))


def stay_offline(event, arguments):
    if event in NETWORK and (host := NETWORK[event](*arguments)) not in HERE:
        raise RuntimeError(f"Tests are offline; this one reached for {host!r}.")


sys.addaudithook(stay_offline)


@pytest.fixture(scope="session")
def bundled():
    from keras_diffusion import StableDiffusion

    return StableDiffusion.from_preset("emoji")


@pytest.fixture
def one_bundled_model(bundled, monkeypatch):
    """Has `from_preset("emoji")` give the same model every time, with what is compiled for it, and resets it."""
    from keras_diffusion import StableDiffusion
    from keras_diffusion.checkpoints.adapters.lora_fusion import Loras

    load, state = StableDiffusion.from_preset, dict(vars(bundled))
    vars(bundled).update(tokenizer=deepcopy(bundled.tokenizer), _loras=Loras())

    def from_preset(preset, **options):
        return load(preset, **options) if options or preset != "emoji" else bundled

    monkeypatch.setattr(StableDiffusion, "from_preset", from_preset)
    yield
    bundled.unload_lora()
    vars(bundled).update(state)


@pytest.fixture(autouse=True)
def forget_networks_without_values():
    """Keras would initialize them at the end of any later scope: gigabytes, if they were built for their shapes."""
    yield
    if internals := sys.modules.get("keras_diffusion.networks.keras_internals"):
        internals.replace_waiting([])
