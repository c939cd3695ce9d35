"""Stage 3: trains the text encoder and the diffusion model together on the latents.

python recipes/emoji/diffusion.py --dataset emoji.npz --autoencoder autoencoder.npz --state diffusion.state.npz
"""

import argparse
import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # nearly twice as fast on processors where it is off by default

import dataset
import keras
import numpy as np
import training
from keras import ops

from keras_diffusion import architectures
from keras_diffusion.checkpoints.layouts.diffusers_folder import DiffusersFolder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.text_encoder import TextEncoder
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.prompts.tokenizer import SimpleTokenizer
from keras_diffusion.sampling.schedules import noise_schedule

BATCH = 32  # small: the pictures are learned by heart, and updates count for more than their noise
ARCHITECTURE = architectures.EMOJI
LENGTH = ARCHITECTURE.text_encoder.length


class DiffusionTrainer(keras.Model):
    """Squared error of the velocity (Salimans & Ho 2022), less where the noise is weak.

    In terms of the denoised latents the weight is min(SNR + 1, 5): their SNR + 1 with the cap of Hang et al. 2023.
    """

    def __init__(self, text_encoder, diffusion_model):
        super().__init__()
        self.text_encoder, self.diffusion_model = text_encoder, diffusion_model
        self.positions = np.arange(LENGTH, dtype="int32")[None]
        self.built = True

    def call(self, inputs):
        latents, timestep, tokens = inputs
        positions = ops.broadcast_to(self.positions, ops.shape(tokens))
        context = self.text_encoder([tokens, positions])
        return self.diffusion_model([latents, timestep, context])

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return ops.mean(sample_weight * ops.mean(ops.square(ops.cast(y_pred, "float32") - y), axis=(1, 2, 3)))


class Pictures:
    """The latents and tokenized captions of the pictures of some styles, drawn epoch by epoch."""

    def __init__(self, data, latents, styles):
        style_indices = [data.style_names.index(style) for style in styles]
        self.chosen = np.flatnonzero(data.base & np.isin(data.styles, style_indices))
        self.latents = latents[self.chosen].astype("float32")
        style_weight = 0.05 if len(styles) == 1 else 0.4
        captions = [
            dataset.captions(
                data.label_names[data.labels[i]],
                data.tags[data.labels[i]],
                data.style_names[data.styles[i]],
                style_weight,
            )
            for i in self.chosen
        ]
        texts = sorted({text for choices in captions for text, _ in choices})
        self.tokens = SimpleTokenizer().tokenize(texts, pad_token=ARCHITECTURE.text_encoder.pad_token, length=LENGTH)
        row = {text: i for i, text in enumerate(texts)}
        self.captions = [[row[text] for text, _ in choices] for choices in captions]
        self.weights = [np.cumsum([weight for _, weight in choices]) for choices in captions]
        self.alphas_cumprod = noise_schedule()

    def batch(self, step):
        """What `step` trains on: noisy latents, timestep embedding, tokens; the velocity; the loss weight."""
        generator = np.random.default_rng([2, step])
        index, tokens = self.choose(step, generator)
        # The label decides most where the noise is strong: timesteps are drawn with a density that rises linearly.
        timesteps = (1000 * np.sqrt(generator.random(BATCH))).astype("int")
        alphas_cumprod = self.alphas_cumprod[timesteps].astype("float32")
        alpha, sigma = (np.sqrt(x)[:, None, None, None] for x in (alphas_cumprod, 1 - alphas_cumprod))
        noise = generator.standard_normal(self.latents[index].shape, "float32")
        weight = np.minimum(1.0, 5.0 * (1 - alphas_cumprod))  # 1 / (SNR + 1) = 1 - alphas_cumprod
        embedding = timestep_embedding(timesteps, ARCHITECTURE.diffusion_model.frequencies)
        noisy = alpha * self.latents[index] + sigma * noise
        velocity = alpha * noise - sigma * self.latents[index]
        return (noisy, embedding, self.tokens[tokens]), velocity, weight

    def choose(self, step, generator):
        """The indices of a batch of pictures and of their captions."""
        index = np.array([self.picture(step * BATCH + i) for i in range(BATCH)])
        tokens = [
            self.captions[i][np.searchsorted(self.weights[i], draw).clip(max=len(self.weights[i]) - 1)]
            for i, draw in zip(index, generator.random(BATCH), strict=True)
        ]
        return index, tokens

    def picture(self, number):
        """The `number`-th picture since the start: every epoch is a new order."""
        epoch, position = divmod(number, len(self.chosen))
        if epoch != getattr(self, "epoch", None):
            self.epoch, self.order = epoch, np.random.default_rng([3, epoch]).permutation(len(self.chosen))
        return self.order[position]


def zero_last_layers(diffusion_model):
    """Starts every residual branch at zero, so that the untrained model is close to the identity."""
    for variable in diffusion_model.variables:
        if any(name in variable.path for name in ("conv2/", "to_out/", "net_2/", "proj_out/", "conv_out/")):
            variable.assign(ops.zeros_like(variable))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--autoencoder", required=True, help="what stage 2 wrote")
    parser.add_argument("--state", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--preset", help="a model folder to start from instead of random weights")
    parser.add_argument("--styles", nargs="+", default=["noto"])
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dtype", default="float32", help="mixed_bfloat16 is faster on processors that have it")
    arguments = parser.parse_args()

    keras.config.set_dtype_policy(arguments.dtype)
    keras.utils.set_random_seed(0)
    with np.load(arguments.autoencoder) as autoencoder:
        pictures = Pictures(dataset.load(arguments.dataset), autoencoder["latents"], arguments.styles)
    networks = {
        "text_encoder": TextEncoder(architecture=ARCHITECTURE),
        "diffusion_model": DiffusionModel(architecture=ARCHITECTURE),
    }
    if arguments.preset:
        DiffusersFolder(arguments.preset).load(**networks)
    else:
        zero_last_layers(networks["diffusion_model"])
    trainer = DiffusionTrainer(**networks)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, arguments.steps, alpha=0.02, warmup_target=arguments.learning_rate, warmup_steps=100
    )
    optimizer = training.Muon(
        schedule, weight_decay=1e-2, adam_weight_decay=1e-2, global_clipnorm=1.0, use_ema=True, ema_momentum=0.998
    )
    trainer.compile(optimizer, jit_compile=False)
    print(f"{len(pictures.chosen)} pictures, {len(pictures.tokens)} captions", flush=True)
    training.train(trainer, pictures.batch, arguments.steps, arguments.state)
    write(arguments.output, trainer, networks, pictures)


def write(path, trainer, networks, pictures):
    """Writes the moving averages of the weights, which draw better than the last ones."""
    trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
    weights = {f"{name}/{v.path}": np.asarray(v) for name, model in networks.items() for v in model.variables}
    training.write(path, used_tokens=np.unique(pictures.tokens), **weights)


if __name__ == "__main__":
    main()
