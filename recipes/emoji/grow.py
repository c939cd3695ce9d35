"""Gives the autoencoder of the model "emoji" a level more, so that its latents are drawn at 128×128.

    python recipes/emoji/grow.py --scenes scenes.npz --state grown.state --output grown.npz

The new decoder learns images of 128×128 from the latents that the old encoder makes of them at half their size; the new
encoder learns those latents from the images. So the diffusion model that knows the latents draws 128×128 at once. What
both have in common with the old ones stays as it is; only the new level learns.
"""

import argparse
import os
from dataclasses import replace

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import clock
import keras
import numpy as np
import training
from keras import ops

from keras_diffusion import architectures
from keras_diffusion.checkpoints.layouts.diffusers_folder import DiffusersFolder
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.image_encoder import ImageEncoder

OLD = architectures.EMOJI
LARGER = replace(
    OLD,
    name="emoji_128",
    autoencoder=replace(OLD.autoencoder, channels=(16, *OLD.autoencoder.channels)),
    image_size=128,
)
BATCH = 8
LATENT_NOISE = 0.05
SOME = slice(None, None, 31)  # images that the quality is measured with


class DecoderTrainer(keras.Model):
    """Learns images from the old latents: L1, L1 of differences, and squared error of 4×4 averages."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder
        self.seed = keras.random.SeedGenerator(0)
        self.built = True

    def call(self, latents):
        return self.decoder(latents + LATENT_NOISE * keras.random.normal(ops.shape(latents), seed=self.seed))

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        error = ops.subtract(y_pred, y)
        rows, columns = error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]
        edges = ops.mean(ops.abs(rows)) + ops.mean(ops.abs(columns))
        return ops.mean(ops.abs(error)) + 0.5 * edges + ops.mean(ops.square(ops.average_pool(error, 4)))


class EncoderTrainer(keras.Model):
    """Learns the old latents from images: their squared distance."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.built = True

    def call(self, images):
        return self.encoder(images)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return ops.mean(ops.square(ops.subtract(y_pred, y)))


def networks(architecture, initialize=True):
    """Returns the image encoder and the decoder of an architecture."""
    options = {"architecture": architecture, "initialize": initialize}
    return ImageEncoder(**options), Decoder(**options)


def grow(old, new):
    """Copies the weights of networks to those with a level more, and freezes them: all that fit there.

    Args:
        old: The image encoder and the decoder of the smaller autoencoder.
        new: Those of the larger one.
    """
    for small, large in zip(old, new, strict=True):
        places = {v.path: v for v in large.variables}
        for variable in small.variables:
            path = variable.path
            if path.startswith("down_blocks_"):  # of the encoder, in which the new level comes first
                level, rest = path.removeprefix("down_blocks_").split("_", 1)
                path = f"down_blocks_{int(level) + 1}_{rest}"
            if path in places and places[path].shape == variable.shape:
                places[path].assign(variable)
                places[path].trainable = False


def scaled(images):
    return images.astype("float32") / 127.5 - 1.0


def half(images):
    """Returns images (n, h, w, c) at half their size."""
    n, height, width, channels = images.shape
    return images.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def encode(encoder, images, size=1):
    """Returns the latents of uint8 images, each side divided by `size` before."""
    parts = (scaled(images[start : start + 64]) for start in range(0, len(images), 64))
    return np.concatenate([np.asarray(encoder(half(part) if size == 2 else part)) for part in parts])


def decibels(decoder, latents, images):
    """Returns the mean peak signal-to-noise ratio of decoded latents."""
    error = np.square(np.asarray(decoder(latents)).clip(-1, 1) - scaled(images)).mean((1, 2, 3)) / 4
    return float(np.mean(-10 * np.log10(error)))


def learn(trainer, inputs, targets, count, minutes, state):
    """Trains on pairs that functions of indices return, chosen anew in every step."""
    optimizer = training.Muon(2e-3, weight_decay=1e-4, adam_weight_decay=0.0, global_clipnorm=1.0)
    trainer.compile(optimizer, jit_compile=False)

    def batch(step):
        chosen = np.random.default_rng([1, step]).integers(count, size=BATCH)
        return inputs(chosen), targets(chosen)

    clock.train(trainer, batch, minutes, 2e-3, state)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", required=True, help="what collect.py wrote")
    parser.add_argument("--state", required=True, help="what the names of the files for resuming begin with")
    parser.add_argument("--output", required=True)
    parser.add_argument("--preset", default="weights/emoji", help="the model folder to start from")
    parser.add_argument("--minutes", type=float, nargs=2, default=(30, 10), help="of the decoder and of the encoder")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    with np.load(arguments.scenes) as scenes:
        images = scenes["images"]
    old, new = networks(OLD), networks(LARGER)
    DiffusersFolder(arguments.preset).load(image_encoder=old[0], decoder=old[1])
    grow(old, new)
    latents = encode(old[0], images, size=2)
    write(arguments.output, latents)
    print(f"the old decoder at 64×64: {decibels(old[1], latents[SOME], half(images[SOME])):.2f} dB", flush=True)

    def pixels(chosen):
        return scaled(images[chosen])

    encoder, decoder = new
    minutes, state = arguments.minutes, arguments.state
    learn(DecoderTrainer(decoder), latents.__getitem__, pixels, len(images), minutes[0], f"{state}.decoder.npz")
    write(arguments.output, latents, encoder, decoder)
    print(f"decoder: {decibels(decoder, latents[SOME], images[SOME]):.2f} dB of the old latents", flush=True)
    learn(EncoderTrainer(encoder), pixels, latents.__getitem__, len(images), minutes[1], f"{state}.encoder.npz")
    write(arguments.output, latents, encoder, decoder)
    own = encode(encoder, images[SOME])
    error = np.sqrt(np.mean(np.square(own - latents[SOME])))
    print(f"encoder: {error:.3f} away from the old latents; both {decibels(decoder, own, images[SOME]):.2f} dB")


def write(path, latents, *networks):
    weights = {f"{network.name}/{v.path}": np.asarray(v) for network in networks for v in network.variables}
    training.write(path, latents=latents, **weights)


if __name__ == "__main__":
    main()
