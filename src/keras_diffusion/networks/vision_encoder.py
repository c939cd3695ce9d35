"""Defines the CLIP vision encoder, which turns an image into features for image prompts."""

import keras
from keras import ops

from keras_diffusion.networks.layers import dense, layer_norm
from keras_diffusion.networks.network import construction, kernel_initializer
from keras_diffusion.networks.text_encoder import EncoderLayer

HIDDEN, EMBEDDING = 0, 1  # the outputs


def make_vision_encoder(shape, initialize=True, dtype=None, name="vision_encoder"):
    """Makes the network that turns an image into features.

    Source: `CLIPVisionModelWithProjection` of transformers (Radford et al. 2021, arXiv:2103.00020).

    Args:
        shape: A `VisionEncoderShape`.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Returns:
        A model of images (b, side, side, 3), normalised. It returns a list: what the last block reads, of the class
        token and all patches (b, 1 + n, width), and the embedding of the image (b, projection).
    """
    rows, patch = shape.side // shape.patch, shape.patch
    with construction(dtype, initialize):
        image = keras.Input((shape.side, shape.side, 3), name="image")
        x = ops.transpose(ops.reshape(image, (-1, rows, patch, rows, patch, 3)), (0, 1, 3, 2, 4, 5))
        x = dense(shape.width, "embeddings_patch_embedding", False)(
            ops.reshape(x, (-1, rows * rows, patch * patch * 3))
        )
        x = layer_norm("pre_layrnorm")(ClassAndPositions(name="embeddings")(x))
        states = [x]
        for i in range(shape.layers):
            name_of_block = f"encoder_layers_{i}"
            block = EncoderLayer(shape.heads, shape.activation, shape.hidden, causal=False, name=name_of_block)
            states.append(block(states[-1]))
        embedding = layer_norm("post_layernorm")(states[-1][:, 0])
        embedding = dense(shape.projection, "visual_projection", False)(embedding)
        return keras.Model(image, [states[-2], embedding], name=name)


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
