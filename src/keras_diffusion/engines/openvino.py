"""Runs the networks as static OpenVINO graphs, whose inputs and outputs are those of the network."""

from functools import partial
from threading import Lock

import keras
import numpy as np
from keras import ops
from openvino import Core, Model
from openvino import opset13 as ov

from keras_diffusion.engines import compile_cache
from keras_diffusion.engines.openvino_layers import TO_INSIDE, TO_OUTSIDE, is_map, lower, transpose
from keras_diffusion.networks.graphs import LayerByLayer

PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
CONSTANT_INPUT = "context"  # the input that is equal in all steps of an image; its keys and values cost 1 % of a step


def openvino(stage, network, traced):
    """Runs the network with OpenVINO, and the little arithmetic around it with the backend."""
    compiled_for = compiled = None
    turn = Lock()  # one thread at a time: a compiled model uses all cores

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


def replaced_operations(runner):
    """Returns no operations: OpenVINO runs graphs of its own."""
    return {}


def compile_network(network, shapes):
    """Compiles a network for inputs of fixed shapes.

    Args:
        network: A network of this package.
        shapes: The shape of each of its inputs.

    Returns:
        A function of NumPy arrays, one for each input, that returns the output as a NumPy array, or a list of outputs.

    Raises:
        TypeError: If the network has a layer without a row in `LOWERINGS`.
    """
    parameters = [
        ov.parameter(shape, np.dtype(x.dtype) if "int" in x.dtype else np.float32, name=x.name)
        for x, shape in zip(network.inputs, shapes, strict=True)
    ]
    inputs = [transpose(x, TO_INSIDE) if is_map(x) else x.output(0) for x in parameters]
    outputs = LayerByLayer(network, lambda layer: partial(lower, layer))(inputs)
    results = [transpose(x, TO_OUTSIDE) if is_map(x) else x for x in keras.tree.flatten(outputs)]
    model, precision = Model(results, parameters, network.name), PRECISIONS[network.layers[-1].compute_dtype]
    run = (
        split_constant_part(model, precision)
        if CONSTANT_INPUT in [x.name for x in network.inputs]
        else compiled(model, precision)
    )
    structure = keras.tree.map_structure(lambda _: None, outputs)  # without the graph, which holds all weights
    return lambda *arrays: keras.tree.pack_sequence_as(structure, run(arrays))


def compiled(model, precision):
    """Compiles a model to a function that takes and returns a list of arrays."""
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if compile_cache.chosen() and (folder := compile_cache.folder("openvino")):
        hints["CACHE_DIR"] = str(folder)
        # OpenVINO's cache looks models up by the names of operations, which otherwise contain a running counter.
        for i, operation in enumerate(model.get_ordered_ops()):
            operation.set_friendly_name(str(i))
        for i, output in enumerate(model.outputs):
            output.get_tensor().set_names({f"output {i}"})
    run = Core().compile_model(model, "CPU", hints)
    return lambda arrays: list(run(arrays).values())


def split_constant_part(model, precision):
    """Compiles a model in two parts: what depends on `CONSTANT_INPUT` alone runs only when that input changes."""
    parameters, sources = model.get_parameters(), {}
    for node in model.get_ordered_ops():
        own = {node.get_friendly_name()} if node in parameters else set()
        sources[node.get_name()] = own.union(*(sources[x.get_node().get_name()] for x in node.input_values()))

    def alone(node):
        return sources[node.get_name()] == {CONSTANT_INPUT}

    kept, given = [], []
    for output in [output for node in model.get_ordered_ops() if alone(node) for output in node.outputs()]:
        takers = [taker for taker in output.get_target_inputs() if not alone(taker.get_node())]
        if takers:
            kept.append(output)
            given.append(ov.parameter(output.get_shape(), output.get_element_type()))
        for taker in takers:
            taker.replace_source_output(given[-1].output(0))
    index = [x.get_friendly_name() for x in parameters].index(CONSTANT_INPUT)
    once = parameters.pop(index)
    first = compiled(Model(kept, [once], CONSTANT_INPUT), precision)
    rest = compiled(Model(model.get_results(), [*parameters, *given], model.get_friendly_name()), precision)
    known = values = None

    def run(arrays):
        nonlocal known, values
        arrays = list(arrays)
        array = arrays.pop(index)
        if not np.array_equal(known, array):
            known, values = array.copy(), first([array])
        return rest([*arrays, *values])

    return run
