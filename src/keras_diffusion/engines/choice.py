"""Which runner a network gets: it was measured, see benchmarks/README.md.

A runner takes a stage (a function of a network and of arrays), the network, and a function to call when it compiles,
and returns a function of the arrays.
"""

import logging
from importlib import import_module
from importlib.util import find_spec
from math import prod

import keras
from keras import ops

from keras_diffusion.networks import graphs
from keras_diffusion.networks.int8 import is_int8
from keras_diffusion.system import memory

RUNNERS = {  # runner → its module, a function of that name; only the one that is used is imported
    "graph": "tensorflow",
    "xla": "tensorflow",
    "jit": "jax",
    "eager": "torch",
    "inductor": "torch",
    "openvino": "openvino",
}
DEFAULT_RUNNERS = {"tensorflow": "graph", "jax": "jit", "torch": "eager"}
COMPILING_RUNNERS = {"tensorflow": "xla", "jax": "jit", "torch": "inductor"}
HOLD_WEIGHTS = ("openvino",)  # they hold the weights they were compiled with
ADDRESS_WEIGHTS = ("eager", "inductor")  # their CUDA graphs read weights from where they lay
# Runners that compile for the shapes of inputs → for how many a stage stays compiled: each takes memory.
KEPT_SHAPES = {"graph": 16, "xla": 16, "jit": 16, "inductor": 4}
# (runner, kind of device) → rows of a sampler's table that one program runs where nobody looks at each: Python takes
# longer to start a row than an H200 takes to compute it, and what is the same in all rows is then computed once.
ROWS_AT_ONCE = {("jit", "gpu"): 64}
# (backend, kind of device) → runner: the work from which it is worth its compiling; the first one that is installed.
# XLA's was measured: at 256 × 256 Stable Diffusion has won back its compiling after 13 steps. OpenVINO's are estimates;
# it is faster than XLA too, but takes three times its memory.
AUTO = {
    ("tensorflow", "cpu"): {"xla": 8e11},
    ("jax", "cpu"): {"openvino": 2e12},
    ("torch", "cpu"): {"openvino": 2e12},
}
OPENVINO_NEEDS = 22  # bytes of memory for each parameter of the diffusion model, measured for an image of 512 × 512

logger = logging.getLogger(__name__)


def count_parameters(network):
    return sum(prod(variable.shape) for variable in network.variables)


def device():
    """The kind of device that the backend computes on: "cpu", "gpu" or another."""
    return str(ops.zeros(()).device).rpartition("device:")[2].lower().partition(":")[0].replace("cuda", "gpu")


def choose_runner(jit_compile, network, shape):
    """Chooses the runner of a network, a name in `RUNNERS`, for an input of a shape (b, …) and a `jit_compile`."""
    backend = keras.backend.backend()
    if jit_compile == "openvino":
        return jit_compile
    if jit_compile == "auto":
        return choose_by_work(count_parameters(network), prod(shape[:3]), network)
    return (COMPILING_RUNNERS if jit_compile is True else DEFAULT_RUNNERS)[backend]


def choose_by_work(parameters, positions, network=None):
    """Chooses the runner for a number of parameters and of positions of latents, as `choose_runner` does."""
    backend = keras.backend.backend()
    for runner, enough in AUTO.get((backend, device()), {}).items():
        if parameters * positions >= enough and (runner != "openvino" or _openvino_serves(parameters, network)):
            return runner
    return DEFAULT_RUNNERS[backend]


def _openvino_serves(parameters, network):
    """Tells whether OpenVINO is installed, fits into memory, and knows all layers; it holds int8 weights as floats."""
    if not find_spec("openvino") or OPENVINO_NEEDS * parameters > memory.physical_memory():
        return False
    if network is None:
        return True
    if is_int8(network):
        return False
    from keras_diffusion.engines.openvino_layers import LOWERINGS

    nodes = graphs.nodes(network)
    return bool(nodes) and all(type(node.operation) in LOWERINGS for node in nodes)


def warn_of_one_device():
    """Logs that one device draws where several were meant to: only JAX shares the work."""
    backend, asked = keras.backend.backend(), keras.distribution.distribution()
    if backend == "tensorflow":
        asked = asked or import_module(f"{__package__}.tensorflow").strategy()
    if backend != "jax" and asked:
        logger.warning("One device draws on %s; several draw on KERAS_BACKEND=jax. Received: %.200s", backend, asked)


def rows_at_once(runner):
    """Returns how many rows of a sampler's table one program runs if no callback sees each."""
    return ROWS_AT_ONCE.get((runner, device()), 1)


def load_runner(runner):
    """Returns the function that runs a stage, by its name in `RUNNERS`."""
    return getattr(_module(runner), runner)


def replaced_operations(runner):
    """Returns the operations that a runner replaces: a dict from names in `operations.DEFAULT` to functions."""
    return _module(runner).replaced_operations(runner)


def weight_addresses(runner, network):
    """Lays the weights out for a runner in `ADDRESS_WEIGHTS`, and returns their addresses."""
    return _module(runner).weight_addresses(network)


def compiles_always():
    """Tells whether the backend runs everything compiled."""
    return DEFAULT_RUNNERS[keras.backend.backend()] == "jit"


def _module(runner):
    return import_module(f"{__package__}.{RUNNERS[runner]}")
