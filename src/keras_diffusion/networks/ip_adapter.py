"""Defines the IP-Adapter, which lets cross-attention attend to images beside the prompt.

Source: Ye et al. 2023, arXiv:2308.06721; tencent-ailab/IP-Adapter.
"""

from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import keras
from keras import layers, ops

from keras_diffusion.architectures import Crossing
from keras_diffusion.networks.layers import Attention, dense, layer_norm
from keras_diffusion.networks.network import Network, construction, kernel_initializer
from keras_diffusion.networks.operations import operation
from keras_diffusion.networks.vision_encoder import EMBEDDING, HIDDEN

HEAD = 64  # width of the resampler's heads


@dataclass(frozen=True)
class IPAdapterShape:
    """The shape of an IP-Adapter.

    Args:
        kind: A name in `KINDS`.
        features: Width of the vision encoder's output that it reads.
        context: Width of the tokens, that of the diffusion model's context.
        tokens: Number of tokens that stand for an image.
        width: Of the resampler ("plus") or of the hidden layer ("full").
        heads: Of the resampler.
        depth: Of the resampler.
        hidden: Width of the resampler's hidden layers.
        crossings: Those of the diffusion model's shape.
    """

    kind: str
    features: int
    context: int
    tokens: int
    width: int = 0
    heads: int = 0
    depth: int = 0
    hidden: int = 0
    crossings: tuple[Crossing, ...] = ()

    def get_config(self):
        """Returns the shape as JSON-serialisable data."""
        return asdict(self)


@keras.saving.register_keras_serializable("keras_diffusion")
class IPAdapter(Network):
    """Turns features of an image into keys and values for all cross-attention layers of a diffusion model.

    It runs once for each image: a step of the diffusion model takes its output, see `attend_to_images`.

    Args:
        architecture: An `IPAdapterShape`.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments:
        features: (b, features) or (b, n, features), the output of the vision encoder that the kind reads.

    Returns:
        The keys and the values of each layer, side by side: (b, tokens, the sum of twice the channels).
    """

    def __init__(self, architecture, initialize=True, dtype=None, name="ip_adapter"):
        kind = KINDS[architecture.kind]
        sides = (architecture.features,) if kind.output == EMBEDDING else (None, architecture.features)
        with construction(dtype, initialize):
            features = keras.Input(sides)
            tokens = kind.project(architecture, features)
            pairs = [
                dense(crossing.channels, f"{2 * i + 1}_{part}", False)(tokens)
                for i, crossing in enumerate(architecture.crossings)
                for part in ("to_k_ip", "to_v_ip")
            ]
            pairs = layers.Concatenate()(pairs)
        super().__init__(features, pairs, architecture, name)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        shape = dict(config["architecture"])
        shape["crossings"] = tuple(Crossing(*crossing) for crossing in shape["crossings"])
        return cls(**{**config, "architecture": IPAdapterShape(**shape)})


# ---- Features to tokens


def _plain(shape, x):
    x = ops.reshape(dense(shape.tokens * shape.context, "proj")(x), (-1, shape.tokens, shape.context))
    return layer_norm("norm")(x)


def _full(shape, x):
    x = ops.gelu(dense(shape.width, "proj_0")(x), approximate=False)
    return layer_norm("proj_3")(dense(shape.context, "proj_2")(x))


def _plus(shape, x):
    x = dense(shape.width, "proj_in")(x)
    latents = Latents(shape.tokens, name="latents")(x)
    for i in range(shape.depth):
        latents = ResamplerLayer(shape.heads, shape.hidden, name=f"layers_{i}")(latents, x)
    return layer_norm("norm_out")(dense(shape.context, "proj_out")(latents))


class Latents(keras.layers.Layer):
    """Repeats learned vectors (tokens, width) for every row of a batch (b, n, width)."""

    def __init__(self, tokens, **kwargs):
        super().__init__(**kwargs)
        self.tokens = tokens

    def build(self, x_shape):
        shape = (1, self.tokens, x_shape[-1])
        self.embeddings = self.add_weight(shape=shape, initializer=kernel_initializer.get(), name="embeddings")

    def call(self, x):
        return ops.broadcast_to(self.embeddings, (ops.shape(x)[0], self.tokens, x.shape[-1]))

    def compute_output_shape(self, x_shape):
        return (x_shape[0], self.tokens, x_shape[-1])


