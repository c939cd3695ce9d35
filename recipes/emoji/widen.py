"""Teaches the text encoder and the diffusion model of "emoji" more words, and scenes of several things.

    python recipes/emoji/widen.py --scenes scenes.npz --grown grown.npz --dataset emoji.npz \\
        --state widened.state.npz --output widened.npz

Both go on from their weights, in the latents that they know, with the loss of recipes/emoji/diffusion.py.
"""

import argparse
import json
import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import clock
import dataset
import diffusion
import grow
import keras
import numpy as np
import training

from keras_diffusion.checkpoints.layouts.diffusers_folder import DiffusersFolder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.image_encoder import ImageEncoder
from keras_diffusion.networks.text_encoder import TextEncoder
from keras_diffusion.prompts.tokenizer import SimpleTokenizer

STYLE = "noto"
SCENES = 0.3  # share of the examples
EMPTY = 0.1  # share of the captions left out, for classifier-free guidance
SIGNS = 0.3  # weight of an emoji that is not in the pack
BATCH = diffusion.BATCH


def join(emoji, scenes):
    """Joins the images of dataset.py with those of collect.py.

    An emoji that is in both is taken from the first, where the model knows it from, with the captions of both.

    Args:
        emoji: A `dataset.Dataset`.
        scenes: What collect.py wrote, a dict of arrays.

    Returns:
        The indices of images of the first and of the second; for each of them, a list of (caption, weight); and float
        (n,), how often each is shown.
    """
    count, style = len(scenes["weights"]), emoji.style_names.index(STYLE)
    texts = [json.loads(choices) for choices in scenes["captions"]]
    place = {str(label).lower(): i for i, label in enumerate(scenes["labels"])}
    old = np.flatnonzero(emoji.base & (emoji.styles == style))
    captions, weights, both = [], [], set()
    for index in emoji.labels[old]:
        label = emoji.label_names[index]
        own, other = dataset.captions(label, emoji.tags[index], STYLE, 0.05), place.get(label)
        both.add(other)
        captions.append(own if other is None else [*own, *texts[other]])
        weights.append(SIGNS if other is None else scenes["weights"][other])
    single = [i for i in range(count) if i not in both]
    weights = np.array([*weights, *scenes["weights"][single]])
    composed = range(count, len(texts))
    new = [*single, *composed]
    captions += [texts[i] for i in new]
    shares = [(1 - SCENES) * weights / weights.sum(), np.full(len(composed), SCENES / max(1, len(composed)))]
    return old, new, captions, np.concatenate(shares)


class Examples(diffusion.Pictures):
    """The latents and tokenized captions of images, each drawn as often as its share says."""

    def __init__(self, latents, captions, shares):
        self.latents, self.shares = latents, np.cumsum(shares)
        texts = sorted({text for choices in captions for text, _ in choices} | {""})
        shape = diffusion.ARCHITECTURE.text_encoder
        self.tokens = SimpleTokenizer().tokenize(texts, pad_token=shape.pad_token, length=shape.length)
        row = {text: i for i, text in enumerate(texts)}
        self.empty = row[""]
        self.captions = [np.array([row[text] for text, _ in choices]) for choices in captions]
        self.weights = [np.cumsum([weight for _, weight in choices]) for choices in captions]
        self.alphas_cumprod = diffusion.noise_schedule()

    def choose(self, step, generator):
        """Returns the indices of a batch of images and of their captions."""
        places = np.searchsorted(self.shares, generator.random(BATCH) * self.shares[-1], side="right")
        draws = zip(places, generator.random(BATCH), strict=True)
        texts = [self.captions[i][np.searchsorted(self.weights[i], x * self.weights[i][-1], "right")] for i, x in draws]
        return places, np.where(generator.random(BATCH) < EMPTY, self.empty, texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", required=True, help="what collect.py wrote")
    parser.add_argument("--grown", required=True, help="what grow.py wrote")
    parser.add_argument("--dataset", required=True, help="what dataset.py wrote")
    parser.add_argument("--state", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--preset", default="weights/emoji", help="the model folder to start from")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    emoji = dataset.load(arguments.dataset)
    with np.load(arguments.scenes) as scenes:
        old, new, captions, shares = join(emoji, {name: scenes[name] for name in ("captions", "labels", "weights")})
    with np.load(arguments.grown) as grown:
        latents = grown["latents"][new]
    encoder = ImageEncoder(architecture=grow.OLD)
    networks = {
        "text_encoder": TextEncoder(architecture=grow.OLD),
        "diffusion_model": DiffusionModel(architecture=grow.OLD),
    }
    DiffusersFolder(arguments.preset).load(image_encoder=encoder, **networks)
    latents = np.concatenate([grow.encode(encoder, emoji.images[old]), latents])
    examples = Examples(latents, captions, shares)
    print(f"{len(latents)} images, {len(examples.tokens)} captions", flush=True)
    trainer = diffusion.DiffusionTrainer(**networks)
    decay = {"weight_decay": 1e-2, "adam_weight_decay": 1e-2}
    average = {"use_ema": True, "ema_momentum": 0.995}
    optimizer = training.Muon(arguments.learning_rate, global_clipnorm=1.0, **decay, **average)
    trainer.compile(optimizer, jit_compile=False)
    clock.train(trainer, examples.batch, arguments.minutes, arguments.learning_rate, arguments.state)
    diffusion.write(arguments.output, trainer, networks, examples)


if __name__ == "__main__":
    main()
