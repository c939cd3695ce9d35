"""Trains in one call: the data, the optimiser, the run and its end."""

import logging

from keras_diffusion import arguments
from keras_diffusion.errors import NumericalError
from keras_diffusion.training.class_images import draw_missing
from keras_diffusion.training.embedding import TEMPLATES
from keras_diffusion.training.optimizers import default_optimizer
from keras_diffusion.training.trainer import Trainer

LARGEST_RATE = 0.1  # more, and no training of a diffusion model has been seen to learn

logger = logging.getLogger(__name__)


def train(model, kind, folder, caption, examples, fit, learning_rate, ema=None, **options):
    """Trains a part of a model and draws with what was learned, see `StableDiffusion.train_lora` and its like.

    Args:
        model: The `StableDiffusion`.
        kind: See `Trainer`.
        folder: The folder of images.
        caption: The caption of images that have none.
        examples: Options of `Examples`; also `class_images`, the number of class images that there shall be.
        fit: Options of `Trainer.fit`.
        learning_rate: The learning rate of AdamW.
        ema: See `default_optimizer`.
        **options: Arguments of the learner.

    Returns:
        The `Trainer`.

    Raises:
        NumericalError: If the loss is not finite; its attribute `trainer` holds what was learned before that step.
    """
    learning_rate = arguments.number("learning_rate", learning_rate, 1e-9, LARGEST_RATE)
    if ema is not None:
        ema = arguments.number("ema", ema, 0, 1)
    trainer = Trainer(model, kind, **options)
    if caption is None and kind == "embedding":
        caption = [template.format(trainer.learner.word) for template in TEMPLATES]
    if class_images := examples.pop("class_images", 0):
        class_folder = examples.setdefault("class_folder", f"{folder}-class")
        draw_missing(model, class_folder, examples.get("class_caption"), class_images, examples["seed"])
    batches = trainer.examples(folder, caption, **examples)
    trainer.compile(default_optimizer(learning_rate, ema))
    try:
        trainer.fit(batches, **fit)
    except NumericalError as error:
        error.trainer = trainer
        raise
    except KeyboardInterrupt:
        logger.warning("The training was stopped after step %d; what was learned until then is kept.", trainer.step)
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)  # as `fit` does at its end
    trainer.update_model()
    return trainer
