"""Builds an ONNX graph node by node, and writes it."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model

OPSET = 17  # the first with LayerNormalization; ONNX Runtime knows it since 1.12
WITHIN = 2**30  # bytes of weights that go into the file itself: one of 2 GiB could not be read
SMALL = 2**10  # bytes of the largest constant that stays there, and as it is, in any case: shapes must
DATA = "model.onnx_data"  # the file beside it that takes more; the name is optimum's


class Graph:
    """Collects the nodes, weights, inputs and outputs of a graph. A value is its name.

    Args:
        name: Its name.
        dtype: How weights are stored; the graph computes in float32.
    """

    def __init__(self, name, dtype):
        self.name, self.dtype, self.nodes, self.weights, self.inputs, self.outputs = name, dtype, [], {}, [], []

    def input(self, name, dtype, shape):
        """Adds an input; sides of its shape that vary have a name."""
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape))
        return name

    def output(self, name, value, shape):
        """Gives a value the name of a float32 output."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def weight(self, values, dtype="float32"):
        """Adds a constant."""
        name, array = f"weight_{len(self.weights)}", np.ascontiguousarray(values, dtype)
        smaller = dtype == "float32" and array.nbytes > SMALL
        self.weights[name] = array.astype(self.dtype) if smaller else array
        return self.op("Cast", name, to=TensorProto.FLOAT) if smaller and self.dtype != dtype else name

    def op(self, kind, *inputs, outputs=1, **attributes):
        """Adds a node and returns its output, or a list of several."""
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def save(self, path):
        """Writes the graph as a file, and its weights, if they are large, as another one beside it."""
        large = sum(array.nbytes for array in self.weights.values()) > WITHIN
        outside = {name: array for name, array in self.weights.items() if large and array.nbytes > SMALL}
        inside = [numpy_helper.from_array(x, name) for name, x in self.weights.items() if name not in outside]
        tensors = inside + (write_outside(path.with_name(DATA), outside) if outside else [])
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, tensors)
        opsets = [helper.make_opsetid("", OPSET)]
        version = helper.find_min_ir_version_for(opsets)
        save_model(helper.make_model(graph, opset_imports=opsets, ir_version=version), path)


def write_outside(path, arrays):
    """Writes arrays, given by name, as one file, and returns tensors that say where in it each one lies."""
    tensors = []
    with open(path, "wb") as file:
        for name, array in arrays.items():
            tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
            tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
            for key, value in {"location": path.name, "offset": file.tell(), "length": array.nbytes}.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            file.write(np.ascontiguousarray(array).reshape(-1).view("u1"))  # tofile() may miss an error at the end
    return tensors
