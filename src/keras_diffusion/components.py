"""The parts of a model: where they come from, what is added to them, and how they are saved and let go."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import keras

from keras_diffusion import arguments
from keras_diffusion.architectures import DTYPES, PREDICTION_TYPES, STORED, Architecture
from keras_diffusion.checkpoints import presets
from keras_diffusion.checkpoints.adapters import textual_inversion
from keras_diffusion.checkpoints.adapters.lora_fusion import Loras
from keras_diffusion.checkpoints.layouts import diffusers_folder, single_file
from keras_diffusion.checkpoints.layouts.controlnet_folder import ControlNetFolder
from keras_diffusion.networks.classes import CLASSES
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.image_encoder import ImageEncoder
from keras_diffusion.networks.text_encoder import TextEncoder
from keras_diffusion.prompts.tokenizer import SimpleTokenizer

LOADED_TOGETHER = ("text_encoder", "diffusion_model", "decoder")  # loaded at the start, and after `unload`
AUTOENCODER = ("decoder", "image_encoder")
_loading_lock = Lock()  # one for all models: a model's own could be neither copied nor pickled
VAE_DTYPE = "float32"  # half precision overflows in the VAE decoder of Stable Diffusion


class Components:
    """The networks, tokenizer and adapters of a `StableDiffusion`, which documents the arguments.

    Networks are loaded when they are first asked for.
    """

    text_encoder: TextEncoder
    diffusion_model: DiffusionModel
    decoder: Decoder
    image_encoder: ImageEncoder

    def __init__(self, preset, dtype, prediction_type, ema):
        if dtype is not None:
            arguments.choice("dtype", dtype, DTYPES)
        if prediction_type is not None:
            arguments.choice("prediction_type", prediction_type, PREDICTION_TYPES)
        self._preset = "random weights" if isinstance(preset, Architecture) else str(preset)
        self._dtype = dtype or keras.config.dtype_policy()
        self._vae_dtype = dtype if dtype in STORED else VAE_DTYPE
        if isinstance(preset, Architecture):
            if ema:
                raise ValueError(f"`ema` is for checkpoints; random weights have no averages. Received: {ema=!r:.200}")
            self._checkpoint = None
            self.architecture = replace(preset, prediction_type=prediction_type or preset.prediction_type)
        else:
            self._checkpoint = presets.read(preset, prediction_type, ema)
            self.architecture = self._checkpoint.architecture
        self.tokenizer, self._loras = SimpleTokenizer(), Loras()
        self._loaded = {}

    def __getattr__(self, name):
        if name not in CLASSES:
            return self.__getattribute__(name)  # says what is missing, if need be in a property
        with _loading_lock:
            if name not in vars(self):
                self._load(LOADED_TOGETHER if name in LOADED_TOGETHER else (name,))
        return vars(self)[name]

    def _load(self, names=LOADED_TOGETHER):
        """Makes networks; one that was assigned meanwhile stays."""
        networks = {name: self._build(name) for name in names}
        if self._checkpoint:
            self._checkpoint.load(**networks)
        missing = {name: network for name, network in networks.items() if name not in vars(self)}
        vars(self).update(missing)
        self._loaded |= missing

    def _build(self, name):
        """A network that waits for its first values, or a random one if there is nothing to load."""
        dtype = self._vae_dtype if name in AUTOENCODER else self._dtype
        with keras.StatelessScope(initialize_variables=self._checkpoint is None):
            return CLASSES[name](architecture=self.architecture, initialize=self._checkpoint is None, dtype=dtype)

    def unload(self, discard: bool = False) -> None:
        """Lets go of the networks, see `StableDiffusion.unload`."""
        lost = [] if self._checkpoint else ["random weights, which have no preset to be loaded from"]
        lost += [f"the LoRAs {[*self.loras]}"] if self.loras else []
        lost += [f"the words {list(self.tokenizer.added_tokens)}"] if self.tokenizer.added_tokens else []
        present = [name for name in CLASSES if name in vars(self)]
        replaced = [name for name in present if vars(self)[name] is not self._loaded.get(name)]
        lost += [f"the networks assigned to {', '.join(replaced)}"] if replaced else []
        if lost and not discard:
            raise ValueError(f"`unload` would lose {'; '.join(lost)}. Save the model, or call unload(discard=True).")
        for name in present:
            del vars(self)[name]
        self._loaded, self._loras = {}, Loras()
        if self.tokenizer.added_tokens:
            self.tokenizer = SimpleTokenizer()

    def load_controlnet(self, path: str | os.PathLike[str]) -> ControlNet:
        """Loads a ControlNet (Zhang et al. 2023, arXiv:2302.05543), for the `control` of a call.

        Args:
            path: A folder in diffusers layout: config.json and diffusion_pytorch_model.safetensors.

        Returns:
            A `ControlNet`.

        Raises:
            CheckpointError: If there is none in the folder, or it is damaged or made for another model.

        Example:
            canny = model.load_controlnet("sd-controlnet-canny")
            model.text_to_image("a bird", control=(canny, "edges.png", 0.8))
        """
        source = ControlNetFolder(path, self.architecture)
        network = ControlNet(**source.options, initialize=False, dtype=self.diffusion_model.get_config()["dtype"])
        source.load(network)
        return network

    def save_to_preset(self, path: str | os.PathLike[str], dtype: str = "float32") -> None:
        """Writes the model as a folder in diffusers layout, which `from_preset` and diffusers load.

        LoRAs that are loaded become part of the weights.

        Args:
            path: The folder; it must not exist yet.
            dtype: What the weights are stored in, "float32", "float16" or "bfloat16".

        Raises:
            FileExistsError: If there is something at `path`.
            ValueError: If `dtype` is another one, a weight is not finite in it, or the model has learned words, for
                which the folder has no place: save it before `load_textual_inversion`.
        """
        self._save(diffusers_folder.save, path, dtype)

    def export_checkpoint(self, path: str | os.PathLike[str], dtype: str = "float32") -> None:
        """Writes the model as one safetensors file in the original (LDM) layout, which most other tools load.

        Args:
            path: The file, whose name ends in .safetensors; it must not exist yet.
            dtype: What the weights are stored in, "float32", "float16" or "bfloat16".

        Raises:
            FileExistsError, ValueError: As `save_to_preset`; also if the name ends otherwise.
        """
        if Path(path).suffix.lower() != ".safetensors":
            raise ValueError(f"The file's name must end in .safetensors. Received: path={str(path)!r:.200}")
        self._save(single_file.save, path, dtype)

    def _save(self, save, path, dtype):
        textual_inversion.refuse_words(self.tokenizer)
        save(
            path,
            self.architecture,
            dtype=dtype,
            scheduler_config=self._checkpoint and self._checkpoint.scheduler_config,
            text_encoder=self.text_encoder,
            diffusion_model=self.diffusion_model,
            image_encoder=self.image_encoder,
            decoder=self.decoder,
        )

    @property
    def loras(self) -> dict[str, float]:
        """The LoRAs that are fused into the weights: a dict from names to scales."""
        return self._loras.scales

    def load_lora(self, path: str | os.PathLike[str], scale: float = 1.0, name: str | None = None) -> str:
        """Fuses a LoRA into the weights of the text encoder and the diffusion model; nothing is compiled again.

        Several LoRAs add up, in whichever order they are loaded. Other changes to these weights in between are lost.

        Args:
            path: A safetensors file or a pickle of diffusers, peft or kohya's sd-scripts, for linear layers and for
                convolutions (LoCon).
            scale: How strong it is, any finite number; 1 as it was trained.
            name: What to call it; None takes the file's name without its suffix.

        Returns:
            The name.

        Raises:
            CheckpointMismatchError: If anything in the file does not fit the networks; every tensor is named. The
                weights are then as they were, as on every other error.
            CorruptCheckpointError: If the file is damaged or of another kind.
            FileNotFoundError: If there is no file.
            TypeError: If an argument is of the wrong type.
            ValueError: If a LoRA of this name is loaded, `scale` is not finite, or a network has been replaced.
        """
        return self._loras.load(path, scale, name, text_encoder=self.text_encoder, diffusion_model=self.diffusion_model)

    def unload_lora(self, name: str | None = None) -> None:
        """Takes a LoRA out of the weights again: they are, bit for bit, as if it had not been loaded.

        Args:
            name: Its name, see `loras`; None takes out all of them.

        Raises:
            ValueError: If no LoRA of this name is loaded.
        """
        self._loras.unload(name)

    def train_lora(
        self,
        folder: str | os.PathLike[str],
        caption: str | None = None,
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
            caption: The caption of images that have none, such as "a photo of sks dog".
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
        from keras_diffusion.training.trainer import train_lora  # training imports this module

        options = {"steps": steps, "batch_size": batch_size, "seed": seed, **examples}
        options = {"learning_rate": learning_rate, "verbose": verbose, "callbacks": callbacks, "examples": options}
        return train_lora(self, folder, caption, rank=rank, text_encoder=text_encoder, seed=seed, **options)

    def load_textual_inversion(self, path: str | os.PathLike[str], token: str | None = None) -> str:
        """Teaches the model a word; the text encoder becomes a larger one, which is compiled again.

        Args:
            path: A safetensors file or a pickle of diffusers or of stable-diffusion-webui.
            token: The word, such as "<cat-toy>"; its case does not matter. None takes the one in the file, or what
                the file is called where it holds none.

        Returns:
            The word. Prompts that contain it use all its vectors, each of which takes the place of one token.

        Raises:
            CheckpointMismatchError: If the file is for another model. The model is then as it was, as on every other
                error.
            CorruptCheckpointError: If the file is damaged or of another kind.
            FileNotFoundError: If there is no file.
            TypeError: If `token` is not a str.
            ValueError: If the word is one token already.
        """
        text_encoder, token = textual_inversion.load(path, token, self.text_encoder, self.tokenizer)
        self._loras.replace("text_encoder", self.text_encoder, text_encoder)
        self.text_encoder = text_encoder
        return token
