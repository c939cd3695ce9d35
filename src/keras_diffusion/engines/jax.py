"""Runs a stage with JAX, which compiles it."""

import jax
import keras
from jax.experimental.compilation_cache import compilation_cache

from keras_diffusion.networks.operations import attend

FLASH_HEADS = (((9, 0), 256), ((8, 0), 128))  # Hopper and newer; Ampere and Ada. Volta and Turing have none.


def jit(stage, network, traced):
    variables = network.variables  # Keras takes a millisecond to list them

    @jax.jit
    def run(values, *inputs):
        traced()
        with keras.StatelessScope(zip(variables, values, strict=True), initialize_variables=False):
            return stage(network, *inputs)

    return lambda *inputs: run([variable.value for variable in variables], *inputs)


def replaced_operations(runner):
    """cuDNN's attention; Winograd's convolutions were measured to lose a tenth of the time."""
    return {"attend": _attend_by_cudnn}


def use_compile_cache(folder):
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()  # it looks for its folder once


def _attend_by_cudnn(layer, query, key, value):
    """cuDNN's flash attention where the GPU has it, for half precision and heads that are not too wide."""
    width, dtype = query.shape[-1], keras.backend.standardize_dtype(query.dtype)
    if dtype in ("float16", "bfloat16") and width <= widest_flash_head(compute_capability()) and width % 8 == 0:
        return jax.nn.dot_product_attention(query, key, value, is_causal=layer.causal, implementation="cudnn")
    return attend(layer, query, key, value)


def compute_capability():
    """That of the first NVIDIA GPU that JAX computes on, such as (8, 0) for an A100; (0, 0) without one."""
    numbers = getattr(jax.devices()[0], "compute_capability", "").split(".")
    return tuple(map(int, numbers)) if all(map(str.isdigit, numbers)) else (0, 0)


def widest_flash_head(capability):
    """The widest head that cuDNN's flash attention takes on a GPU of this compute capability; 0 if it has none."""
    return next((width for least, width in FLASH_HEADS if capability >= least), 0)
