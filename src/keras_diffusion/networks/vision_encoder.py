"""Defines the CLIP vision encoder, which turns an image into features for image prompts."""

import keras
from keras import ops

from keras_diffusion.architectures import VisionEncoderShape
from keras_diffusion.networks.layers import dense, layer_norm
from keras_diffusion.networks.network import Network, construction, kernel_initializer
from keras_diffusion.networks.text_encoder import EncoderLayer

HIDDEN, EMBEDDING = 0, 1  # the outputs


@keras.saving.register_keras_serializable("keras_diffusion")
class VisionEncoder(Network):
    """Turns an image into features that image prompts are made of.

    Source: `CLIPVisionModelWithProjection` of transformers (Radford et al. 2021, arXiv:2103.00020).

    Args:
        architecture: A `VisionEncoderShape`.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments:
        image: (b, side, side, 3), normalised.

    Returns:
        A list: what the last block reads, of the class token and all patches (b, 1 + n, width), and the embedding of
        the image (b, projection).
    """

    def __init__(self, architecture, initialize=True, dtype=None, name="vision_encoder"):
        shape = architecture
        rows, patch = shape.side // shape.patch, shape.patch
        with construction(dtype, initialize):
            image = keras.Input((shape.side, shape.side, 3), name="image")
            x = ops.transpose(ops.reshape(image, (-1, rows, patch, rows, patch, 3)), (0, 1, 3, 2, 4, 5))
            x = ops.reshape(x, (-1, rows * rows, patch * patch * 3))
            x = dense(shape.width, "embeddings_patch_embedding", False)(x)
            x = layer_norm("pre_layrnorm")(ClassAndPositions(name="embeddings")(x))
            states = [x]
            options = shape.heads, shape.activation, shape.hidden, False
            for i in range(shape.layers):
                states.append(EncoderLayer(*options, name=f"encoder_layers_{i}")(states[-1]))
            embedding = layer_norm("post_layernorm")(states[-1][:, 0])
            embedding = dense(shape.projection, "visual_projection", False)(embedding)
        super().__init__(image, [states[-2], embedding], architecture, name)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**{**config, "architecture": VisionEncoderShape(**config["architecture"])})


class ClassAndPositions(keras.layers.Layer):
    """Puts a class token before the patches (b, n, width), and adds an embedding of each position."""

    def build(self, x_shape):
        _, patches, width = x_shape
        weight = {"initializer": kernel_initializer.get()}
        self.class_embedding = self.add_weight(shape=(width,), name="class_embedding", **weight)
        self.position_embedding = self.add_weight(shape=(1 + patches, width), name="position_embedding", **weight)

    def call(self, x):
        first = ops.broadcast_to(ops.reshape(self.class_embedding, (1, 1, -1)), (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([first, x], axis=1) + self.position_embedding

    def compute_output_shape(self, x_shape):
        batch, patches, width = x_shape
        return (batch, 1 + patches, width)
