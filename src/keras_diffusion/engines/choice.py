"""Which runner a network gets: it was measured, see benchmarks/README.md.

A runner takes a stage (a function of a network and of arrays), the network, and a function to call when it compiles,
and returns a function of the arrays.
"""

from importlib import import_module
from importlib.util import find_spec
from math import prod

import keras
from keras import ops

from keras_diffusion import memory
from keras_diffusion.networks import graphs

WAYS = {  # way → the module of its runner, a function of that name; only the one that is used is imported
    "graph": "tensorflow",
    "xla": "tensorflow",
    "jit": "jax",
    "eager": "torch",
    "inductor": "torch",
    "openvino": "openvino",
}
USUAL = {"tensorflow": "graph", "jax": "jit", "torch": "eager"}
COMPILED = {"tensorflow": "xla", "jax": "jit", "torch": "inductor"}
FROZEN = ("openvino",)  # they hold the weights they were compiled with
ADDRESSED = ("eager", "inductor")  # their CUDA graphs read weights from where they lay
# (way, kind of device) → rows of a sampler's table that one program runs where nobody looks at each: Python takes
# longer to start a row than an H200 takes to compute it, and what is the same in all rows is then computed once.
ROWS_AT_ONCE = {("jit", "gpu"): 10}
# (backend, kind of device) → way: the work from which it is worth its compiling; the first one that is installed.
# XLA's was measured: at 256 × 256 Stable Diffusion has won back its compiling after 13 steps. OpenVINO's are estimates;
# it is faster than XLA too, but takes three times its memory.
AUTO = {
    ("tensorflow", "cpu"): {"xla": 8e11},
    ("jax", "cpu"): {"openvino": 2e12},
    ("torch", "cpu"): {"openvino": 2e12},
}
OPENVINO_NEEDS = 22  # bytes of memory for each parameter of the diffusion model, measured for an image of 512 × 512


def count_parameters(network):
    return sum(prod(variable.shape) for variable in network.variables)


def device():
    """The kind of device that the backend computes on: "cpu", "gpu" or another."""
    return str(ops.zeros(()).device).rpartition("device:")[2].lower().partition(":")[0].replace("cuda", "gpu")


def pick(jit_compile, network, shape):
    """The name in `WAYS` of how a network is run on an input of a shape (b, …) for a value of `jit_compile`."""
    backend = keras.backend.backend()
    if jit_compile == "openvino":
        return jit_compile
    if jit_compile == "auto":
        return best(count_parameters(network), prod(shape[:3]), network)
    return (COMPILED if jit_compile is True else USUAL)[backend]


def best(parameters, positions, network=None):
    """The way for so many parameters and positions of latents, with a network of this package or with another one."""
    backend = keras.backend.backend()
    for way, enough in AUTO.get((backend, device()), {}).items():
        if parameters * positions >= enough and (way != "openvino" or _openvino_serves(parameters, network)):
            return way
    return USUAL[backend]


def _openvino_serves(parameters, network):
    """Whether it is installed, the machine has memory enough for it, and it knows all layers."""
    if not find_spec("openvino") or OPENVINO_NEEDS * parameters > memory.physical():
        return False
    if network is None:
        return True
    from keras_diffusion.engines.openvino import LOWERINGS

    nodes = graphs.nodes(network)
    return bool(nodes) and all(type(node.operation) in LOWERINGS for node in nodes)


def rows_at_once(way):
    """How many rows of a sampler's table one program should run where nobody looks at each."""
    return ROWS_AT_ONCE.get((way, device()), 1)


def runner(way):
    """The function that runs a stage, by its name in `WAYS`."""
    return getattr(_module(way), way)


def faster(way):
    """What layers are to compute otherwise under a way, by its name in `operations.PLAIN`."""
    return _module(way).faster(way)


def addresses(way, network):
    """Where the weights lie that a way in `ADDRESSED` reads, ready for it."""
    return _module(way).addresses(network)


def _module(way):
    return import_module(f"{__package__}.{WAYS[way]}")
