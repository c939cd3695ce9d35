"""Trains in one call: the data, the optimiser, the run and its end."""

import logging

from keras_diffusion import arguments
from keras_diffusion.training.embedding import TEMPLATES
from keras_diffusion.training.trainer import Trainer, default_optimizer

LARGEST_RATE = 0.1  # more, and no training of a diffusion model has been seen to learn

logger = logging.getLogger(__name__)


def train_lora(model, folder, caption, examples, fit, learning_rate, **options):
    """Trains a LoRA and puts it into the model, see `StableDiffusion.train_lora`.

    Args:
        model: The `StableDiffusion`.
        folder: See there, as for `caption` and `learning_rate`.
        examples: Options of `Examples`.
        fit: Options of `Trainer.fit`.
        **options: Arguments of the `Lora`.

    Returns:
        The `Trainer`.
    """
    return _run(Trainer(model, "lora", **options), folder, caption, examples, fit, learning_rate)


def train_textual_inversion(model, folder, caption, examples, fit, learning_rate, **options):
    """Trains an embedding and teaches the model its word, see `StableDiffusion.train_textual_inversion`."""
    trainer = Trainer(model, "embedding", **options)
    caption = [template.format(trainer.learner.word) for template in TEMPLATES] if caption is None else caption
    return _run(trainer, folder, caption, examples, fit, learning_rate)


def train_controlnet(model, folder, caption, examples, fit, learning_rate, **options):
    """Trains a ControlNet, see `StableDiffusion.train_controlnet`."""
    return _run(Trainer(model, "controlnet", **options), folder, caption, examples, fit, learning_rate)


def _run(trainer, folder, caption, examples, fit, learning_rate):
    """Trains until the end, or until Ctrl-C."""
    learning_rate = arguments.number("learning_rate", learning_rate, 1e-9, LARGEST_RATE)
    batches = trainer.examples(folder, caption, **examples)
    trainer.compile(default_optimizer(learning_rate))
    try:
        trainer.fit(batches, **fit)
    except KeyboardInterrupt:
        logger.warning("The training was stopped after step %d; what was learned until then is kept.", trainer.step)
    trainer.update_model()
    return trainer
