"""The training of a model in one call; `keras_diffusion.training` does the work."""

import os
from collections.abc import Sequence
from typing import Any

Folder = str | os.PathLike[str]


class Learning:
    """Trains a `StableDiffusion` on a folder of images, and draws with what was learned from then on.

    Ctrl-C stops a training and keeps what was learned.
    """

    def train_lora(
        self,
        folder: Folder,
        caption: str | Sequence[str] | None = None,
        steps: int = 800,
        rank: int = 8,
        batch_size: int = 1,
        learning_rate: float = 1e-4,
        text_encoder: bool = False,
        seed: int = 0,
        verbose: str | int = "auto",
        callbacks: Sequence[Any] = (),
        **examples: Any,
    ) -> Any:
        """Trains a LoRA on a folder of images, and draws with it from then on.

        Steps and learning rate are those of diffusers' DreamBooth and LoRA scripts. Ctrl-C stops the training and keeps
        what was learned.

        Args:
            folder: A folder of PNG, JPEG or WebP files. The caption of "dog.png" is the text of "dog.txt" beside it, or
                the row of "metadata.jsonl" or "metadata.csv", or else `caption`.
            caption: The caption of images that have none, such as "a photo of sks dog"; of a list, each example takes
                one at random.
            steps: Number of steps.
            rank: Rank of the LoRA: how much it can learn, and how large its file is.
            batch_size: Number of images in a step.
            learning_rate: The learning rate of AdamW.
            text_encoder: Whether to train the text encoder too.
            seed: Where all random numbers come from.
            verbose: 0 shows no progress bar.
            callbacks: Callbacks of Keras.
            **examples: Options of `training.Examples`, such as `flip=True`, `snr_gamma=5` or `class_folder=…`.

        Returns:
            The `training.Trainer`, for `save_lora`. `unload_lora` takes the LoRA out of the model again.

        Raises:
            TypeError, ValueError: If an argument is wrong, or an image cannot be read; it is named.
            NumericalError: If the loss is not finite. The model is as it was.

        Example:
            trainer = model.train_lora("photos", "a photo of sks dog")
            model.text_to_image("a photo of sks dog on the moon")
            trainer.save_lora("dog.safetensors")
        """
        from keras_diffusion.training.runs import train_lora  # training imports the modules below this one

        examples = {"steps": steps, "batch_size": batch_size, "seed": seed, **examples}
        fit = {"verbose": verbose, "callbacks": callbacks}
        options = {"rank": rank, "text_encoder": text_encoder, "seed": seed}
        return train_lora(self, folder, caption, examples, fit, learning_rate, **options)

    def train_textual_inversion(
        self,
        folder: Folder,
        word: str,
        initial_word: str,
        caption: str | Sequence[str] | None = None,
        vectors: int = 1,
        steps: int = 3000,
        batch_size: int = 1,
        learning_rate: float = 5e-4,
        seed: int = 0,
        verbose: str | int = "auto",
        callbacks: Sequence[Any] = (),
        **examples: Any,
    ) -> Any:
        """Trains an embedding, the vectors of a new word, and draws with the word from then on.

        Steps and learning rate are those of diffusers' textual inversion script. The weights of the model stay as they
        are. Ctrl-C stops the training and keeps what was learned.

        Args:
            folder: A folder of images, see `train_lora`. Captions in it must contain the word.
            word: The new word, such as "<cat-toy>".
            initial_word: A word that says roughly the same, such as "toy", where the vectors start.
            caption: The caption of images that have none, or a list of captions, of which each example takes one.
                None takes "a photo of a <cat-toy>", "a rendering of a <cat-toy>" and so on.
            vectors: Number of vectors of the word, each of which takes the place of one token in a prompt.
            steps: Number of steps.
            batch_size: Number of images in a step.
            learning_rate: The learning rate of AdamW.
            seed: Where all random numbers come from.
            verbose: 0 shows no progress bar.
            callbacks: Callbacks of Keras.
            **examples: Options of `training.Examples`, such as `flip=True`.

        Returns:
            The `training.Trainer`, for `save_textual_inversion`.

        Raises:
            TypeError, ValueError: If an argument is wrong, the word exists, a caption lacks it, or an image cannot be
                read.
            NumericalError: If the loss is not finite. The model is as it was.

        Example:
            trainer = model.train_textual_inversion("photos", "<cat-toy>", "toy", vectors=2)
            model.text_to_image("a <cat-toy> on the moon")
            trainer.save_textual_inversion("cat-toy.safetensors")
        """
        from keras_diffusion.training.runs import train_textual_inversion

        examples = {"steps": steps, "batch_size": batch_size, "seed": seed, **examples}
        fit = {"verbose": verbose, "callbacks": callbacks}
        options = {"word": word, "initial_word": initial_word, "vectors": vectors}
        return train_textual_inversion(self, folder, caption, examples, fit, learning_rate, **options)

    def train_controlnet(
        self,
        folder: Folder,
        condition_folder: Folder,
        caption: str | Sequence[str] | None = None,
        controlnet: Any = None,
        steps: int = 6000,
        batch_size: int = 4,
        learning_rate: float = 1e-5,
        seed: int = 0,
        verbose: str | int = "auto",
        callbacks: Sequence[Any] = (),
        **examples: Any,
    ) -> Any:
        """Trains a ControlNet, which makes the model follow images such as edges, depths or poses.

        Steps, batch size and learning rate are those of diffusers' ControlNet script. The weights of the model stay as
        they are. Ctrl-C stops the training and keeps what was learned.

        Args:
            folder: A folder of images, see `train_lora`.
            condition_folder: A folder with what the ControlNet sees, an image of the same name for each image.
            caption: The caption of images that have none, see `train_lora`.
            controlnet: The `ControlNet` to train further; None begins with a copy of the diffusion model's layers.
            steps: Number of steps.
            batch_size: Number of images in a step.
            learning_rate: The learning rate of AdamW.
            seed: Where all random numbers come from.
            verbose: 0 shows no progress bar.
            callbacks: Callbacks of Keras.
            **examples: Options of `training.Examples`, such as `caption_dropout=0.5`.

        Returns:
            The `training.Trainer`, with the attribute `controlnet`, and `save_controlnet`.

        Raises:
            TypeError, ValueError: If an argument is wrong, an image has no counterpart or cannot be read.
            NumericalError: If the loss is not finite.

        Example:
            trainer = model.train_controlnet("photos", "edges", "a bird")
            model.text_to_image("a bird", control=(trainer.controlnet, "edges.png"))
            trainer.save_controlnet("edges-controlnet")
        """
        from keras_diffusion.training.runs import train_controlnet

        sources = {"condition_folder": condition_folder, "steps": steps, "batch_size": batch_size, "seed": seed}
        fit = {"verbose": verbose, "callbacks": callbacks}
        options = {"controlnet": controlnet, "seed": seed}
        return train_controlnet(self, folder, caption, {**sources, **examples}, fit, learning_rate, **options)
