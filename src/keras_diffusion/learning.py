"""The training of a model in one call; `keras_diffusion.training` does the work."""

import os
from collections.abc import Sequence
from typing import Any

Folder = str | os.PathLike[str]
Captions = str | Sequence[str] | None


class Learning:
    """Trains a `StableDiffusion` on a folder of images, and draws with what was learned from then on.

    Steps and learning rates are those of diffusers' training scripts. Ctrl-C stops a training and keeps what was
    learned until then.
    """

    def train_lora(
        self,
        folder: Folder,
        caption: Captions = None,
        steps: int = 800,
        rank: int = 8,
        batch_size: int = 1,
        learning_rate: float = 1e-4,
        text_encoder: bool = False,
        seed: int = 0,
        layers: str | Sequence[str] = "attention",
        rematerialize: bool | None = None,
        verbose: str | int = "auto",
        callbacks: Sequence[Any] = (),
        **examples: Any,
    ) -> Any:
        """Trains a LoRA, a small file of changes to the weights.

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
            layers: Which layers learn: "attention", "linear", "all" (convolutions too), a regular expression for the
                names of layers, or a list of the names' ends, such as ["to_q", "attn2.to_v"].
            rematerialize: Whether the backward pass computes blocks again instead of keeping what is inside them: less
                memory, more time. None does if weights are stored in half precision.
            verbose: 0 shows no progress bar.
            callbacks: Callbacks of Keras.
            **examples: Options of `training.Examples`, such as `flip=True`, `snr_gamma=5` or `class_folder=…`.

        Returns:
            The `training.Trainer`, for `save_lora`. `unload_lora` takes the LoRA out of the model again.

        Raises:
            TypeError, ValueError: If an argument is wrong, or an image cannot be read; it is named.
            NumericalError: If the loss is not finite. The model is as it was; the error's `trainer` has what was
                learned before that step.

        Example:
            trainer = model.train_lora("photos", "a photo of sks dog")
            model.text_to_image("a photo of sks dog on the moon")
            trainer.save_lora("dog.safetensors")
        """
        options = {
            "rank": rank, "layers": layers, "text_encoder": text_encoder, "seed": seed, "rematerialize": rematerialize,
        }  # fmt: skip
        examples = {"steps": steps, "batch_size": batch_size, "seed": seed, **examples}
        return self._train("lora", folder, caption, examples, learning_rate, verbose, callbacks, **options)

    def train_lcm_lora(
        self,
        folder: Folder,
        caption: Captions = None,
        steps: int = 1000,
        rank: int = 64,
        batch_size: int = 4,
        learning_rate: float = 1e-4,
        target_ema: float | None = None,
        seed: int = 0,
        rematerialize: bool | None = None,
        verbose: str | int = "auto",
        callbacks: Sequence[Any] = (),
        **examples: Any,
    ) -> Any:
        """Trains an LCM-LoRA, with which the model draws in 4 steps (Luo et al. 2023, arXiv:2311.05556).

        The model itself is the teacher. The images should be like those that it shall draw, and many.

        Args:
            folder: A folder of images, see `train_lora`.
            caption: The caption of images that have none, see `train_lora`.
            steps: Number of steps.
            rank: Rank of the LoRA.
            batch_size: Number of images in a step.
            learning_rate: The learning rate of AdamW.
            target_ema: The momentum of the moving average of the LoRA that makes the targets, such as 0.95; None has
                the LoRA itself make them.
            seed: Where all random numbers come from.
            rematerialize: See `train_lora`.
            verbose: 0 shows no progress bar.
            callbacks: Callbacks of Keras.
            **examples: Options of `training.Examples`, and two more: `guidance`, the range of the weights that the
                teacher is guided by, (3.0, 15.0) by default; and `distilled_steps`, the number of timesteps that the
                drawing can choose from, 50 by default.

        Returns:
            The `training.Trainer`, for `save_lora`.

        Raises:
            TypeError, ValueError: If an argument is wrong, or an image cannot be read; it is named.
            NumericalError: If the loss is not finite, see `train_lora`.

        Example:
            trainer = model.train_lcm_lora("photos", "a photo")
            model.text_to_image("a photo of a dog", sampler="lcm", num_steps=4, unconditional_guidance_scale=1.0)
            trainer.save_lora("lcm.safetensors")
        """
        options = {"rank": rank, "target_ema": target_ema, "seed": seed, "rematerialize": rematerialize}
        examples = {"steps": steps, "batch_size": batch_size, "seed": seed, **examples}
        return self._train("lcm_lora", folder, caption, examples, learning_rate, verbose, callbacks, **options)

    def train_textual_inversion(
        self,
        folder: Folder,
        word: str,
        initial_word: str,
        caption: Captions = None,
        vectors: int = 1,
        steps: int = 3000,
        batch_size: int = 1,
        learning_rate: float = 5e-4,
        seed: int = 0,
        rematerialize: bool | None = None,
        verbose: str | int = "auto",
        callbacks: Sequence[Any] = (),
        **examples: Any,
    ) -> Any:
        """Trains an embedding, the vectors of a new word; the weights of the model stay as they are.

        Args:
            folder: A folder of images, see `train_lora`. Captions in it must contain the word.
            word: The new word, such as "<cat-toy>".
            initial_word: A word that says roughly the same, such as "toy", where the vectors start.
            caption: The caption of images that have none, see `train_lora`. None takes "a photo of a <cat-toy>",
                "a rendering of a <cat-toy>" and so on.
            vectors: Number of vectors of the word, each of which takes the place of one token in a prompt.
            steps: Number of steps.
            batch_size: Number of images in a step.
            learning_rate: The learning rate of AdamW.
            seed: Where all random numbers come from.
            rematerialize: See `train_lora`.
            verbose: 0 shows no progress bar.
            callbacks: Callbacks of Keras.
            **examples: Options of `training.Examples`, such as `flip=True`.

        Returns:
            The `training.Trainer`, for `save_textual_inversion`.

        Raises:
            TypeError, ValueError: If an argument is wrong, the word exists, a caption lacks it, or an image cannot be
                read.
            NumericalError: If the loss is not finite. The model is as it was; the error's `trainer` has what was
                learned before that step.

        Example:
            trainer = model.train_textual_inversion("photos", "<cat-toy>", "toy", vectors=2)
            model.text_to_image("a <cat-toy> on the moon")
            trainer.save_textual_inversion("cat-toy.safetensors")
        """
        options = {"word": word, "initial_word": initial_word, "vectors": vectors, "rematerialize": rematerialize}
        examples = {"steps": steps, "batch_size": batch_size, "seed": seed, **examples}
        return self._train("embedding", folder, caption, examples, learning_rate, verbose, callbacks, **options)

    def train_controlnet(
        self,
        folder: Folder,
        condition_folder: Folder,
        caption: Captions = None,
        controlnet: Any = None,
        steps: int = 6000,
        batch_size: int = 4,
        learning_rate: float = 1e-5,
        seed: int = 0,
        rematerialize: bool | None = None,
        verbose: str | int = "auto",
        callbacks: Sequence[Any] = (),
        **examples: Any,
    ) -> Any:
        """Trains a ControlNet, which makes the model follow images such as edges; its own weights stay as they are.

        Args:
            folder: A folder of images, see `train_lora`.
            condition_folder: A folder with what the ControlNet sees, an image of the same name for each image.
            caption: The caption of images that have none, see `train_lora`.
            controlnet: The `ControlNet` to train further; None begins with a copy of the diffusion model's layers.
            steps: Number of steps.
            batch_size: Number of images in a step.
            learning_rate: The learning rate of AdamW.
            seed: Where all random numbers come from.
            rematerialize: See `train_lora`.
            verbose: 0 shows no progress bar.
            callbacks: Callbacks of Keras.
            **examples: Options of `training.Examples`, such as `caption_dropout=0.5`.

        Returns:
            The `training.Trainer`, with the attribute `controlnet`, and `save_controlnet`.

        Raises:
            TypeError, ValueError: If an argument is wrong, an image has no counterpart or cannot be read.
            NumericalError: If the loss is not finite. The ControlNet is as before that step, in the error's `trainer`.

        Example:
            trainer = model.train_controlnet("photos", "edges", "a bird")
            model.text_to_image("a bird", control=(trainer.controlnet, "edges.png"))
            trainer.save_controlnet("edges-controlnet")
        """
        options = {"controlnet": controlnet, "seed": seed, "rematerialize": rematerialize}
        examples = {
            "condition_folder": condition_folder, "steps": steps, "batch_size": batch_size, "seed": seed, **examples,
        }  # fmt: skip
        return self._train("controlnet", folder, caption, examples, learning_rate, verbose, callbacks, **options)

    def train_diffusion_model(
        self,
        folder: Folder,
        caption: Captions = None,
        class_caption: str | None = None,
        steps: int = 800,
        batch_size: int = 1,
        learning_rate: float | None = None,
        text_encoder: bool = False,
        ema: float | None = None,
        seed: int = 0,
        rematerialize: bool | None = None,
        verbose: str | int = "auto",
        callbacks: Sequence[Any] = (),
        **examples: Any,
    ) -> Any:
        """Trains every weight of the diffusion model.

        With `class_caption` this is DreamBooth (Ruiz et al. 2023, arXiv:2208.12242): half of each batch are images of
        the class, such as other dogs, so that the model does not forget them.

        Args:
            folder: A folder of images, see `train_lora`.
            caption: The caption of images that have none, such as "a photo of sks dog", see `train_lora`.
            class_caption: The caption of class images, such as "a photo of a dog"; None takes none.
            steps: Number of steps.
            batch_size: Number of images in a step, beside as many class images.
            learning_rate: The learning rate of AdamW; None takes 5e-6 with class images and 1e-5 without.
            text_encoder: Whether to train the text encoder too.
            ema: The largest momentum of moving averages of the weights, such as 0.9999, which take the place of the
                weights at the end; None has no averages.
            seed: Where all random numbers come from.
            rematerialize: See `train_lora`.
            verbose: 0 shows no progress bar.
            callbacks: Callbacks of Keras.
            **examples: Options of `training.Examples`, such as `snr_gamma=5`, and two for class images: `class_folder`,
                where they are (FOLDER-class by default), and `class_images`, how many there shall be (100 by default).
                The model draws those that are missing.

        Returns:
            The `training.Trainer`. `save_to_preset` and `export_checkpoint` save the model.

        Raises:
            TypeError, ValueError: If an argument is wrong, or an image cannot be read; it is named.
            NumericalError: If the loss is not finite. The weights are as before that step.

        Example:
            model.train_diffusion_model("photos", "a photo of sks dog", "a photo of a dog")
            model.text_to_image("a photo of sks dog on the moon")
            model.save_to_preset("dog")
        """
        options = {"text_encoder": text_encoder, "ema": ema, "rematerialize": rematerialize}
        examples = {"steps": steps, "batch_size": batch_size, "seed": seed, **examples}
        if class_caption is not None:
            examples = {"class_caption": class_caption, "class_images": 100, **examples}
        if learning_rate is None:
            learning_rate = 1e-5 if class_caption is None else 5e-6
        return self._train("diffusion_model", folder, caption, examples, learning_rate, verbose, callbacks, **options)

    def _train(self, kind, folder, caption, examples, learning_rate, verbose, callbacks, **options):
        from keras_diffusion.training.runs import train  # training imports the modules below this one

        fit = {"verbose": verbose, "callbacks": list(callbacks)}
        return train(self, kind, folder, caption, examples, fit, learning_rate, **options)
