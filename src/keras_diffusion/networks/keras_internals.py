"""Holds every use of Keras' private names. If a Keras lacks one, a plain and slower way takes its place."""

from contextlib import contextmanager
from functools import cache, partial

import keras
from keras import ops

from keras_diffusion.system.memory import OwnedArray

VALUE, INITIALIZER = "_value", "_initializer"  # of a variable
NODES, LAYERS = "_nodes_by_depth", "_flatten_layers"  # of a model


try:
    from keras.src.backend.common import global_state
except ImportError:
    global_state = None
WAITING = "uninitialized_variables"  # Keras' list, of a thread


@cache
def functional_call():
    """Returns the method `call` that all purely functional models share."""
    x = keras.Input((1,))
    return type(keras.Model(x, keras.layers.Identity()(x))).call


def graph_nodes(network):
    """Lists the nodes of a functional model in the order of computation; [] if Keras does not tell."""
    by_depth = sorted(getattr(network, NODES, {}).items(), reverse=True)
    return [node for _, nodes in by_depth for node in nodes if not node.is_input]


def all_layers(network):
    """Lists a network, its layers and the layers inside them; those inside are missing if Keras does not tell."""
    return list(getattr(network, LAYERS)()) if hasattr(network, LAYERS) else [network, *network.layers]


@cache
def indexing():
    """Returns the class of the operation that indexes a symbolic tensor; None if Keras does not tell."""
    history = getattr(keras.Input((1,))[..., :1], "_keras_history", None)
    return type(history.operation) if history else None


def has_value(variable):
    """Tells whether a variable has a value; False if Keras does not tell."""
    return getattr(variable, VALUE, None) is not None


def initialize(pairs):
    """Gives variables without values their first, so that no values are made only to be overwritten.

    Other variables that wait for values go on waiting: they may be those of a network that was built for its shapes.

    Args:
        pairs: A list of (variable, list of one array), which is emptied. The array is one from `memory.aligned_array`.
    """
    deferred = all(hasattr(variable, name) for variable, _ in pairs for name in (VALUE, INITIALIZER))
    before = [(variable, getattr(variable, INITIALIZER)) for variable, _ in pairs] if deferred else ()
    for (variable, _), (_, values) in zip(before, pairs, strict=False):
        setattr(variable, INITIALIZER, partial(_take, values))
    own, waiting = {id(variable) for variable, _ in pairs}, _waiting()
    replace_waiting([variable for variable in waiting if id(variable) in own])
    try:
        with keras.StatelessScope():
            pass  # at its end, Keras initializes all variables that wait
    except BaseException:
        for variable, initializer in before:
            setattr(variable, VALUE, None)
            setattr(variable, INITIALIZER, initializer)
        replace_waiting(waiting)
        raise
    replace_waiting([variable for variable in waiting if id(variable) not in own])
    for variable, values in () if deferred else pairs:
        variable.assign(_take(values, variable.shape, variable.dtype))


def _take(values, shape, dtype):
    return ops.convert_to_tensor(OwnedArray(values.pop()), dtype)


@contextmanager
def no_leftovers():
    """Takes variables of networks that were not finished from the list of those that Keras is still to initialize."""
    before = _waiting()
    try:
        yield
    except BaseException:
        known = set(map(id, before))
        replace_waiting([variable for variable in _waiting() if id(variable) in known])
        raise


def _waiting():
    """Lists the variables that Keras is to initialize at the end of a scope; [] if Keras does not tell."""
    return list(global_state.get_global_attribute(WAITING) or ()) if global_state else []


def replace_waiting(variables):
    """Replaces the list of the variables that Keras is to initialize at the end of a scope."""
    if global_state:
        global_state.set_global_attribute(WAITING, variables)
