"""Defines the CLIP text encoder, which turns tokens into a context."""

import keras
from keras import layers, ops

from keras_diffusion.architectures import SD14
from keras_diffusion.networks.layers import Attention, dense, embedding, layer_norm
from keras_diffusion.networks.network import Network, construction

ACTIVATIONS = {
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "gelu": lambda x: ops.gelu(x, approximate=False),
}


@keras.saving.register_keras_serializable("keras_diffusion")
class TextEncoder(Network):
    """Turns tokens into the context that guides the diffusion model.

    Source: `CLIPTextModel` of transformers (Radford et al. 2021).

    Args:
        max_length: Number of tokens of a prompt, padding included; None takes the architecture's.
        vocab_size: Number of known tokens; None takes the architecture's.
        architecture: The `Architecture` to build.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model; None takes `part`.
        part: Which text encoder of the architecture to build, "text_encoder" or "text_encoder_2".

    Call arguments:
        tokens: (b, max_length) integers, the tokenizer's.
        positions: (b, max_length) or (1, max_length) integers, 0, 1, 2, …

    Returns:
        Context (b, max_length, width). Where the shape is `penultimate`, a list: the context, and the pooled vector
        (b, projection), or (b, width) without a projection.
    """

    def __init__(
        self,
        max_length=None,
        vocab_size=None,
        architecture=SD14,
        initialize=True,
        dtype=None,
        name=None,
        part="text_encoder",
    ):
        shape = getattr(architecture, part)
        max_length, vocab_size = max_length or shape.length, vocab_size or shape.vocabulary
        with construction(dtype, initialize):
            tokens = keras.Input((max_length,), dtype="int32", name="tokens")
            positions = keras.Input((max_length,), dtype="int32", name="positions")
            x = layers.Add()(
                [
                    embedding(vocab_size, shape.width, "embeddings_token_embedding")(tokens),
                    embedding(shape.length, shape.width, "embeddings_position_embedding")(positions),
                ]
            )
            states = [x]
            for i in range(shape.layers):
                states.append(EncoderLayer(shape.heads, shape.activation, name=f"encoder_layers_{i}")(states[-1]))
            context = layer_norm("final_layer_norm")(states[-1])
            if shape.penultimate:
                pooled = AtEndOfText()(context, tokens)
                pooled = dense(shape.projection, "text_projection", False)(pooled) if shape.projection else pooled
                context = [states[-2], pooled]
        options = {"max_length": max_length, "vocab_size": vocab_size, "part": part}
        super().__init__([tokens, positions], context, architecture, name or part, **options)
        self.part = part

    def skip(self, inputs, blocks):
        """Computes the context without the last blocks, but with the final layer normalisation if there is one.

        Source: diffusers' `clip_skip`. A1111 counts from 1: its "Clip skip" is `blocks` + 1.

        Args:
            inputs: The list [tokens, positions].
            blocks: How many blocks to leave out, 0 to layers - 1; an int, also as a tensor. Where the shape is
                `penultimate`, the last block is left out anyway, and the pooled vector is that of all blocks.

        Returns:
            What the network itself returns.
        """
        tokens, positions = inputs
        x = self.get_layer("embeddings_token_embedding")(tokens)
        x = x + self.get_layer("embeddings_position_embedding")(positions)
        shape = getattr(self.architecture, self.part)
        states = [x, *(x := self.get_layer(f"encoder_layers_{i}")(x) for i in range(shape.layers))]
        context = ops.take(ops.stack(states), shape.layers - shape.penultimate - blocks, axis=0)
        if shape.penultimate:
            return [context, self(inputs)[1]]
        return self.get_layer("final_layer_norm")(context)


class AtEndOfText(keras.layers.Layer):
    """Takes the vector (b, width) of each context (b, n, width) at the first end of text of its tokens (b, n).

    Prompts begin with the start of text, and the end of text is the number after it in every part of CLIP's vocabulary.
    """

    def call(self, context, tokens):
        end = ops.argmax(ops.cast(ops.equal(tokens, tokens[:, :1] + 1), "int32"), axis=1)
        return ops.take_along_axis(context, end[:, None, None], axis=1)[:, 0]

    def compute_output_shape(self, context_shape, tokens_shape):
        return (context_shape[0], context_shape[-1])


class EncoderLayer(keras.layers.Layer):
    """Applies self-attention and a two-layer perceptron, each normalised before and with a residual."""

    def __init__(self, heads, activation, hidden=None, causal=True, **kwargs):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.layer_norm1, self.layer_norm2 = layer_norm("layer_norm1"), layer_norm("layer_norm2")
        self.self_attn = Attention(heads, qkv_bias=True, causal=causal, name="self_attn")
        self.activation = ACTIVATIONS[activation]

    def build(self, x_shape):
        width, hidden = x_shape[-1], self.hidden or 4 * x_shape[-1]
        self.mlp_fc1, self.mlp_fc2 = dense(hidden, "mlp_fc1"), dense(width, "mlp_fc2")
        for layer in (self.layer_norm1, self.self_attn, self.layer_norm2, self.mlp_fc1):
            layer.build(x_shape)
        self.mlp_fc2.build((*x_shape[:-1], hidden))

    def call(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp_fc2(self.activation(self.mlp_fc1(self.layer_norm2(x))))

    def compute_output_shape(self, x_shape):
        return x_shape
