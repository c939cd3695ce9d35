"""The ways to run a stage, one function each, and which of them is taken: it was measured, see benchmarks/README.md.

Each takes a stage (a function of a network and of arrays), the network, and a function to call when it compiles, and
returns a function of the arrays.
"""

import os
from importlib.util import find_spec
from math import prod
from threading import Lock

import keras
import numpy as np
from keras import ops

from keras_diffusion import memory
from keras_diffusion.engines import compile_cache
from keras_diffusion.engines.winograd import winograd
from keras_diffusion.garbage import lasting
from keras_diffusion.networks import graphs
from keras_diffusion.networks.operations import attend, project


def graph(stage, network, traced, jit_compile=False):
    import tensorflow as tf

    if not jit_compile and _converts(network) and not graphs.nested(network):
        network = _in_turn(network)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(*inputs):
        traced()
        return stage(network, *inputs)

    concrete = {}  # TensorFlow warns of a function that is traced for many shapes, unless it is called by them

    def call(*inputs):
        shapes = tuple(x if x is None else x.shape for x in keras.tree.flatten(inputs))
        if shapes not in concrete:
            with lasting():
                concrete[shapes] = run.get_concrete_function(*inputs)
        return concrete[shapes](*inputs)

    return call


def xla(stage, network, traced):
    return graph(stage, network, traced, jit_compile=True)


def _converts(network):
    """Whether layers compute in another dtype than that of their weights."""
    return any(layer.variable_dtype != layer.compute_dtype for layer in network._flatten_layers())


def _in_turn(network):
    """The network with layers that read their weights after their inputs: a graph converts all at the start else."""
    import tensorflow as tf

    def waiting(layer):
        def call(*inputs, **options):
            with tf.control_dependencies(list(filter(tf.is_tensor, keras.tree.flatten((inputs, options))))):
                return layer(*inputs, **options)

        return call

    return graphs.Walk(network, waiting)


def jit(stage, network, traced):
    import jax

    @jax.jit
    def run(variables, *inputs):
        traced()
        with keras.StatelessScope(zip(network.variables, variables, strict=True)):
            return stage(network, *inputs)

    return lambda *inputs: run([variable.value for variable in network.variables], *inputs)


def eager(stage, network, traced):
    import torch

    network = graphs.Walk(network)

    @torch.no_grad()
    def run(*inputs):
        return stage(network, *inputs)

    return run


def inductor(stage, network, traced):
    """Has `torch.compile` see operations alone: it cannot follow Keras' layers, and gives up on most of them."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    run, compiled = eager(stage, network, traced), {}

    @torch.no_grad()
    def call(*inputs):
        leaves = keras.tree.flatten(inputs)
        shapes, given = tuple(x if x is None else x.shape for x in leaves), [x for x in leaves if x is not None]

        def by_values(values, given):
            given = iter(given)
            arrays = keras.tree.map_structure(lambda x: x if x is None else next(given), inputs)
            with keras.StatelessScope(zip(network.variables, values, strict=True)):
                return run(*arrays)

        values = [variable.value for variable in network.variables]
        if shapes not in compiled:
            traced()
            graph = make_fx(by_values, tracing_mode="fake")(values, given)  # without computing
            compiled[shapes] = torch.compile(graph, dynamic=False)
        return compiled[shapes](values, given)

    return call


def openvino(stage, network, traced):
    """Has OpenVINO run the network, and the backend the little arithmetic around it."""
    from keras_diffusion.engines.openvino import compile_network

    compiled_for = compiled = None
    turn = Lock()  # of the threads: what is compiled computes one thing at a time, on all cores

    def predict(inputs):
        nonlocal compiled_for, compiled
        arrays = [np.ascontiguousarray(ops.convert_to_numpy(x)) for x in keras.tree.flatten(inputs)]
        shapes = [array.shape for array in arrays]
        with turn:
            if compiled_for != shapes:
                traced()
                compiled_for, compiled = shapes, compile_network(network, shapes)
            outputs = compiled(*arrays)
        return keras.tree.map_structure(ops.convert_to_tensor, outputs)

    return lambda *inputs: stage(predict, *inputs)


def _keep_jax(folder):
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()  # it looks for its folder once


def _keep_tensorflow(folder):
    os.environ.setdefault("TF_XLA_FLAGS", f"--tf_xla_persistent_cache_directory={folder}")  # read with the first device


def _keep_torch(folder):
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


KEEP = {"jax": _keep_jax, "tensorflow": _keep_tensorflow, "torch": _keep_torch}
# TensorFlow cannot do without its folder once it has it, and names what it keeps by a number that depends on all that
# was traced before; torch keeps what it compiles anyway. OpenVINO would write all weights, once for each size.
KEPT_BY_DEFAULT = ("jax",)


def keep():
    """Has the backend keep what it compiles for the next process, unless it was told where before."""
    backend = keras.backend.backend()
    if (backend in KEPT_BY_DEFAULT or compile_cache.chosen()) and (folder := compile_cache.folder(backend)):
        KEEP[backend](folder)


WAYS = {way.__name__: way for way in (graph, xla, jit, eager, inductor, openvino)}
USUAL = {"tensorflow": "graph", "jax": "jit", "torch": "eager"}
COMPILED = {"tensorflow": "xla", "jax": "jit", "torch": "inductor"}
FROZEN = ("openvino",)  # they hold the weights they were compiled with
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


def _attend_by_cudnn(layer, query, key, value):
    """cuDNN's flash attention where the GPU has it, for half precision and heads that are not too wide."""
    import jax

    width, dtype = query.shape[-1], keras.backend.standardize_dtype(query.dtype)
    if dtype in ("float16", "bfloat16") and width <= widest_flash_head(compute_capability()) and width % 8 == 0:
        return jax.nn.dot_product_attention(query, key, value, is_causal=layer.causal, implementation="cudnn")
    return attend(layer, query, key, value)


def compute_capability():
    """That of the first NVIDIA GPU that JAX computes on, such as (8, 0) for an A100; (0, 0) without one."""
    import jax

    numbers = getattr(jax.devices()[0], "compute_capability", "").split(".")
    return tuple(map(int, numbers)) if all(map(str.isdigit, numbers)) else (0, 0)


def widest_flash_head(capability):
    """The widest head that cuDNN's flash attention takes on a GPU of this compute capability; 0 if it has none."""
    return next((width for least, width in FLASH_HEADS if capability >= least), 0)


FLASH_HEADS = (((9, 0), 256), ((8, 0), 128))  # Hopper and newer; Ampere and Ada. Volta and Turing have none.


def faster(way):
    """What layers are to compute otherwise under a way, by its name in `operations.PLAIN`.

    Winograd's convolutions were measured to be faster under TensorFlow's XLA on processors; JAX loses a tenth by them.
    """
    if way in ("eager", "inductor"):
        from keras_diffusion.engines.torch import FUSED

        return FUSED if way == "eager" else {**FUSED, "project": project}  # torch.compile fails on oneDNN's operation
    if way == "jit":
        return {"attend": _attend_by_cudnn}
    return {"convolve": winograd} if way == "xla" and device() == "cpu" else {}
