"""The small random networks that are compared with diffusers and transformers: their shapes, weights and inputs.

A weight is drawn from a stream that its name seeds, so a fixture holds nothing but outputs. The layers that write to a
residual stream draw numbers 0.01 times as large: every normalisation then sees variances near 1e-4, where an
epsilon of 1e-5 instead of 1e-6 shows, and the last one brings the output back to order 1.
"""

import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_diffusion import architectures
from keras_diffusion.architectures import EMOJI, AutoencoderShape, DiffusionModelShape, Level, TextEncoderShape
from keras_diffusion.checkpoints.mapping.layer_tables import LAYOUTS
from keras_diffusion.checkpoints.mapping.names import rows

HERE = Path(__file__).parent
WRITERS = re.compile(
    r"\b(token_embedding|position_embedding|out_proj|fc2|conv_in|conv1|conv2|time_emb_proj|proj_in|to_out\.0"
    r"|ff\.net\.2)\b"
)
CARRIERS = re.compile(r"\b(downsamplers|upsamplers|conv_shortcut|proj_out)\b")
GATES = re.compile(r"\b(fc1|ff\.net\.0\.proj)\b")  # wide, where activations bend


class Case(NamedTuple):
    """A network of one architecture and what it is called with, sizes in tokens, latents or pixels."""

    network: str
    name: str
    architecture: architectures.Architecture
    calls: tuple[dict, ...]


def text(name, *calls, **shape):
    return Case("text_encoder", name, replace(EMOJI, text_encoder=TextEncoderShape(**shape)), calls)


def unet(name, levels, *calls, **shape):
    shape = DiffusionModelShape(levels=tuple(Level(*level) for level in levels), **shape)
    return Case("diffusion_model", name, replace(EMOJI, diffusion_model=shape), calls)


def vae(name, *calls, **shape):
    architecture = replace(EMOJI, autoencoder=AutoencoderShape(**shape))
    return [Case(network, name, architecture, calls) for network in ("image_encoder", "decoder")]


CASES = [
    text(
        "sd1",
        {"batch": 1, "words": 9},
        {"batch": 2, "words": 9, "clip_skip": 1},
        {"batch": 1, "words": 3, "clip_skip": 2},
        width=32,
        layers=3,
        heads=4,
    ),
    text("sd2", {"batch": 2, "words": 20, "length": 32}, width=48, layers=2, heads=6, activation="gelu", pad_token=0),
    text("emoji", {"batch": 1, "words": 3, "length": 20}, **vars(EMOJI.text_encoder)),
    text("short", {"batch": 3, "words": 2, "length": 7}, width=16, layers=1, heads=1),
    unet(
        "sd1",
        ((32, 4, 1), (64, 4, 1), (96, 4, 1), (96, 4, 0)),
        {"size": (8, 8), "timesteps": (981, 1), "length": 77},
        {"size": (5, 7), "timesteps": (999, 0, 261), "length": 5},
        context=24,
    ),
    unet(
        "sd2",
        ((16, 2, 1), (32, 4, 1), (64, 8, 1), (64, 8, 0)),
        {"size": (4, 8), "timesteps": (21, 741), "length": 77},
        context=40,
        groups=8,
        linear_projection=True,
    ),
    unet(
        "inpainting",
        ((32, 2, 1), (64, 2, 0)),
        {"size": (4, 4), "timesteps": (500,), "length": 4},
        context=16,
        in_channels=9,
        blocks=1,
    ),
    unet(
        "emoji",
        EMOJI.diffusion_model.levels,
        {"size": (16, 16), "timesteps": (300,), "length": 77},
        context=EMOJI.diffusion_model.context,
        blocks=EMOJI.diffusion_model.blocks,
    ),
    unet(
        "small_emoji",
        ((32, 2, 0), (32, 2, 1), (64, 2, 1)),
        {"size": (7, 6), "timesteps": (999, 40), "length": 6},
        {"size": (4, 12), "timesteps": (1,), "length": 1},
        context=32,
        blocks=1,
    ),
    unet(
        "deep",
        ((16, 1, 0), (16, 2, 1), (32, 4, 2)),
        {"size": (8, 4), "timesteps": (77,), "length": 9},
        context=8,
        groups=4,
        blocks=1,
        middle=(2, 0),
    ),
    *vae("sd", {"batch": 2, "size": (2, 3)}, {"batch": 1, "size": (5, 4)}, channels=(16, 32, 64, 64), groups=8),
    *vae("emoji", {"batch": 2, "size": (6, 4)}, **vars(EMOJI.autoencoder)),
    *vae("wide", {"batch": 1, "size": (3, 2)}, channels=(32, 64), groups=8, latent_channels=8, scaling_factor=2.0),
]