class ResamplerLayer(keras.layers.Layer):
    """Lets latents (b, t, w) attend to features (b, n, w) and themselves, and applies a two-layer perceptron.

    Source: Alayrac et al. 2022, arXiv:2204.14198, figure 5; `Resampler` of tencent-ailab/IP-Adapter.
    """

    def __init__(self, heads, hidden, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.causal, self.place, self.heads = hidden, False, None, heads
        self.norm1, self.norm2, self.ff_0 = (layer_norm(name) for name in ("norm1", "norm2", "ff_0"))

    split = Attention.split

    def build(self, latents_shape, x_shape):
        *sides, width = latents_shape
        inner = self.heads * HEAD
        self.to_q, self.to_kv = dense(inner, "to_q", False), dense(2 * inner, "to_kv", False)
        self.to_out, self.ff_1 = dense(width, "to_out", False), dense(self.hidden, "ff_1", False)
        self.ff_3 = dense(width, "ff_3", False)
        for layer in (self.norm1, self.norm2, self.ff_0, self.to_q, self.to_kv, self.ff_1):
            layer.build(latents_shape)
        self.to_out.build((*sides, inner))
        self.ff_3.build((*sides, self.hidden))

    def call(self, latents, x):
        x, normed = self.norm1(x), self.norm2(latents)
        pairs = ops.split(self.to_kv(ops.concatenate([x, normed], axis=1)), 2, axis=-1)
        out = operation("attend")(self, self.split(self.to_q(normed)), *map(self.split, pairs))
        latents = latents + self.to_out(ops.reshape(out, (-1, latents.shape[1], self.heads * HEAD)))
        return latents + self.ff_3(ops.gelu(self.ff_1(self.ff_0(latents)), approximate=False))

    def compute_output_shape(self, latents_shape, x_shape):
        return latents_shape


class Kind(NamedTuple):
    """A kind of IP-Adapter.

    Args:
        output: Which output of the vision encoder it reads.
        project: Function of an `IPAdapterShape` and features that makes the layers and returns the tokens.
    """

    output: int
    project: Any


KINDS = {"plain": Kind(EMBEDDING, _plain), "full": Kind(HIDDEN, _full), "plus": Kind(HIDDEN, _plus)}


# ---- In a step of the diffusion model


class ImagePrompts(NamedTuple):
    """Holds n image prompts for latents (b, h, w, c); everything is a number that may change between calls.

    Args:
        pairs: n arrays (k · b, tokens, width), what an `IPAdapter` returns, for each context.
        scales: (n, layers), how much each cross-attention layer follows each image.
        masks: An array (n, b, positions) for each level of the diffusion model: where each image acts.
    """

    pairs: Any
    scales: Any
    masks: Any


def attend_to_images(crossings, prompts):
    """Makes the operation "attend" of a diffusion model that also follows images.

    Each image has a softmax of its own, whose result is scaled and added (equation 5 of the paper).

    Args:
        crossings: The `crossings` of the diffusion model's shape.
        prompts: `ImagePrompts`.

    Returns:
        A function for `replace_operations`.
    """
    attend = operation("attend")
    edges = list(pairwise(accumulate((2 * crossing.channels for crossing in crossings), initial=0)))

    def decoupled(layer, query, key, value):
        out = attend(layer, query, key, value)
        if layer.place is None:
            return out
        start, stop = edges[layer.place]
        masks = prompts.masks[crossings[layer.place].level]
        for i, pairs in enumerate(prompts.pairs):
            pair = ops.split(ops.cast(pairs[..., start:stop], query.dtype), 2, axis=-1)
            weight = prompts.scales[i, layer.place] * masks[i]
            weight = ops.concatenate([weight] * (pairs.shape[0] // masks.shape[1]))[:, :, None, None]
            out = out + ops.cast(weight, out.dtype) * attend(layer, query, *map(layer.split, pair))
        return out

    return decoupled
