"""The networks of the model "icons": their shapes, their first weights, and the files that training leaves.

The weights of all networks are one dict of arrays; a name is "network/path of the variable".
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors

from keras_diffusion.architectures import Architecture, AutoencoderShape, DiffusionModelShape, Level, TextEncoderShape

FULL = Architecture(
    "icons",
    TextEncoderShape(width=256, layers=5, heads=4, vocabulary=12288, length=48),
    DiffusionModelShape(levels=(Level(128, 2, 0), Level(192, 3, 1), Level(192, 3, 0)), context=256),
    AutoencoderShape(channels=(32, 48, 96, 128), blocks=1, groups=8, scaling_factor=1.0),
    prediction_type="v_prediction",
    image_size=128,
)
TINY = replace(  # to rehearse on a processor
    FULL,
    text_encoder=TextEncoderShape(width=32, layers=2, heads=2, vocabulary=12288, length=48),
    diffusion_model=DiffusionModelShape(
        levels=(Level(32, 2, 0), Level(64, 2, 1), Level(64, 2, 0)), blocks=1, context=32
    ),
    autoencoder=AutoencoderShape(channels=(8, 8, 16, 16), blocks=1, groups=8, scaling_factor=1.0),
)
SHAPES = {"full": FULL, "tiny": TINY}
PIECE = 15 * 2**20  # bytes of a file at most
PARTS = {  # files → networks whose weights they hold
    "autoencoder": ("image_encoder", "decoder"),
    "diffusion": ("text_encoder", "diffusion_model"),
}
LOG_VARIANCE = -30.0  # of the latents, which nothing trains


def with_latents(architecture, channels):
    """Returns the architecture with another number of latent channels."""
    unet = replace(architecture.diffusion_model, in_channels=channels, out_channels=channels)
    return replace(
        architecture,
        diffusion_model=unet,
        autoencoder=replace(architecture.autoencoder, latent_channels=channels),
    )


def tokens(architecture, texts):
    """Returns int32 (n, length), the tokens of texts."""
    from keras_diffusion.prompts.tokenizer import SimpleTokenizer

    shape = architecture.text_encoder
    return SimpleTokenizer(shape.vocabulary).tokenize(texts, pad_token=shape.pad_token, length=shape.length)


def build(architecture, dtype):
    """Returns the networks by name, their weights zero."""
    from keras_diffusion.networks.decoder import Decoder
    from keras_diffusion.networks.diffusion_model import DiffusionModel
    from keras_diffusion.networks.image_encoder import ImageEncoder
    from keras_diffusion.networks.text_encoder import TextEncoder

    options = {"architecture": architecture, "initialize": False, "dtype": dtype}
    size, length = (architecture.image_size,) * 2, architecture.text_encoder.length
    return {
        "text_encoder": TextEncoder(length, **options),
        "diffusion_model": DiffusionModel(*size, length, **options),
        "image_encoder": ImageEncoder(*size, **options),
        "decoder": Decoder(*size, **options),
    }


def names(networks, part):
    """Returns the names of the weights of a part in `PARTS`."""
    return [f"{name}/{v.path}" for name in PARTS[part] for v in networks[name].variables]


def first_weights(networks, seed=0):
    """Returns float32 weights to start from: Glorot's, with every residual branch of the diffusion model zero."""
    generator, weights = np.random.default_rng(seed), {}
    for network, model in networks.items():
        for variable in model.variables:
            name, shape = f"{network}/{variable.path}", tuple(variable.shape)
            weights[name] = first_value(name, shape, generator).astype("float32")
    return weights


def first_value(name, shape, generator):
    kind = name.rpartition("/")[2]
    last = ("conv2/", "to_out/", "net_2/", "proj_out/", "conv_out/")
    if kind == "gamma":
        return np.ones(shape)
    if kind == "embeddings":
        return 0.02 * generator.standard_normal(shape)
    if kind != "kernel" or (name.startswith("diffusion_model/") and any(part in name for part in last)):
        return np.zeros(shape)
    area = np.prod(shape[:-2])
    limit = np.sqrt(6 / (area * (shape[-2] + shape[-1])))
    return generator.uniform(-limit, limit, shape)


def function(network, name):
    """Returns a pure function of the weights of all networks and of a network's inputs."""
    import keras

    from keras_diffusion.engines.jax import moments_from_one
    from keras_diffusion.networks.operations import replace_operations

    variables = network.variables
    paths = [f"{name}/{v.path}" for v in variables]

    def call(weights, *inputs):
        pairs = [(v, weights[path]) for v, path in zip(variables, paths, strict=True)]
        with keras.StatelessScope(pairs, initialize_variables=False), replace_operations(moments=moments_from_one):
            return network(list(inputs) if len(inputs) > 1 else inputs[0])

    return call


def standardized(weights, latents):
    """Returns the autoencoder's weights with mean and deviation of the latents folded into its 1×1 convolutions.

    The half of the encoder's output that is a log-variance, which nothing trained, becomes a constant.

    Args:
        weights: Dict of float32 arrays.
        latents: (n, h, w, channels), what the encoder makes of images.
    """
    latents = latents.astype("float64")
    mean, scale = latents.mean((0, 1, 2)), latents.std((0, 1, 2))
    channels = len(mean)
    kernel, bias = (np.array(weights[f"image_encoder/quant_conv/{kind}"], "float64") for kind in ("kernel", "bias"))
    kernel[:, :channels] /= scale
    kernel[:, channels:] = 0.0
    bias[:channels] = (bias[:channels] - mean) / scale
    bias[channels:] = LOG_VARIANCE
    folded = {"image_encoder/quant_conv/kernel": kernel, "image_encoder/quant_conv/bias": bias}
    kernel, bias = (np.array(weights[f"decoder/post_quant_conv/{kind}"], "float64") for kind in ("kernel", "bias"))
    folded |= {
        "decoder/post_quant_conv/kernel": scale[:, None] * kernel,
        "decoder/post_quant_conv/bias": bias + mean @ kernel,
    }
    return {**weights, **{name: value.astype("float32") for name, value in folded.items()}}


# Files


def write(folder, part, weights, about):
    """Writes weights as float16 in files of at most `PIECE` bytes, each whole or not at all.

    Args:
        folder: Where to write.
        part: A name in `PARTS`.
        weights: Dict of arrays.
        about: Dict of what to note in the files.
    """
    pieces, size = [{}], 0
    for name, value in weights.items():
        value = np.ascontiguousarray(np.asarray(value), "float16")
        if size + value.nbytes + 2**16 > PIECE:
            pieces.append({})
            size = 0
        pieces[-1][name] = value
        size += value.nbytes + 256  # the header's share
    note = {key: str(value) for key, value in about.items()}
    for number, piece in enumerate(pieces):
        path = Path(folder) / f"{part}_{number}.safetensors"
        safetensors.save_file(piece, f"{path}.part", note)
        os.replace(f"{path}.part", path)


def read(folder, part):
    """Returns what `write` wrote, as float32; an empty dict where there is nothing."""
    weights = {}
    for path in sorted(Path(folder).glob(f"{part}_*.safetensors")):
        weights |= safetensors.load_file(path)
    return {name: value.astype("float32") for name, value in weights.items()}
