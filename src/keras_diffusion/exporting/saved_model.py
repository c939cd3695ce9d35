"""Writes the whole loop as one SavedModel, which TensorFlow and TF Serving run without Keras."""

import tensorflow as tf

from keras_diffusion.engines.stages import Conditions, Rows, decode, denoise, encode, encode_image
from keras_diffusion.exporting.inputs import EXTRA, write_description
from keras_diffusion.networks.network import keras_settings
from keras_diffusion.networks.timesteps import timestep_frequencies
from keras_diffusion.sampling.recurrence import COLUMNS, HISTORY, T


def write(folder, parts):
    """Writes the SavedModel, and beside it what `inputs.export_inputs` reads.

    Args:
        folder: An empty folder.
        parts: `export.Parts`.

    Raises:
        ValueError: If the diffusion model sees more than latents, as one for inpainting does.
    """
    shape = parts.architecture.diffusion_model
    if shape.in_channels > parts.architecture.autoencoder.latent_channels:
        raise ValueError(
            "A model for inpainting sees more than latents; export it as 'onnx' or 'openvino'. "
            f"Received: format='saved_model', a diffusion model of {shape.in_channels} input channels"
        )
    module = tf.Module()
    module.weights = [variable.value for network in parts.networks.values() for variable in network.variables]
    signatures = {
        "serving_default": _draw(parts.architecture, parts.size, **parts.networks),
        "encode_image": _encode(parts.size, parts.networks["image_encoder"]),
    }
    with keras_settings():
        tf.saved_model.save(module, folder, signatures)
    write_description(folder / EXTRA, parts)


def _draw(architecture, size, text_encoder, diffusion_model, decoder, **others):
    """Makes the function that draws images; its inputs are those of `inputs.export_inputs`."""
    channels, length = architecture.autoencoder.latent_channels, architecture.text_encoder.length
    latent = (*architecture.autoencoder.latent_size(*size), channels)
    frequencies = timestep_frequencies(architecture.diffusion_model.frequencies)
    columns = [None, len(COLUMNS)]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, length], "int32", "tokens"),
            tf.TensorSpec([None, length], "int32", "negative_tokens"),
            tf.TensorSpec([None, *latent], "float32", "latents"),
            tf.TensorSpec(columns, "float32", "table"),
            tf.TensorSpec([None, None, *latent], "float32", "noise"),
            tf.TensorSpec([None], "float32", "guidance"),
        ],
        autograph=False,
    )
    def draw(tokens, negative_tokens, latents, table, noise, guidance):
        context = encode(text_encoder, tf.concat([negative_tokens, tokens], 0))

        def guided(inputs):
            latents, embedding, context = inputs
            prediction = diffusion_model([tf.concat([latents, latents], 0), embedding, context])
            negative, positive = tf.split(tf.cast(prediction, "float32"), 2)
            return negative + guidance[:, None, None, None] * (positive - negative)

        angles = table[:, T, None] * frequencies
        rows = Rows(table, None, tf.concat([tf.cos(angles), tf.sin(angles)], -1), noise)
        history = tf.zeros([HISTORY, tf.shape(latents)[0], *latent])
        latents, _ = denoise(guided, latents, history, tf.shape(table)[0], rows, Conditions(context, guidance))
        return {"images": tf.cast(tf.round(decode(decoder, latents)), "uint8")}

    return draw


def _encode(size, image_encoder):
    """Makes the function that turns images into latents to start from."""

    @tf.function(input_signature=[tf.TensorSpec([None, *size, 3], "uint8", "images")], autograph=False)
    def encode(images):
        return {"latents": encode_image(image_encoder, tf.cast(images, "float32") / 127.5 - 1.0)}

    return encode
