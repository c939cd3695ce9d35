"""Stage 2: trains the autoencoder, then writes it and the latents of all pictures.

python recipes/emoji/autoencoder.py --dataset emoji.npz --state autoencoder.state.npz --output autoencoder.npz
"""

import argparse
import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # a training step takes 0.95 s instead of 1.65 s

import dataset
import keras
import numpy as np
import training
from keras import ops

from keras_diffusion import architectures
from keras_diffusion.checkpoints.layouts.diffusers_folder import DiffusersFolder
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.image_encoder import ImageEncoder

BATCH = 32


class AutoencoderTrainer(keras.Model):
    """L1, L1 of differences, squared error of 4×4 averages, and a light pull of the latents to unit scale."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.seed = keras.random.SeedGenerator(0)
        self.built = True

    def call(self, images):
        latents = self.encoder(images)
        noise = keras.random.normal(ops.shape(latents), seed=self.seed)
        return latents, self.decoder(latents + 0.05 * ops.cast(noise, latents.dtype))

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        x = ops.cast(x, "float32")
        latents, images = (ops.cast(value, "float32") for value in y_pred)
        error = images - x
        rows, columns = error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]
        edges = ops.mean(ops.abs(rows)) + ops.mean(ops.abs(columns))
        coarse = ops.mean(ops.square(ops.average_pool(error, 4)))
        unit = ops.mean(ops.square(latents))
        return ops.mean(ops.abs(error)) + 0.5 * edges + coarse + 1e-3 * unit


def standardize(encoder, decoder, latents):
    """Gives the latents mean 0 and variance 1 by folding both into the 1×1 convolutions between the two halves.

    The half of the encoder's output that is a log-variance, which nothing trained, becomes the constant -30.
    """
    mean, scale = latents.mean((0, 1, 2)), latents.std((0, 1, 2))
    out_of, into = encoder.get_layer("quant_conv"), decoder.get_layer("post_quant_conv")
    kernel, bias = (np.asarray(v) for v in out_of.variables)
    channels = len(mean)
    kernel[:, :channels] /= scale
    kernel[:, channels:] = 0.0
    bias[:channels] = (bias[:channels] - mean) / scale
    bias[channels:] = -30.0
    out_of.set_weights([kernel, bias])
    kernel, bias = (np.asarray(v) for v in into.variables)
    into.set_weights([scale[:, None] * kernel, bias + mean @ kernel])
    return (latents - mean) / scale


def in_float32(model):
    copy = type(model)(architecture=architectures.EMOJI, dtype="float32")
    copy.set_weights(model.get_weights())
    return copy


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--state", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--preset", help="a model folder to start from; --steps 0 only makes its latents")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--dtype", default="float32", help="mixed_bfloat16 is faster on processors that have it")
    arguments = parser.parse_args()

    keras.config.set_dtype_policy(arguments.dtype)
    keras.utils.set_random_seed(0)
    pictures = dataset.load(arguments.dataset).images
    encoder = ImageEncoder(architecture=architectures.EMOJI)
    decoder = Decoder(architecture=architectures.EMOJI)
    if arguments.preset:
        DiffusersFolder(arguments.preset).load(image_encoder=encoder, decoder=decoder)
    trainer = AutoencoderTrainer(encoder, decoder)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(arguments.steps, 51), alpha=0.01, warmup_target=2e-3, warmup_steps=50
    )
    optimizer = training.Muon(schedule, weight_decay=1e-4, adam_weight_decay=1e-4, global_clipnorm=1.0)
    trainer.compile(optimizer, jit_compile=False)

    def scaled(images):
        return images.astype("float32") / 127.5 - 1.0

    def batch(step):
        generator = np.random.default_rng([1, step])
        images = scaled(pictures[generator.integers(len(pictures), size=BATCH)])
        flip = generator.random(BATCH) < 0.5
        images[flip] = images[flip, :, ::-1]
        return (images,)

    training.train(trainer, batch, arguments.steps, arguments.state)
    encoder, decoder = (in_float32(model) for model in (encoder, decoder))

    latents = np.concatenate(
        [np.asarray(encoder(scaled(images))) for images in np.array_split(pictures, len(pictures) // 64)]
    )
    some = np.random.default_rng(0).permutation(len(pictures))[:256]
    error = np.square(np.asarray(decoder(latents[some])).clip(-1, 1) - scaled(pictures[some])).mean((1, 2, 3)) / 4
    print(f"reconstruction: {np.mean(-10 * np.log10(error)):.2f} dB on {len(some)} of the training pictures")
    latents = standardize(encoder, decoder, latents)
    networks = {"image_encoder": encoder, "decoder": decoder}
    weights = {f"{name}/{v.path}": np.asarray(v) for name, model in networks.items() for v in model.variables}
    training.write(arguments.output, latents=latents.astype("float32"), **weights)


if __name__ == "__main__":
    main()