def uniform(name, shape, low=-1.0, high=1.0):
    """The same numbers everywhere: the stream of RandomState is frozen."""
    return np.random.RandomState(zlib.crc32(name.encode())).uniform(low, high, shape).astype("float32")


def weight(name, shape):
    """The tensor that diffusers or transformers calls `name`, in the shape they store it."""
    gain = 0.01 if WRITERS.search(name) else 2.0 if GATES.search(name) else 1.0
    if name.endswith("embedding.weight"):
        return gain * uniform(name, shape)
    if name.endswith("bias"):
        return (0.01 if CARRIERS.search(name) else gain) * uniform(name, shape, -0.5, 0.5)
    if len(shape) == 1:
        return uniform(name, shape, 0.5, 1.5)
    return gain * np.float32(3 / np.prod(shape[1:])) ** 0.5 * uniform(name, shape)


def inputs(case, call):
    """Returns the inputs of one call in the order of the network's arguments; a timestep is still a number."""
    return INPUTS[case.network](case.architecture, **call)


def text_encoder_inputs(architecture, batch, words, length=77, clip_skip=None):
    """Start, as many random words as asked for, end, and padding; their positions; the blocks to leave out, if any."""
    shape = architecture.text_encoder
    tokens = np.full((batch, length), shape.pad_token, "int32")
    tokens[:, 0], tokens[:, words + 1] = shape.vocabulary - 2, shape.vocabulary - 1
    tokens[:, 1 : words + 1] = uniform("tokens", (batch, words), 0, shape.vocabulary - 2)
    positions = np.arange(length, dtype="int32")[None]
    return (tokens, positions) if clip_skip is None else (tokens, positions, np.array(clip_skip, "int32"))


def diffusion_model_inputs(architecture, size, timesteps, length):
    shape, batch = architecture.diffusion_model, len(timesteps)
    latent = uniform("latent", (batch, *size, shape.in_channels), -2, 2)
    return latent, np.array(timesteps), uniform("context", (batch, length, shape.context), -2, 2)


def image_encoder_inputs(architecture, batch, size):
    factor = architecture.autoencoder.factor
    return (uniform("image", (batch, factor * size[0], factor * size[1], 3)),)


def decoder_inputs(architecture, batch, size):
    return (uniform("latents", (batch, *size, architecture.autoencoder.latent_channels), -2, 2),)


INPUTS = {
    "text_encoder": text_encoder_inputs,
    "diffusion_model": diffusion_model_inputs,
    "image_encoder": image_encoder_inputs,
    "decoder": decoder_inputs,
}


def cases(network):
    return [case for case in CASES if case.network == network]


def fill(model, network, architecture):
    """Gives every variable of one of our networks the weight of its name."""
    variables = {variable.path: variable for variable in model.variables}
    for row in rows(network, architecture):
        stored, ours = LAYOUTS[row.layout][::-1]
        variable = variables.pop(row.path)
        variable.assign(ours(weight(row.diffusers, stored(np.empty(variable.shape, "bool")).shape)))
    assert not variables, f"without a name: {sorted(variables)}"


def expected(case):
    """The outputs of the reference, one for each call."""
    with np.load(HERE / f"{case.network}.npz") as fixture:
        return [fixture[f"{case.name}_{i}"] for i in range(len(case.calls))]
