"""Writes one .tflite file for each network, which LiteRT runs on phones."""

from math import prod

import keras
import numpy as np
import tensorflow as tf

from keras_diffusion.engines.stages import decode, encode, encode_image
from keras_diffusion.exporting.inputs import write_description
from keras_diffusion.networks.network import keras_settings
from keras_diffusion.networks.timesteps import timestep_frequencies

LARGEST = 2**31  # bytes of a .tflite file, less those of the graph
GRAPH = 2**26


def write(folder, parts):
    """Writes the networks for one image of one size, the configuration files and the tokenizer.

    Args:
        folder: An empty folder.
        parts: `export.Parts`.

    Raises:
        ValueError: If a network is too large for a file.
    """
    write_description(folder, parts)
    for name, network in parts.networks.items():
        count = sum(prod(variable.shape) for variable in network.variables)
        if count * np.dtype(parts.dtype).itemsize > LARGEST - GRAPH:
            raise ValueError(
                f"A .tflite file holds at most 2 GiB, and the {name} has {count:,} weights; export it with "
                f"dtype='float16'. Received: dtype={parts.dtype!r}"
            )
    for name, network in parts.networks.items():
        (folder / f"{name}.tflite").write_bytes(convert(network, parts.size, parts.dtype))


def convert(network, size, dtype):
    """Returns the contents of the file of a network for images of a size."""
    run, inputs = FUNCTIONS[network.name](network, size)
    module, variables = tf.Module(), network.variables
    # TensorFlow's own graph, from which LiteRT's is made, holds 2 GiB at most too.
    module.weights = [tf.Variable(tf.cast(variable.value, dtype)) for variable in variables]

    @tf.function(autograph=False)
    def stored(**given):
        values = [tf.cast(weight, "float32") for weight in module.weights]
        with keras.StatelessScope(zip(variables, values, strict=True), initialize_variables=False):
            return run(**given)

    with keras_settings():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([stored.get_concrete_function(**inputs)], module)
    if dtype == "float16":
        converter.optimizations, converter.target_spec.supported_types = [tf.lite.Optimize.DEFAULT], [tf.float16]
    return converter.convert()


def text_encoder(network, size):
    """Makes the function from tokens to the context, and the types of its inputs by name."""
    length = network.architecture.text_encoder.length
    return lambda tokens: {"context": encode(network, tokens)}, {"tokens": tf.TensorSpec([1, length], "int32")}


def diffusion_model(network, size):
    """Makes the function from latents, a timestep and the context to the prediction."""
    shape, text = network.architecture.diffusion_model, network.architecture.text_encoder
    latent = network.architecture.autoencoder.latent_size(*size)

    def predict(latents, timestep, context):
        angles = timestep[:, None] * timestep_frequencies(shape.frequencies)
        embedding = tf.concat([tf.cos(angles), tf.sin(angles)], -1)
        return {"prediction": tf.cast(network([latents, embedding, context]), "float32")}

    return predict, {
        "latents": tf.TensorSpec([1, *latent, shape.in_channels]),
        "timestep": tf.TensorSpec([1]),
        "context": tf.TensorSpec([1, text.length, text.width]),
    }


def decoder(network, size):
    """Makes the function from latents to images, uint8."""
    shape = network.architecture.autoencoder
    latents = tf.TensorSpec([1, *shape.latent_size(*size), shape.latent_channels])
    return lambda latents: {"images": tf.cast(tf.round(decode(network, latents)), "uint8")}, {"latents": latents}


def image_encoder(network, size):
    """Makes the function from images, uint8, to latents."""
    images = tf.TensorSpec([1, *size, 3], "uint8")

    def encode(images):
        return {"latents": encode_image(network, tf.cast(images, "float32") / 127.5 - 1.0)}

    return encode, {"images": images}


FUNCTIONS = {function.__name__: function for function in (text_encoder, diffusion_model, decoder, image_encoder)}
