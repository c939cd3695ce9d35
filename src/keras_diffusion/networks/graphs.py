"""Runs the graph of a network layer by layer, and frees each output after its last use."""

from collections import Counter

import keras

from keras_diffusion.networks.keras_internals import functional_call, graph_nodes


def nodes(network):
    """Lists the nodes of a network's graph in the order of computation; [] if the network has a `call` of its own."""
    return graph_nodes(network) if getattr(type(network), "call", None) is functional_call() else []


def refuse_own_call(network):
    """Raises an error if a network that is to be taken apart has a `call` of its own.

    Raises:
        TypeError: If it has.
    """
    if not nodes(network):
        raise TypeError(
            "ControlNets and `deep_cache` take the graph of a diffusion model apart; this one has a `call` of its own, "
            f"which they would leave out. Draw without them. Received: {type(network).__name__}"
        )


def nested(network):
    """Tells whether layers of a network's graph are graphs themselves, as in one with ControlNets."""
    return any(nodes(node.operation) for node in nodes(network))


class LayerByLayer:
    """Computes a network layer by layer.

    Each output is freed after its last use; Keras itself keeps all of them to the end.

    Args:
        network: A model. One with a `call` of its own is called as a whole.
        how: Function of a layer that returns the function to call in its place.
    """

    def __init__(self, network, how=lambda layer: layer):
        self._network = network._network if isinstance(network, LayerByLayer) else network
        self._how, self._nodes = how, nodes(self._network)

    def __getattr__(self, name):
        return getattr(self._network, name)

    def __call__(self, inputs):
        network = self._network
        if not self._nodes:
            return self._how(network)(inputs)
        uses = Counter(id(x) for node in self._nodes for x in node.input_tensors) + Counter(map(id, network.outputs))
        values = dict(zip(map(id, network.inputs), keras.tree.flatten(inputs), strict=True))
        for node in self._nodes:
            arguments, options = node.arguments.fill_in(values)
            uses.subtract(map(id, node.input_tensors))
            for x in node.input_tensors:
                if not uses[id(x)]:
                    values.pop(id(x), None)
            if nodes(node.operation):
                outputs = LayerByLayer(node.operation, self._how)(arguments)
            else:
                outputs = self._how(node.operation)(*arguments, **options)
            del arguments, options
            values.update(zip(map(id, node.outputs), keras.tree.flatten(outputs), strict=True))
            del outputs
        outputs = [values[id(x)] for x in network.outputs]
        return outputs if len(outputs) > 1 else outputs[0]
