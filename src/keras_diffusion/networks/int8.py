"""Stores kernels as int8 with one scale for each output channel, and multiplies them out where a layer uses them."""

from functools import cache

import keras
import numpy as np
from keras import ops

from keras_diffusion.architectures import INT8, STORED
from keras_diffusion.networks.keras_internals import all_layers

LARGEST = 127


def quantise(values):
    """Rounds values (…, out) to int8, symmetrically for each output channel.

    Returns:
        (codes, scale): int8 (…, out) in the memory order of the values, and float32 (out,); codes · scale is the
        nearest to the values.
    """
    largest = np.max(np.abs(values), axis=tuple(range(np.ndim(values) - 1)))
    scale = np.maximum(largest / np.float32(LARGEST), np.finfo("float32").tiny)  # an empty channel divides by no zero
    codes = values / scale
    return np.rint(codes, out=codes).astype("int8"), scale.astype("float32")


def is_int8(network):
    """Tells whether a network stores kernels as int8."""
    return any(layer.dtype_policy.name in INT8 for layer in all_layers(network))


class StoredKernel:
    """Gives a layer of a policy in `STORED` a kernel that is stored in fewer bits than it computes in.

    Of a policy in `INT8`, that is an int8 variable beside another one, "kernel_scale"; Keras saves and loads floats.
    """

    def add_weight(self, *arguments, name=None, shape=None, initializer=None, **options):
        """Adds a variable; in place of a float kernel, one in int8 and its scale."""
        add = super().add_weight
        if name == "kernel" and self.dtype_policy.name in STORED:
            options["autocast"] = False  # `expand` casts it
        if name != "kernel" or self.dtype_policy.name not in INT8:
            return add(*arguments, name=name, shape=shape, initializer=initializer, **options)
        first = cache(lambda: quantise(np.array(ops.convert_to_numpy(initializer(shape, "float32")))))
        starts = [lambda *_, **__: first()[0], lambda *_, **__: first()[1]]
        if isinstance(initializer, keras.initializers.Zeros):  # which a loader replaces
            starts = [initializer, "ones"]
        options = {"trainable": False, "autocast": False}
        self.kernel_scale = add(shape=shape[-1:], initializer=starts[1], name="kernel_scale", **options)
        return add(shape=shape, initializer=starts[0], dtype="int8", name="kernel", **options)

    @property
    def kernel(self):
        """The kernel, a variable; or what a stored one stands for, a tensor that is computed each time."""
        return self.expand(self.stored) if self.dtype_policy.name in STORED else self.stored

    @property
    def stored(self):
        """The variable that the kernel is stored in."""
        return super().kernel

    def expand(self, stored):
        """Turns the stored kernel, a tensor or the variable, into the one to compute with."""
        floats = self._floats(stored) if self.dtype_policy.name in INT8 else stored
        return ops.cast(floats, self.compute_dtype)

    def _floats(self, codes):
        return ops.cast(codes, "float32") * self.kernel_scale

    def save_own_variables(self, store):
        """Saves floats, as a layer of another policy does."""
        if self.dtype_policy.name not in INT8:
            super().save_own_variables(store)
            return
        for i, values in enumerate([self._floats(self.stored), *([self.bias] if self.use_bias else [])]):
            store[str(i)] = values

    def load_own_variables(self, store):
        """Loads what Keras saved, which is floats."""
        if self.dtype_policy.name not in INT8:
            super().load_own_variables(store)
            return
        codes, scale = quantise(np.asarray(store["0"], "float32"))
        values = {"kernel": codes, "kernel_scale": scale, **({"bias": store["1"]} if self.use_bias else {})}
        for variable in self.variables:
            variable.assign(values[variable.name])
