"""How far our networks are from the references, as they are and with something in them changed."""

import re
from functools import cache

import keras
import numpy as np
import pytest

from keras_diffusion.networks.classes import CLASSES as NETWORKS
from keras_diffusion.networks.timesteps import timestep_embedding

from . import networks

TOLERANCE = 2e-5
# A fixture that shows a change on one backend shows it on every backend.
once = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="shown on TensorFlow")


@cache
def case(network, name):
    return next(case for case in networks.cases(network) if case.name == name)


def build(network, name, **arguments):
    """Our network of a case, with the case's weights."""
    if network == "text_encoder":
        arguments["max_length"] = case(network, name).calls[0].get("length", 77)
    architecture = case(network, name).architecture
    model = NETWORKS[network](architecture=architecture, initialize=False, **arguments)
    networks.fill(model, network, architecture)
    return model


built = cache(build)


def compiled(model):
    """The model as a function, on JAX as one program: to compile each operation by itself takes twice as long."""
    if keras.backend.backend() != "jax":
        return model
    import jax

    variables = [[x.value for x in found] for found in (model.trainable_variables, model.non_trainable_variables)]
    program = jax.jit(lambda variables, inputs: model.stateless_call(*variables, inputs)[0])
    return lambda inputs: program(variables, inputs)


def evaluate(model, network, name):
    """Our outputs, one for each call of a case."""
    run = compiled(model)
    for call in case(network, name).calls:
        arguments = list(networks.inputs(case(network, name), call))
        if network == "diffusion_model":
            frequencies = case(network, name).architecture.diffusion_model.frequencies
            arguments[1] = timestep_embedding(arguments[1], frequencies)
        if "clip_skip" in call:
            yield keras.ops.convert_to_numpy(model.skip(arguments[:2], arguments[2]))
        else:
            yield keras.ops.convert_to_numpy(run(arguments if len(arguments) > 1 else arguments[0]))


def error(network, name, model=None):
    """The largest deviation of any output of a case."""
    outputs = list(evaluate(model or built(network, name), network, name))
    expected = networks.expected(case(network, name))
    assert [output.shape for output in outputs] == [output.shape for output in expected]
    return max(np.abs(ours - theirs).max() for ours, theirs in zip(outputs, expected, strict=True))


def shows(network, name, model=None):
    """Whether a change to the network is beyond what parity allows."""
    return not error(network, name, model) < 1e-4


def setting(pattern, attribute, value):
    """A change: every layer whose path matches has another value of an attribute."""

    def change(monkeypatch, model):
        layers = [layer for layer in model._flatten_layers() if re.search(pattern, layer.path or "")]
        assert layers
        for layer in layers:
            assert getattr(layer, attribute) != value
            monkeypatch.setattr(layer, attribute, value)

    return change


def patching(owner, attribute, value):
    """A change: a function or method is another one."""
    return lambda monkeypatch, model: monkeypatch.setattr(owner, attribute, value)
