"""The small random ControlNets that are compared with diffusers: their shapes, weights and images.

Two for each diffusion model, "first" and "second". As in `networks`, a weight is drawn from a stream that its name
seeds.
"""

import re
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from keras_diffusion.architectures import EMOJI, TINY
from keras_diffusion.checkpoints.layouts.diffusers_configs import to_diffusers
from keras_diffusion.checkpoints.mapping.layer_tables import LAYOUTS
from keras_diffusion.checkpoints.mapping.names import controlnet

try:
    from . import networks
except ImportError:  # a script's own folder is no package
    import networks

SCALES = {"first": 0.8, "second": -1.5}  # of what the ControlNets say together
EVERY = 4  # of so many channels of a residual, the first is in the fixture
READERS, WRITERS = re.compile(r"controlnet_cond_embedding\b"), re.compile(r"controlnet_(down_blocks|mid_block)\b")


class Case(NamedTuple):
    """A diffusion model and the options of its ControlNets."""

    unet: networks.Case
    conditioning: tuple[int, ...]
    channel_order: str
    in_channels: int

    @property
    def name(self):
        return self.unet.name

    @property
    def architecture(self):
        shape = replace(self.unet.architecture.diffusion_model, in_channels=self.in_channels)
        return replace(self.unet.architecture, diffusion_model=shape)


def case(name, conditioning, channel_order="rgb", in_channels=4, autoencoder=EMOJI.autoencoder):
    unet = next(case for case in networks.cases("diffusion_model") if case.name == name)
    unet = unet._replace(architecture=replace(unet.architecture, autoencoder=autoencoder))
    return Case(unet, conditioning, channel_order, in_channels)


CASES = [
    case("sd1", (4, 6, 8, 10), autoencoder=TINY.autoencoder),
    case("sd2", (4, 6, 8)),
    case("inpainting", (3, 5, 4), "bgr"),
]


def config(case):
    """The contents of a ControlNet's config.json."""
    unet = to_diffusers(case.architecture)["unet"]
    for option in ("out_channels", "up_block_types", "sample_size"):
        del unet[option]
    return {
        **unet,
        "_class_name": "ControlNetModel",
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": list(case.conditioning),
        "controlnet_conditioning_channel_order": case.channel_order,
        "global_pool_conditions": False,
    }


def weight(controlnet, name, shape):
    """The tensor that diffusers calls `name`, of the ControlNet of that name."""
    gain = 2.0 if READERS.search(name) else 0.02 if WRITERS.search(name) else None
    if gain:
        return gain * np.float32(3 / np.prod(shape[1:])) ** 0.5 * networks.uniform(f"{controlnet}.{name}", shape)
    return networks.weight(f"{controlnet}.{name}", shape)


def tensors(case, name):
    """The contents of a ControlNet's file of weights."""
    return {
        tensor: weight(name, tensor, shape) for tensor, shape in shapes(case.architecture, case.conditioning).items()
    }


@cache
def shapes(architecture, conditioning):
    """The shapes of the tensors in a ControlNet's file, by our table of names."""
    from keras_diffusion.networks.controlnet import ControlNet

    network = ControlNet(architecture=architecture, conditioning=conditioning, initialize=False)
    ours = {variable.path: variable.shape for variable in network.variables}
    rows = controlnet(architecture, conditioning)
    assert ours.keys() == {row.path for row in rows}
    return {row.diffusers: LAYOUTS[row.layout][1](np.empty(ours[row.path], "bool")).shape for row in rows}


def image(case, name):
    """The image that a ControlNet reads, (b, h, w, 3) in [0, 1]."""
    call, factor = case.unet.calls[0], case.architecture.autoencoder.factor
    return networks.uniform(f"image.{name}", (len(call["timesteps"]), *(factor * n for n in call["size"]), 3), 0)


def places(case):
    """Where a ControlNet adds: the number of each skip connection, and the middle."""
    shape = case.architecture.diffusion_model
    return [*range((shape.blocks + 1) * len(shape.levels)), "middle"]


def features(case):
    """What an adapter adds at the end of every level that has attention and of the last one."""
    call = case.unet.calls[0]
    size = np.array(call["size"])
    for i, level in enumerate(case.architecture.diffusion_model.levels):
        yield networks.uniform(f"feature.{i}", (len(call["timesteps"]), *-(-size // 2**i), level.channels))


def expected():
    """The outputs of the reference, by case and name."""
    with np.load(networks.HERE / "controlnet.npz") as fixture:
        return dict(fixture)
