"""Trains a ControlNet (Zhang, Rao and Agrawala 2023, arXiv:2302.05543)."""

import math
import re

from keras import ops

from keras_diffusion.checkpoints.layouts import controlnet_files
from keras_diffusion.generation.controls import require_fitting
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.sampling import noise
from keras_diffusion.training.learners import Learner, require_full_precision

CONDITIONING = (16, 32, 96, 256)  # widths of the layers that read the image, of which a model takes the first
READING = re.compile(r"controlnet_cond_embedding_(conv_in|blocks_\d+)/kernel")  # paths of their kernels
START = 65  # purpose of the random numbers that those layers start from, see `noise.uniform`


class TrainedControlNet(Learner):
    """Trains a ControlNet; all weights of the model stay as they are.

    Args:
        model: The `StableDiffusion`.
        controlnet: The `ControlNet` to train further; None makes one whose layers are copies of the diffusion model's,
            and which adds nothing yet.
        channel_order: The order of channels that a new one takes images in, "rgb" or "bgr".
        seed: Where the layers that read the image start.

    Raises:
        TypeError, ValueError: If `controlnet` is none or is for another model, or `channel_order` is unknown.

    Attributes:
        controlnet: The `ControlNet`.
    """

    learning_rate = 1e-5  # examples/controlnet of diffusers
    conditioned = True

    def __init__(self, model, controlnet=None, channel_order="rgb", seed=0):
        super().__init__(model)
        if controlnet is None:
            controlnet = copied(model.diffusion_model, channel_order, seed)
        require_fitting("controlnet", controlnet, model.diffusion_model)
        require_full_precision(controlnet)
        controlnet.trainable = True
        self.controlnet = controlnet

    def predict(self, latent, timestep, context, inputs):
        conditions = [latent, timestep, context]
        residuals = self.controlnet([*conditions, inputs["image"]])
        return self.model.diffusion_model.steer(conditions, residuals)[0]

    def save(self, path, dtype="float32"):
        """Writes the ControlNet, see `controlnet_files.save`."""
        controlnet_files.save(path, self.controlnet, dtype)


def copied(diffusion_model, channel_order="rgb", seed=0):
    """Makes a ControlNet from a diffusion model: copies of its layers, and the ends zero.

    It computes as the diffusion model does, and stores its weights in float32.
    """
    architecture, policy = diffusion_model.architecture, diffusion_model.layers[-1].dtype_policy
    network = ControlNet(
        architecture=architecture,
        conditioning=CONDITIONING[: architecture.autoencoder.factor.bit_length()],
        channel_order=channel_order,
        initialize=False,
        dtype="float32" if policy.compute_dtype == "float32" else f"mixed_{policy.compute_dtype}",
    )
    values = {variable.path: variable for variable in diffusion_model.variables}
    for i, variable in enumerate(network.variables):
        if variable.path in values:
            variable.assign(ops.copy(values[variable.path]))  # a compiled step gives each array away
        elif READING.fullmatch(variable.path):
            bound = 1 / math.sqrt(math.prod(variable.shape[:-1]))  # as torch starts convolutions
            variable.assign((2 * noise.uniform(seed, i, variable.shape, START) - 1) * bound)
    return network
