"""Reuses the deep features of a diffusion model for several steps: DeepCache (Ma et al. 2023, arXiv:2312.00858)."""

import keras

from keras_diffusion.networks.controlnet import additions
from keras_diffusion.networks.graphs import refuse_own_call
from keras_diffusion.networks.network import Network


def deep_and_shallow(diffusion_model, controlnets=()):
    """Makes a whole and a shallow network that share the layers of a diffusion model and its ControlNets.

    Args:
        diffusion_model: A `DiffusionModel`.
        controlnets: A tuple of `ControlNet` and `T2IAdapter`.

    Returns:
        (whole, shallow). `whole` takes what the diffusion model takes, or with ControlNets what the network of
        `controlnet.with_controlnets` takes. It returns a list: the prediction, and the tensors to keep. These are the
        deep features and the residuals that ControlNets add to shallow layers. `shallow` takes a list, the inputs of
        the diffusion model and the kept tensors, and returns the prediction.

    Raises:
        TypeError: If the diffusion model has a `call` of its own.
    """
    refuse_own_call(diffusion_model)
    inputs, wanted = diffusion_model.inputs, [*diffusion_model.outputs, diffusion_model.deep]
    if controlnets:
        inputs, residuals, features = additions(diffusion_model, controlnets)
        count = len(diffusion_model.inputs)
        outputs = [*diffusion_model.steer(inputs[:count], residuals, features), *residuals[:1]]
        given = [keras.Input(x.shape[1:], dtype=x.dtype) for x in (*inputs[:count], *outputs[1:])]
        prediction = diffusion_model.reuse(given[:count], given[count], given[count + 1 :])
    else:  # two flat graphs, which every engine can run
        outputs, given, prediction = wanted, [*inputs, diffusion_model.deep], diffusion_model.outputs[0]
    architecture = diffusion_model.architecture
    return (
        Network(inputs, outputs, architecture, "whole_diffusion_model"),
        Network(given, prediction, architecture, "shallow_diffusion_model"),
    )
