"""The stages, each a function of a network and of arrays.

Whatever may differ between two images of the same size (prompt, seed, sampler, number of steps, guidance) is an array,
so that nothing is compiled twice.
"""

from functools import partial
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_diffusion.engines import strips
from keras_diffusion.networks.ip_adapter import attend_to_images
from keras_diffusion.networks.operations import replace_operations
from keras_diffusion.sampling.recurrence import HISTORY


def encode(network, tokens):
    """Tokens (b, n) → context (b, n, d), or a list of that and the pooled vector (b, p)."""
    return _floats(network(with_positions(tokens)))


def encode_skipping(network, tokens, clip_skip):
    """Tokens (b, n) → context without the last blocks, see `TextEncoder.skip`."""
    return _floats(network.skip(with_positions(tokens), clip_skip))


def _floats(outputs):
    return keras.tree.map_structure(lambda x: ops.cast(x, "float32"), outputs)


def with_positions(tokens):
    return [tokens, ops.broadcast_to(ops.arange(tokens.shape[1], dtype="int32"), ops.shape(tokens))]


def encode_image(network, image):
    """Images (b, h, w, 3) in [-1, 1] → latents."""
    return ops.cast(network(image), "float32")


def encode_image_prompt(network, x):
    """Runs a vision encoder or an IP-Adapter, and returns float32."""
    return _floats(network(x))


class Rows(NamedTuple):
    """Some rows of a sampler's table, k of them.

    Args:
        columns: (k, columns), see `samplers`.
        levels: (k, 2), the share of signal and of noise in the latents after each row.
        embeddings: (k, frequencies), of the timesteps.
        noise: (k, b, h, w, c), unit noise for the rows that add some.
        scales: (k, n), the scale of each of n ControlNets, for a network that takes them.
    """

    columns: Any
    levels: Any
    embeddings: Any
    noise: Any
    scales: Any = None


class Conditions(NamedTuple):
    """Holds what latents (b, h, w, c) are drawn from, the same in every row. None leaves out the computation.

    Args:
        context: (b, n, d), or (2b, n, d) with the negative prompts first, for guidance.
        guidance: (b,), how far to go from the negative prompt to the prompt (Ho & Salimans 2022, equation 6).
        rescale: (b,), how far to bring the deviation of a guided prediction back to that of the prompt's own (Lin et
            al. 2023, equations 15 and 16).
        extra: (b, h, w, k), what the network sees beside the latents.
        drawn: bool (b, h, w, 1), where latents are drawn; elsewhere they stay those of `known`.
        known: (b, h, w, c), the latents of a picture.
        noise: (b, h, w, c), the unit noise that covers them until the last row.
        controls: The image of each ControlNet, (b, height, width, 3) in [0, 1].
        shares: (1, r), or with a row for each of the context, the share that each of r residuals has of what a
            ControlNet says.
        added: (b, w), or (2b, w) as the context, for a network that takes an added vector.
        weights: (k, b), those of k prompts for each image, whose contexts follow those of the negative prompts: then
            `context` has (1 + k) · b rows (Liu et al. 2022, "Composable diffusion", arXiv:2206.01714, equation 11).
        images: `ImagePrompts`, whose pairs have as many rows as the context.
        guidance_embedding: (b, w), for a network that takes it.
    """

    context: Any
    guidance: Any
    rescale: Any = None
    extra: Any = None
    drawn: Any = None
    known: Any = None
    noise: Any = None
    controls: Any = ()
    added: Any = None
    weights: Any = None
    images: Any = None
    guidance_embedding: Any = None
    shares: Any = None


def denoise(network, latents, history, count, rows, conditions, kept=()):
    """Runs the first `count` rows of a sampler's table.

    Args:
        network: The diffusion model.
        latents: (b, h, w, c), x_n.
        history: (HISTORY, b, h, w, c), the latest estimates h, newest first.
        count: How many of the rows to run.
        rows: `Rows`.
        conditions: `Conditions`.
        kept: What the network takes besides, and another one returned (see `deep_cache`).

    Returns:
        The new `latents` and `history`; then what a network returns beside its prediction, of the only row.
    """
    context, guidance, rescale, extra, drawn, known, known_noise, controls, added, weights, *_ = conditions
    copies = (context.shape[0] or 1) // (latents.shape[0] or 1)

    def row_of(i, latents, history):
        _, p, q, a, d, *b = ops.unstack(rows.columns[i])
        seen = latents if extra is None else ops.concatenate([latents, extra], axis=-1)
        others = [x for x in (added, conditions.guidance_embedding) if x is not None]
        inputs = [seen, rows.embeddings[i][None], context, *others]
        if controls:
            inputs += [rows.scales[i][None, :, None] * conditions.shares[:, None], *controls]
        prediction, *keep = keras.tree.flatten(network([*inputs, *kept]))
        prediction = ops.cast(prediction, "float32")
        if copies > 1:
            negative, *positives = ops.split(prediction, copies)
            positive = positives[0] if weights is None else _composed(negative, positives, weights)
            prediction = negative + _column(guidance) * (positive - negative)
            if rescale is not None:
                deviation = _deviation(prediction)
                least = keras.config.epsilon() * ops.ones_like(deviation)  # a number alone hinders a CUDA graph
                shrink = _deviation(positive) / ops.maximum(deviation, least)
                prediction = prediction * (1.0 + _column(rescale) * (shrink - 1.0))
        history = ops.concatenate([(p * latents + q * prediction)[None], history[:-1]])
        latents = a * latents + d * rows.noise[i] + sum(b[j] * history[j] for j in range(HISTORY))
        if drawn is not None:
            alpha, sigma = ops.unstack(rows.levels[i])
            latents = ops.where(drawn, latents, alpha * known + sigma * known_noise)
        return latents, history, *keep

    if rows.columns.shape[0] == 1:
        return row_of(0, latents, history)
    return ops.fori_loop(0, count, lambda i, state: row_of(i, *state), (latents, history))


def denoise_with_images(network, latents, history, count, rows, conditions, kept=()):
    """Runs rows as `denoise` does, and follows image prompts."""
    crossings = network.architecture.diffusion_model.crossings
    with replace_operations(attend=attend_to_images(crossings, conditions.images)):
        return denoise(network, latents, history, count, rows, conditions, kept)


def _composed(negative, positives, weights):
    """The prediction for several prompts: the negative one, and the weighted differences from it."""
    return negative + sum(_column(w) * (x - negative) for w, x in zip(ops.unstack(weights), positives, strict=True))


def _column(x):
    return ops.reshape(x, (-1, 1, 1, 1))


def _deviation(x):
    return ops.std(x, axis=(1, 2, 3), keepdims=True)


def decode(network, latents):
    """Latents → images (b, h, w, 3) in 0…255, not yet rounded."""
    return (ops.hard_tanh(ops.cast(network(latents), "float32")) + 1.0) * 127.5  # the clip that a CUDA graph records


def decode_in_strips(network, latents):
    """Latents → images, with less memory, see `strips`."""
    return decode(partial(strips.decode, network), latents)


def upscale(network, images):
    """Images (b, h, w, 3) in [0, 1] → larger ones."""
    return ops.cast(network(images), "float32")
