"""Runs a stage with torch, eagerly or compiled; layers compute in fewer passes over memory than by Keras' operations.

These are for layers that are called without gradients; the arguments are those of the functions in `operations`.
"""

import logging
import os
from threading import Lock

import keras
import torch
from keras import ops
from torch.nn import functional

from keras_diffusion.networks import graphs, operations

HIDDEN = 2**22  # hidden values of a feed-forward layer in memory at a time: 16 MB
# Weights of a convolution that are reordered at a time, 32 MB: of as much as that, glibc gives every time new memory,
# which the system first fills with zeros.
KERNEL = 2**23
RECORDINGS = 4  # CUDA graphs of a network and a stage, each for one shape
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def eager(stage, network, traced):
    return _captured(_by_layers(stage, network))


def _by_layers(stage, network):
    network = graphs.LayerByLayer(network)

    @torch.no_grad()
    def run(*inputs):
        return stage(network, *inputs)

    return run


def inductor(stage, network, traced):
    """Has `torch.compile` see operations alone: it cannot follow Keras' layers, and gives up on most of them."""
    from torch.fx.experimental.proxy_tensor import make_fx

    run, compiled = _by_layers(stage, network), []

    @torch.no_grad()
    def call(*inputs):
        given = [x for x in keras.tree.flatten(inputs) if x is not None]

        def by_values(values, given):
            given = iter(given)
            arrays = keras.tree.map_structure(lambda x: x if x is None else next(given), inputs)
            with keras.StatelessScope(zip(network.variables, values, strict=True), initialize_variables=False):
                return run(*arrays)

        values = [variable.value for variable in network.variables]
        if not compiled:
            traced()
            graph = make_fx(by_values, tracing_mode="fake")(values, given)  # without computing
            compiled.append(torch.compile(graph, dynamic=False))
        return compiled[0](values, given)

    return _captured(call)


def _captured(run):
    """Records on a GPU what `run` launches for inputs of a shape, and launches that at once from then on.

    Python takes many times as long for the layers as an H200 does (CUDA graphs: PyTorch, `torch.cuda.CUDAGraph`).
    """
    recorded, turn = {}, Lock()  # a recording has its own inputs and outputs: one thread at a time

    @torch.no_grad()
    def call(*inputs):
        leaves = keras.tree.flatten(inputs)
        given = [x for x in leaves if x is not None]
        if not all(x.is_cuda for x in given):
            return run(*inputs)
        key = tuple(x if x is None else (x.shape, x.dtype) for x in leaves)
        with turn:
            if key not in recorded:
                if len(recorded) == RECORDINGS:
                    recorded.clear()
                recorded[key] = _record(run, inputs)
            if recorded[key] is None:
                return run(*inputs)
            graph, places, outputs = recorded[key]
            for place, x in zip(places, given, strict=True):
                place.copy_(x)
            graph.replay()
            return keras.tree.map_structure(torch.clone, outputs)

    return call


def _record(run, inputs):
    """The CUDA graph of `run`, where it reads its inputs and what it returns; None if it cannot be recorded."""
    inputs = keras.tree.map_structure(lambda x: x if x is None else x.clone(), inputs)
    places = [x for x in keras.tree.flatten(inputs) if x is not None]
    graph, cudnn = torch.cuda.CUDAGraph(), torch.backends.cudnn
    try:
        with cudnn.flags(cudnn.enabled, True, cudnn.benchmark_limit, cudnn.deterministic, cudnn.allow_tf32):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):  # what is chosen or allocated the first time is not recorded
                    run(*inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                outputs = run(*inputs)
    except RuntimeError as error:
        logging.getLogger(__name__).warning("No CUDA graph, so that each layer is launched by itself: %s", error)
        return None
    finally:
        torch.cuda.empty_cache()  # cuDNN tries algorithms that take gigabytes
    return graph, places, outputs


def weight_addresses(network):
    """Lays the weights of a network out as cuDNN reads them, and returns their addresses on the GPU.

    That is (d, h, w, c) for kernels (h, w, c, d): cuDNN would copy others in every call.
    """
    weights = [weight for variable in network.variables if (weight := variable.value).is_cuda]
    for weight in weights:
        if weight.ndim == 4:
            weight.data = weight.data.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    return [weight.data_ptr() for weight in weights]


def replaced_operations(runner):
    """`FUSED`; but torch.compile fails on oneDNN's operation."""
    return FUSED if runner == "eager" else {**FUSED, "project": operations.project}


def use_compile_cache(folder):
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def attend(layer, query, key, value):
    """In one operation, without copies of what it attends to."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value, is_causal=layer.causal).transpose(1, 2)


def convolve(layer, x):
    """With the bias; Keras would copy the feature map twice to change its layout to the one it has."""
    kernel = ops.convert_to_tensor(layer.kernel)
    bias = ops.convert_to_tensor(layer.bias) if layer.use_bias else None
    x, kernel, parts = x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), _parts(kernel, kernel.numel(), KERNEL)
    outputs = [
        functional.conv2d(x, *part, layer.strides, layer.padding)
        for part in zip(kernel.chunk(parts), [None] * parts if bias is None else bias.chunk(parts), strict=True)
    ]
    return (torch.cat(outputs, dim=1) if parts > 1 else outputs[0]).permute(0, 2, 3, 1)


def project(layer, x):
    """With the bias; by oneDNN on processors, since MKL, which torch takes, is half as fast on those of AMD."""
    kernel = ops.convert_to_tensor(layer.kernel).T
    bias = ops.convert_to_tensor(layer.bias) if layer.use_bias else None
    if ONEDNN and x.device.type == "cpu" and x.dtype == kernel.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x, kernel, bias, "none", [], "")
    return functional.linear(x, kernel, bias)


def feed(layer, x):
    """For groups of positions, with few hidden values in memory at a time."""

    def feed_part(part):
        x, gate = layer.net_0_proj(part).chunk(2, dim=-1)
        return layer.net_2(functional.gelu(gate).mul_(x))

    return torch.cat([feed_part(part) for part in x.chunk(_parts(x, 8 * x.numel(), HIDDEN), dim=1)], dim=1)


def _parts(x, size, limit):
    """In how many parts to compute with so many values: a processor's memory is what is slow, a GPU's is not."""
    return -(-size // limit) if x.device.type == "cpu" else 1


def moments(x):
    mean = x.mean((1, 2), keepdim=True)
    return mean, (x - mean).square_().mean((1, 2), keepdim=True)


def modulate(x, scale, shift, silu):
    x = shift.addcmul(x, scale)
    return functional.silu(x, inplace=True) if silu else x


FUSED = {function.__name__: function for function in (attend, convolve, project, feed, moments, modulate)}
