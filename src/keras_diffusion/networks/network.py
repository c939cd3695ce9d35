"""Defines the base class of all networks: initialisation, dtype, configuration and files."""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from threading import Lock

import keras
import numpy as np
from keras import ops

from keras_diffusion.architectures import STORED, Architecture
from keras_diffusion.system.locks import changing
from keras_diffusion.system.memory import OwnedArray, aligned_array

kernel_initializer = ContextVar("kernel initializer", default="glorot_uniform")


class LazyZeros(keras.initializers.Zeros):
    """Initialises with zeros that take neither time nor memory until something is written into them."""

    def __call__(self, shape, dtype=None):
        return ops.convert_to_tensor(OwnedArray(aligned_array(np.zeros, shape, dtype)), dtype)


@keras.saving.register_keras_serializable("keras_diffusion")
class StoredPolicy(keras.DTypePolicy):
    """Stores weights in fewer bits than it computes in; each layer converts its own when it is called."""

    def _parse_name(self, name):
        return STORED[name]


SETTINGS = {  # of Keras: how to read one, how to set it, and the value that the networks are written for
    "image_data_format": (keras.config.image_data_format, keras.config.set_image_data_format, "channels_last"),
    "floatx": (keras.config.floatx, keras.config.set_floatx, "float32"),
}
_users, _users_lock, _others = [], Lock(), {}


@contextmanager
def keras_settings():
    """Sets Keras' global settings to those that the networks are written for, if they are others, while it is open.

    Several threads may be inside; the last one to leave restores the settings.
    """
    user = object()
    with _users_lock:
        if not _users:
            _others.update({name: read() for name, (read, _, own) in SETTINGS.items() if read() != own})
            for name in _others:
                _, write, own = SETTINGS[name]
                write(own)
        _users.append(user)
    try:
        yield
    finally:
        with _users_lock:
            _users.remove(user)
            if not _users:
                for name, value in _others.items():
                    SETTINGS[name][1](value)
                _others.clear()


@contextmanager
def construction(dtype=None, initialize=True):
    """Sets the dtype policy and the initialisation of the layers built inside it.

    Args:
        dtype: A Keras dtype policy or its name, or a name in `STORED`; None keeps the global policy.
        initialize: Whether kernels start at random. False leaves them zero, for a loader that fills every one.
    """
    with keras_settings():
        policy = keras.config.dtype_policy()
    token = kernel_initializer.set("glorot_uniform" if initialize else LazyZeros())
    try:
        keras.config.set_dtype_policy(StoredPolicy(dtype) if str(dtype) in STORED else dtype or policy)
        with keras_settings():
            yield
    finally:
        keras.config.set_dtype_policy(policy)
        kernel_initializer.reset(token)


@dataclass(frozen=True)
class Shape:
    """The base of the shapes of networks that are no part of an `Architecture`."""

    def get_config(self):
        """Returns the shape as JSON-serialisable data, for `from_config`."""
        return asdict(self)

    @classmethod
    def from_config(cls, config):
        """Rebuilds a shape from what `get_config` returned."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in config.items()})


class Network(keras.Model):
    """Makes a functional model whose configuration is the arguments of its constructor."""

    architecture_class = Architecture

    def __init__(self, inputs, outputs, architecture, name, **config):
        super().__init__(inputs, outputs, name=name)
        self.architecture = architecture
        self._config = {"name": name, **config}

    def get_config(self):
        dtype = self.layers[-1].dtype_policy.name
        return {**self._config, "architecture": self.architecture.get_config(), "dtype": dtype}

    def load_weights(self, filepath, *arguments, **options):
        """Loads weights of this network, or of KerasCV's of the same name: all of them or, on an error, none.

        Args:
            filepath: A `.weights.h5` or `.h5` file.

        Raises:
            CheckpointError: If the file is damaged or does not fit.
            ValueError: If Keras' options to load a part are given: loading is strict.
        """
        from keras_diffusion.checkpoints.layouts import keras_files  # the one import upwards: networks know no files
        from keras_diffusion.networks.classes import name_of

        if not name_of(self):
            return super().load_weights(filepath, *arguments, **options)
        if any(arguments) or any(options.values()):
            raise ValueError(f"Weights are loaded strictly, without options. Received: {(arguments, options)!r:.200}")
        with changing(self):
            keras_files.load_weights(self, filepath)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**{**config, "architecture": cls.architecture_class.from_config(config["architecture"])})
