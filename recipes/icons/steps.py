"""What runs on the accelerator: training steps, many in a call, with all data there; encoding; drawing.

Every function of this module makes a function to compile. Weights are dicts of arrays, see `model.py`.
"""

import jax
import jax.numpy as jnp
import model
import muon
import numpy as np
from jax import lax

from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.sampling import samplers
from keras_diffusion.sampling.recurrence import A, B, P, Q, T
from keras_diffusion.sampling.schedules import noise_schedule

EMPTY = 0.1  # share of the captions left out, for classifier-free guidance
AVERAGE = 0.998  # of the weights that are kept
LATENT_NOISE = 0.05
SAMPLER = "dpmpp_2m"
NUM_STEPS = 25


def scaled(images):
    return images.astype("float32") / 127.5 - 1.0


def positions(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[-1], dtype="int32"), tokens.shape)


def training(loss, layout, batch):
    """Makes many training steps of a loss.

    Args:
        loss: Function of weights, data, the indices (batch,) of examples, and a key.
        layout: The `muon.Layout` of the weights.
        batch: Number of examples of a step.

    Returns:
        A function of a state, data, how many examples there are, the learning rates (steps,) and a key. It returns the
        state and float32 (3,): mean loss, loss of the last step, and share of the steps whose gradients were finite.
        The state has the weights, their moving average, and the optimizer's state.
    """

    def step(carry, rate, data, count):
        vector, average, state, key = carry
        key, pick, noise = jax.random.split(key, 3)
        indices = jax.random.randint(pick, (batch,), 0, count)
        value, gradients = jax.value_and_grad(loss)(layout.split(vector), data, indices, noise)
        vector, state, finite = muon.update(layout, vector, layout.join(gradients), state, rate)
        share = jnp.minimum(AVERAGE, (1 + state.step) / (10 + state.step))
        return (vector, average + (1 - share) * (vector - average), state, key), (value, finite)

    def steps(state, data, count, rates, key):
        carry, (losses, finite) = lax.scan(lambda c, rate: step(c, rate, data, count), (*state, key), rates)
        mean = jnp.where(finite, losses, 0.0).sum() / jnp.maximum(finite.sum(), 1)
        return carry[:3], jnp.stack([mean, losses[-1], finite.mean()])

    return steps


def first_state(layout, weights):
    """Returns the state to start training from."""
    vector = layout.join(weights)
    return vector, vector.copy(), muon.start(layout, vector)


