"""The first values of variables that have none yet, so that no values are made to be overwritten.

Keras initializes such variables at the end of a scope, by their private attribute `_initializer`.
"""

from functools import partial

import keras
from keras import ops

from keras_diffusion.memory import OwnedArray


def fill(pairs):
    """Gives variables without values their first, each from a list of one, which does not keep it."""
    before = [(variable, variable._initializer) for variable, _ in pairs]
    for variable, values in pairs:
        variable._initializer = partial(_taken, values)
    try:
        with keras.StatelessScope():
            pass
    except BaseException:
        for variable, initializer in before:
            variable._value, variable._initializer = None, initializer
        raise


def _taken(values, shape, dtype):
    return ops.convert_to_tensor(OwnedArray(values.pop()), dtype)
