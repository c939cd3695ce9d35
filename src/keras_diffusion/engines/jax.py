"""Runs a stage with JAX, which compiles it."""

from functools import partial

import jax
import keras
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec
from keras import ops

from keras_diffusion.engines import in_turn
from keras_diffusion.networks import operations

FLASH_HEADS = (((9, 0), 256), ((8, 0), 128))  # Hopper and newer; Ampere and Ada. Volta and Turing have none.


def jit(stage, network, traced):
    variables = network.variables  # Keras takes a millisecond to list them
    mesh = mesh_of(variables)
    everywhere = NamedSharding(mesh, PartitionSpec()) if mesh else None
    network = Shared(network, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))) if mesh else network

    @partial(jax.jit, out_shardings=everywhere)
    def run(values, *inputs):
        traced()
        with keras.StatelessScope(zip(variables, values, strict=True), initialize_variables=False):
            return stage(network, *inputs)

    def call(*inputs):
        if everywhere:  # else JAX divides them as it likes, which fails where that is not even
            inputs = jax.device_put(inputs, everywhere)
        return run([variable.value for variable in variables], *inputs)

    return call


def mesh_of(variables):
    """Returns the mesh of devices that variables are distributed over, or None."""
    shardings = (variable.value.sharding for variable in variables)
    return next((sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)), None)


class Shared:
    """Has the devices of a `NamedSharding` share the rows of a network's inputs, which need not divide evenly."""

    def __init__(self, network, sharding):
        self._network, self._sharding = network, sharding

    def __getattr__(self, name):
        return getattr(self._network, name)

    def __call__(self, inputs):
        return self._network(keras.tree.map_structure(self._share, inputs))

    def _share(self, x):
        return jax.lax.with_sharding_constraint(x, self._sharding) if x.shape[0] > 1 else x


def replaced_operations(runner):
    """Returns operations that a GPU computes faster. Winograd's convolutions made a processor a tenth slower."""
    stored = {"project": in_turn.project, "convolve": in_turn.convolve}
    return {"attend": _attend_by_cudnn, "moments": _moments_in_one_pass, **stored}


def use_compile_cache(folder):
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()  # it looks for its folder once


def _attend_by_cudnn(layer, query, key, value):
    """cuDNN's flash attention where the GPU has it, for half precision and heads that are not too wide."""
    width, dtype = query.shape[-1], keras.backend.standardize_dtype(query.dtype)
    if dtype in ("float16", "bfloat16") and width <= widest_flash_head(compute_capability()) and width % 8 == 0:
        return jax.nn.dot_product_attention(query, key, value, is_causal=layer.causal, implementation="cudnn")
    return operations.attend(layer, query, key, value)


def _moments_in_one_pass(x):
    """Computes moments in one pass over memory on a GPU; on a processor XLA takes longer for that."""
    return moments_from_one(x) if compute_capability() > (0, 0) else operations.moments(x)


def moments_from_one(x):
    """Computes `operations.moments` from the differences to one position, so that nothing cancels."""
    first = ops.stop_gradient(x[:, :1, :1])  # which position it is changes nothing
    x = x - first
    mean = ops.mean(x, axis=(1, 2), keepdims=True)
    variance = ops.mean(ops.square(x), axis=(1, 2), keepdims=True) - ops.square(mean)
    return first + mean, ops.maximum(variance, 0.0)


def compute_capability():
    """That of the first NVIDIA GPU that JAX computes on, such as (8, 0) for an A100; (0, 0) without one."""
    numbers = getattr(jax.devices()[0], "compute_capability", "").split(".")
    return tuple(map(int, numbers)) if all(map(str.isdigit, numbers)) else (0, 0)


def widest_flash_head(capability):
    """The widest head that cuDNN's flash attention takes on a GPU of this compute capability; 0 if it has none."""
    return next((width for least, width in FLASH_HEADS if capability >= least), 0)