def autoencoder_loss(networks):
    """L1, L1 of differences, squared error of 4×4 averages, and a light pull of the latents to unit scale."""
    encode, decode = (model.function(networks[name], name) for name in ("image_encoder", "decoder"))

    def loss(weights, data, indices, key):
        (images,) = data
        flip, noise = jax.random.split(key)
        x = scaled(images[indices])
        x = jnp.where(jax.random.bernoulli(flip, 0.5, (len(x), 1, 1, 1)), x[:, :, ::-1], x)
        latents = encode(weights, x).astype("float32")
        error = decode(weights, latents + LATENT_NOISE * jax.random.normal(noise, latents.shape)).astype("float32") - x
        rows, columns = error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]
        edges = jnp.mean(jnp.abs(rows)) + jnp.mean(jnp.abs(columns))
        coarse = jnp.mean(jnp.square(error.reshape(len(x), x.shape[1] // 4, 4, -1, 4, 3).mean((2, 4))))
        unit = jnp.mean(jnp.square(latents))
        return jnp.mean(jnp.abs(error)) + 0.5 * edges + coarse + 1e-3 * unit

    return loss


def diffusion_loss(networks, shape, empty_tokens):
    """Squared error of the velocity (Salimans & Ho 2022), less where the noise is weak.

    In terms of the denoised latents the weight is min(SNR + 1, 5): their SNR + 1 with the cap of Hang et al. 2023.
    Timesteps are drawn with a density that rises linearly, because the caption decides most where the noise is strong.
    """
    read, predict = (model.function(networks[name], name) for name in ("text_encoder", "diffusion_model"))
    schedule = jnp.asarray(noise_schedule(), "float32")
    embeddings = jnp.asarray(timestep_embedding(np.arange(len(schedule)), shape.frequencies))
    empty_tokens = jnp.asarray(empty_tokens)

    def loss(weights, data, indices, key):
        latents, tokens = data
        when, noisy, drop = jax.random.split(key, 3)
        x, tokens = latents[indices].astype("float32"), tokens[indices]
        tokens = jnp.where(jax.random.bernoulli(drop, EMPTY, (len(tokens), 1)), empty_tokens, tokens)
        timesteps = (len(schedule) * jnp.sqrt(jax.random.uniform(when, (len(x),)))).astype("int32")
        timesteps = jnp.minimum(timesteps, len(schedule) - 1)
        signal = schedule[timesteps][:, None, None, None]
        alpha, sigma = jnp.sqrt(signal), jnp.sqrt(1 - signal)
        noise = jax.random.normal(noisy, x.shape)
        context = read(weights, tokens, positions(tokens))
        velocity = predict(weights, alpha * x + sigma * noise, embeddings[timesteps], context).astype("float32")
        error = jnp.mean(jnp.square(velocity - (alpha * noise - sigma * x)), (1, 2, 3))
        weight = jnp.minimum(1.0, 5.0 * (1 - signal[:, 0, 0, 0]))  # 1 / (SNR + 1) = 1 - signal
        return jnp.mean(weight * error)

    return loss


def put():
    """Makes a function that writes rows into a buffer on the accelerator, from a place on."""

    def write(buffer, rows, start):
        return lax.dynamic_update_slice_in_dim(buffer, rows.astype(buffer.dtype), start, 0)

    return write


def encoding(networks, block, part):
    """Makes a function that encodes a block of a buffer of uint8 images, from a place on, `part` images at a time."""
    encode = model.function(networks["image_encoder"], "image_encoder")

    def latents(weights, images, start):
        parts = lax.dynamic_slice_in_dim(images, start, block, 0).reshape(-1, part, *images.shape[1:])
        found = lax.map(lambda images: encode(weights, scaled(images)).astype("float16"), parts)
        return found.reshape(-1, *found.shape[2:])

    return latents


def to_pixels(images):
    return jnp.round((images.astype("float32").clip(-1, 1) + 1) * 127.5).astype("uint8")


def reconstruction(networks):
    """Makes a function of weights and uint8 images that returns what the autoencoder makes of them."""
    encode, decode = (model.function(networks[name], name) for name in ("image_encoder", "decoder"))
    return lambda weights, images: to_pixels(decode(weights, encode(weights, scaled(images))))


def drawing(networks, shape, guidance):
    """Makes a function of weights, tokens, those of the empty prompt, and noise (n, h, w, c), that returns images.

    It runs the table of the library's sampler that the exported model names.
    """
    read, predict = (model.function(networks[name], name) for name in ("text_encoder", "diffusion_model"))
    decode = model.function(networks["decoder"], "decoder")
    table = samplers.build(SAMPLER, NUM_STEPS, prediction_type="v_prediction")
    rows = table.rows.astype("float32")
    embeddings = jnp.asarray(timestep_embedding(table.rows[:, T], shape.frequencies))

    def draw(weights, tokens, empty, noise):
        tokens = jnp.concatenate([jnp.broadcast_to(empty, tokens.shape), tokens])
        context = read(weights, tokens, positions(tokens))

        def step(carry, inputs):
            x, history = carry
            row, embedding = inputs
            embedding = jnp.broadcast_to(embedding, (len(tokens), len(embedding)))
            plain, guided = jnp.split(predict(weights, jnp.tile(x, (2, 1, 1, 1)), embedding, context), 2)
            plain, guided = plain.astype("float32"), guided.astype("float32")
            prediction = plain + guidance * (guided - plain)
            estimate = row[P] * x + row[Q] * prediction
            history = jnp.concatenate([estimate[None], history[:-1]])
            x = row[A] * x + jnp.tensordot(row[B:], history, 1)
            return (x, history), None

        history = jnp.zeros((rows.shape[1] - B, *noise.shape))
        start = noise * float(table.initial_scale)
        (x, _), _ = lax.scan(step, (start, history), (rows, embeddings))
        return to_pixels(decode(weights, x))

    return draw
