"""Runs a stage with TensorFlow: as a plain graph, or compiled by XLA."""

import os

import keras
import tensorflow as tf

from keras_diffusion.engines import in_turn
from keras_diffusion.engines.choice import device
from keras_diffusion.engines.winograd import winograd
from keras_diffusion.networks import graphs
from keras_diffusion.networks.int8 import is_int8
from keras_diffusion.networks.keras_internals import all_layers


def graph(stage, network, traced, jit_compile=False):
    if not jit_compile and _converts(network) and not graphs.nested(network):
        network = _in_turn(network)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(*inputs):
        traced()
        return stage(network, *inputs)

    concrete = []  # TensorFlow warns of many functions that trace unless they are called by this

    def call(*inputs):
        if not concrete:
            concrete.append(run.get_concrete_function(*inputs))
        return concrete[0](*inputs)

    return call


def xla(stage, network, traced):
    return graph(stage, network, traced, jit_compile=True)


def _converts(network):
    """Tells whether layers compute in another dtype than that of their weights."""
    return is_int8(network) or any(layer.variable_dtype != layer.compute_dtype for layer in all_layers(network))


def _in_turn(network):
    """Makes each layer wait for its inputs before it casts its weights; otherwise the graph casts all of them first."""

    def waiting(layer):
        def call(*inputs, **options):
            with tf.control_dependencies(list(filter(tf.is_tensor, keras.tree.flatten((inputs, options))))):
                return layer(*inputs, **options)

        return call

    return graphs.LayerByLayer(network, waiting)


def replaced_operations(runner):
    # Winograd's convolutions were measured to be faster under XLA on processors.
    convolve = winograd if runner == "xla" and device() == "cpu" else in_turn.convolve
    return {"convolve": convolve, "project": in_turn.project, "silu": silu}


def silu(x):
    """Multiplies x by its sigmoid; tf.nn.silu keeps each graph that it is traced in, and so its weights, for ever."""
    return x * tf.sigmoid(x)


def strategy():
    """Returns the `tf.distribute.Strategy` of the scope that this is in, or None."""
    return tf.distribute.get_strategy() if tf.distribute.has_strategy() else None


def use_compile_cache(folder):
    os.environ.setdefault("TF_XLA_FLAGS", f"--tf_xla_persistent_cache_directory={folder}")  # read with the first device
