"""The parts of a model: where they come from, what is added to them, and how they are saved and let go."""

import logging
import os
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock

import keras

from keras_diffusion import arguments
from keras_diffusion.architectures import DTYPES, PREDICTION_TYPES, STORED, Architecture
from keras_diffusion.checkpoints import presets
from keras_diffusion.checkpoints.adapters import lora_folder, textual_inversion
from keras_diffusion.checkpoints.adapters.ip_adapter_file import load_ip_adapter
from keras_diffusion.checkpoints.adapters.lora_fusion import Loras, Scale
from keras_diffusion.checkpoints.layouts import diffusers_folder, single_file, tiny_vae_files
from keras_diffusion.checkpoints.layouts.controlnet_files import ControlNetFiles
from keras_diffusion.checkpoints.layouts.files import naming
from keras_diffusion.checkpoints.layouts.part_files import PARTS, PartFiles, read_scheduler
from keras_diffusion.checkpoints.layouts.tokenizer_files import read_tokenizer
from keras_diffusion.checkpoints.mapping.loading import require_tensors
from keras_diffusion.checkpoints.mapping.names import NETWORKS
from keras_diffusion.networks.classes import CLASSES, make
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.image_encoder import ImageEncoder
from keras_diffusion.networks.keras_internals import no_leftovers
from keras_diffusion.networks.network import keras_settings
from keras_diffusion.networks.text_encoder import TextEncoder
from keras_diffusion.networks.tiny_autoencoder import TinyDecoder, TinyImageEncoder
from keras_diffusion.prompts.tags import take_loras
from keras_diffusion.system.locks import Unchanged, changing, reading, reads

logger = logging.getLogger(__name__)

ALONE = ("image_encoder",)  # loaded when first needed; all others at the start, and after `unload`
AUTOENCODER = ("decoder", "image_encoder")
ADAPTED = ("text_encoder", "text_encoder_2", "diffusion_model")  # by LoRAs
_loading_lock = Lock()  # one for all models: a model's own could be neither copied nor pickled
TINY = {"tiny_decoder": TinyDecoder, "tiny_image_encoder": TinyImageEncoder}
VAE_DTYPE = "float32"  # half precision overflows in the VAE decoder of Stable Diffusion


class Components:
    """The networks, tokenizer and adapters of a `StableDiffusion`, which documents the arguments.

    Networks are loaded when they are first asked for.
    """

    text_encoder: TextEncoder
    text_encoder_2: TextEncoder | None
    diffusion_model: DiffusionModel
    decoder: Decoder
    image_encoder: ImageEncoder
    tiny_decoder: TinyDecoder | None
    tiny_image_encoder: TinyImageEncoder | None

    def __init__(
        self, preset, dtype, prediction_type, ema, vae=None, text_encoder=None, scheduler=None, tokenizer=None
    ):
        if dtype is not None:
            arguments.choice("dtype", dtype, DTYPES)
        if prediction_type is not None:
            arguments.choice("prediction_type", prediction_type, PREDICTION_TYPES)
        self._preset = "random weights" if isinstance(preset, Architecture) else str(preset)
        with keras_settings():
            self._dtype = dtype or keras.config.dtype_policy()
        self._vae_dtype = dtype if dtype in STORED else VAE_DTYPE
        given = {"vae": vae, "text_encoder": text_encoder, "scheduler": scheduler}
        given = {name: value for name, value in given.items() if value is not None}
        self._parts = {name: PartFiles(name, given[name]) for name in PARTS if name in given}
        if isinstance(preset, Architecture):
            if ema:
                raise ValueError(f"`ema` is for checkpoints; random weights have no averages. Received: {ema=!r:.200}")
            if given:
                raise ValueError(
                    f"Parts are given to a checkpoint, not to random weights. Received: {', '.join(given)}"
                )
            self._checkpoint = None
            self.architecture = replace(preset, prediction_type=prediction_type or preset.prediction_type)
        else:
            self._checkpoint = presets.read(preset, prediction_type, ema, given.keys())
            self.architecture = self._checkpoint.architecture
            if scheduler is not None:
                config = read_scheduler(scheduler, self.architecture.prediction_type)
                self._checkpoint.scheduler_config = config
                predicted = config["prediction_type"] = prediction_type or config["prediction_type"]
                self.architecture = replace(self.architecture, prediction_type=predicted)
            for files in self._parts.values():
                self.architecture = files.architecture(self.architecture)
        folder = self._checkpoint and self._checkpoint.path / "tokenizer"
        self._tokenizer_source = folder if tokenizer is None and folder and folder.is_dir() else tokenizer
        self.tokenizer, self._loras = self._make_tokenizer(), Loras()
        self.lora_folder: str | os.PathLike[str] | None = None
        self._loaded, self._ip_adapters = {}, {}
        self.tiny_decoder = self.tiny_image_encoder = None

    def _make_tokenizer(self):
        shape = self.architecture.text_encoder
        tokenizer = read_tokenizer(self._tokenizer_source, shape.vocabulary if shape and self._checkpoint else None)
        self._words = tokenizer.added_tokens
        return tokenizer

    def __getattr__(self, name):
        if name not in CLASSES:
            return self.__getattribute__(name)  # says what is missing, if need be in a property
        if name not in self.architecture.networks:
            return None  # a text encoder
        model = vars(self).get("_model", self)
        with _loading_lock:
            if name not in vars(model):
                model._load((name,) if name in ALONE else None)
            return vars(self).setdefault(name, vars(model)[name])

    @contextmanager
    def _for_one_call(self):
        """Gives the model as it is now: what is assigned meanwhile does not reach it, and its weights cannot change."""
        with reading(self):
            model = object.__new__(type(self))
            vars(model).update(vars(self), _model=self)  # what it still loads, it loads for both
            with reading(*model._present().values()):
                yield model

    def _present(self):
        """The networks that are loaded, by name."""
        return {name: vars(self)[name] for name in CLASSES if name in vars(self)}

    def __getstate__(self):
        return vars(self) | {"unchanged": Unchanged(self, *self._present().values())}

    def __setstate__(self, state):
        vars(self).update({name: value for name, value in state.items() if name != "unchanged"})

    def _load(self, names=None):
        """Makes networks, those that are loaded together unless named; one that was assigned meanwhile stays."""
        names = names or [name for name in self.architecture.networks if name not in ALONE]
        if self._checkpoint:
            require_tensors(self._checkpoint, [name for name in names if NETWORKS[name][0] not in self._parts])
        with no_leftovers():
            networks = {name: self._build(name) for name in names}
            if self._checkpoint:
                self._fill(networks)
        missing = {name: network for name, network in networks.items() if name not in vars(self)}
        vars(self).update(missing)
        self._loaded |= missing

    def _fill(self, networks):
        """Loads networks from the files that their parts were given by, or from the checkpoint."""
        for part, files in [*self._parts.items(), (None, self._checkpoint)]:
            its = {
                name: network
                for name, network in networks.items()
                if (folder := NETWORKS[name][0]) == part or (part is None and folder not in self._parts)
            }
            if its:
                files.load(**its)

    def _build(self, name, architecture=None):
        """A network that waits for its first values, or a random one if there is nothing to load."""
        dtype = self._vae_dtype if name in AUTOENCODER else self._dtype
        with keras.StatelessScope(initialize_variables=self._checkpoint is None):
            return make(
                name, architecture=architecture or self.architecture, initialize=self._checkpoint is None, dtype=dtype
            )

    def unload(self, discard: bool = False) -> None:
        """Lets go of the networks, see `StableDiffusion.unload`."""
        with nullcontext() if reads(self) else changing(self), _loading_lock:
            lost = [] if self._checkpoint else ["random weights, which have no preset to be loaded from"]
            lost += [f"the LoRAs {[*self.loras]}"] if self.loras else []
            lost += [f"the IP-Adapters {[*self._ip_adapters]}"] if self._ip_adapters else []
            learned = [word for word in self.tokenizer.added_tokens if word not in self._words]
            lost += [f"the words {learned}"] if learned else []
            present = self._present()
            replaced = [name for name, network in present.items() if network is not self._loaded.get(name)]
            lost += [f"the networks assigned to {', '.join(replaced)}"] if replaced else []
            if lost and not discard:
                raise ValueError(
                    f"`unload` would lose {'; '.join(lost)}. Save the model, or call unload(discard=True)."
                )
            for name in present:
                del vars(self)[name]
            self._loaded, self._loras, self._ip_adapters = {}, Loras(), {}
            if learned:
                self.tokenizer = self._make_tokenizer()

    def load_vae(self, path: str | os.PathLike[str]) -> None:
        """Loads another autoencoder (VAE), the decoder and the image encoder; `unload` keeps to it.

        Args:
            path: A folder in diffusers layout, of the VAE or of a whole model. Or a file, safetensors or a pickle, with
                the names of diffusers or of the original (LDM) layout, of the VAE or of a whole model.

        Raises:
            CheckpointError: If there is none, or it is damaged or made for another model. The model is then as it was.
        """
        with changing(self), naming(path), no_leftovers():
            files = PartFiles("vae", path)
            architecture = files.architecture(self.architecture)
            networks = {name: self._build(name, architecture) for name in AUTOENCODER}
            files.load(**networks)
            self._parts, self.architecture = {**self._parts, "vae": files}, architecture
            vars(self).update(networks)
            self._loaded = self._loaded | networks

    def load_tiny_vae(self, path: str | os.PathLike[str]) -> None:
        """Loads a tiny autoencoder (TAESD), which draws nearly the same images in a small part of the time.

        From then on `preview` draws with it, and so does every call with `tiny_vae=True`. It stays through `unload`.

        Args:
            path: A folder of diffusers' `AutoencoderTiny`; or a file, safetensors or a pickle, such as
                taesd_decoder.safetensors. A file that holds one half, the decoder or the image encoder, leaves the
                other as it is.

        Raises:
            CheckpointError: If there is none, or it is damaged or made for other latents. The model is then as it was.

        Example:
            model.load_tiny_vae("taesd")
            images = model.text_to_image("a bird", tiny_vae=True)
        """
        with changing(self), naming(path), no_leftovers():
            files = tiny_vae_files.TinyVaeFiles(path, self.architecture)
            if tiny_vae_files.made_for_other(path, self.architecture):
                logger.warning("%s seems to be for another model: taesdxl is for SDXL, taesd for the others.", path)
            options = {"initialize": False, "dtype": self._vae_dtype}
            with keras.StatelessScope(initialize_variables=False):  # what does not fit takes no memory
                networks = {
                    name: TINY[name](architecture=shape, **options) for name, shape in files.architectures.items()
                }
            files.load(**networks)
            vars(self).update(networks)

    def save_tiny_vae(self, path: str | os.PathLike[str], dtype: str = "float32") -> None:
        """Writes the tiny autoencoder.

        Args:
            path: A folder for diffusers' `AutoencoderTiny`; or, if only one half is loaded, a file whose name ends in
                .safetensors, as madebyollin/taesd has them. It must not exist yet.
            dtype: What the weights are stored in, "float32", "float16" or "bfloat16".

        Raises:
            FileExistsError: If there is something at `path`.
            ValueError: If `dtype` is another one, or the halves that are loaded are not those that `path` needs.
        """
        networks = {name: network for name in TINY if (network := getattr(self, name))}
        with reading(self):
            tiny_vae_files.save(path, dtype, **networks)

    def load_controlnet(self, path: str | os.PathLike[str]) -> ControlNet:
        """Loads a ControlNet (Zhang et al. 2023, arXiv:2302.05543), for the `control` of a call.

        Args:
            path: A folder in diffusers layout: config.json and diffusion_pytorch_model.safetensors or .bin. Or a file,
                safetensors or a pickle, with the names of diffusers or of the original (LDM) layout, alone or within a
                whole model.

        Returns:
            A `ControlNet`.

        Raises:
            CheckpointError: If there is none, or it is damaged or made for another model.

        Example:
            canny = model.load_controlnet("sd-controlnet-canny")
            model.text_to_image("a bird", control=(canny, "edges.png", 0.8))
        """
        with naming(path), no_leftovers():
            source = ControlNetFiles(path, self.architecture)
            network = ControlNet(**source.options, initialize=False, dtype=self.diffusion_model.get_config()["dtype"])
            source.load(network)
        return network

    @property
    def ip_adapters(self) -> list[str]:
        """The names of the IP-Adapters that are loaded."""
        return [*self._ip_adapters]

    def load_ip_adapter(
        self,
        path: str | os.PathLike[str],
        image_encoder: str | os.PathLike[str] | None = None,
        name: str | None = None,
    ) -> str:
        """Loads an IP-Adapter (Ye et al. 2023, arXiv:2308.06721), for the `image_prompt` of a call.

        Args:
            path: A safetensors file or a pickle of the kinds plain, plus and full-face; or a folder that holds one.
            image_encoder: The CLIP vision encoder that it was made for, a folder as transformers saves it or a file.
                None looks for a folder "image_encoder" beside the adapter, and takes one that is loaded if it fits.
            name: What to call it; None takes the file's name without its suffix.

        Returns:
            The name.

        Raises:
            CheckpointError: If there is none, or it is damaged or made for another model or image encoder. The model is
                then as it was.
            FileNotFoundError: If there is no file.
            TypeError: If an argument is of the wrong type.
            ValueError: If an IP-Adapter of this name is loaded.

        Example:
            model.load_ip_adapter("models/ip-adapter_sd15.safetensors")
            model.text_to_image("a bird", image_prompt=("style.png", 0.6))
        """
        for argument, value in (("path", path), ("image_encoder", image_encoder)):
            if not isinstance(value, str | os.PathLike) and (value is not None or argument == "path"):
                raise TypeError(f"`{argument}` must be a file or a folder. Received: {argument}={value!r:.200}")
        (name,) = arguments.texts("name", Path(path).stem if name is None else name)
        with changing(self):
            if name in self._ip_adapters:
                raise ValueError(f"An IP-Adapter of this name is loaded; choose another. Received: name={name!r:.200}")
            dtype, loaded = self.diffusion_model.get_config()["dtype"], self._ip_adapters.values()
            with naming(path), no_leftovers():
                adapter = load_ip_adapter(path, image_encoder, self.architecture, dtype, loaded)
            self._ip_adapters = {**self._ip_adapters, name: adapter}
        return name

    def unload_ip_adapter(self, name: str | None = None) -> None:
        """Lets go of an IP-Adapter, and of its image encoder if no other one uses it.

        Args:
            name: Its name, see `ip_adapters`; None lets go of all of them.

        Raises:
            ValueError: If no IP-Adapter of this name is loaded.
        """
        with changing(self):
            names = [*self._ip_adapters] if name is None else [name]
            if unknown := [each for each in names if each not in self._ip_adapters]:
                raise ValueError(
                    f"The IP-Adapters that are loaded are {[*self._ip_adapters]}. Received: name={unknown[0]!r:.200}"
                )
            self._ip_adapters = {each: x for each, x in self._ip_adapters.items() if each not in names}

    def save_to_preset(self, path: str | os.PathLike[str], dtype: str = "float32") -> None:
        """Writes the model as a folder in diffusers layout, which `from_preset` and diffusers load.

        LoRAs that are loaded become part of the weights.

        Args:
            path: The folder; it must not exist yet.
            dtype: What the weights are stored in, "float32", "float16" or "bfloat16".

        Raises:
            FileExistsError: If there is something at `path`.
            ValueError: If `dtype` is another one, or a weight is not finite in it.
        """
        self._save(diffusers_folder.save, path, dtype, words=self.tokenizer)

    def export_checkpoint(self, path: str | os.PathLike[str], dtype: str = "float32") -> None:
        """Writes the model as one safetensors file in the original (LDM) layout, which most other tools load.

        Args:
            path: The file, whose name ends in .safetensors; it must not exist yet.
            dtype: What the weights are stored in, "float32", "float16" or "bfloat16".

        Raises:
            FileExistsError, ValueError: As `save_to_preset`; also if the name ends otherwise, or the model has learned
                words, for which the file has no place: save it before `load_textual_inversion`.
        """
        if Path(path).suffix.lower() != ".safetensors":
            raise ValueError(f"The file's name must end in .safetensors. Received: path={str(path)!r:.200}")
        textual_inversion.refuse_words(self.tokenizer)
        self._save(single_file.save, path, dtype)

    def _save(self, save, path, dtype, **others):
        with self._for_one_call() as model:
            architecture = model.architecture
            if architecture.text_encoder and self.tokenizer.added_tokens:
                known = replace(architecture.text_encoder, vocabulary=self.tokenizer.vocab_size)
                architecture = replace(architecture, text_encoder=known)
            save(
                path,
                architecture,
                **others,
                dtype=dtype,
                scheduler_config=model._checkpoint and model._checkpoint.scheduler_config,
                **{name: getattr(model, name) for name in model.architecture.networks},
            )

    @property
    def loras(self) -> dict[str, Scale]:
        """The LoRAs that are fused into the weights: a dict from names to scales."""
        return self._loras.scales

    def load_lora(self, path: str | os.PathLike[str], scale: Scale = 1.0, name: str | None = None) -> str:
        """Fuses a LoRA into the weights of the text encoder and the diffusion model; nothing is compiled again.

        Several LoRAs add up, in whichever order they are loaded. Other changes to these weights in between are lost.

        Args:
            path: A safetensors file or a pickle of diffusers, peft, kohya's sd-scripts, LyCORIS or ComfyUI: a LoRA,
                LoCon, DoRA, LoHa or LoKr, full differences of weights, norms and biases.
            scale: How strong it is, any finite number; 1 as it was trained. A dict gives networks and blocks a scale
                of their own, and leaves 1 to the rest: {"text_encoder": 0.5, "diffusion_model": 0.8, "mid_block": 0}.
                A block is how the names of its layers begin in diffusers.
            name: What to call it; None takes the file's name without its suffix.

        Returns:
            The name.

        Raises:
            CheckpointMismatchError: If anything in the file does not fit the networks; every tensor is named. The
                weights are then as they were, as on every other error.
            CorruptCheckpointError: If the file is damaged or of another kind.
            FileNotFoundError: If there is no file.
            TypeError: If an argument is of the wrong type.
            ValueError: If a LoRA of this name is loaded, `scale` is not finite or names no block, or a network has been
                replaced.
        """
        with changing(self, *self._present().values()):
            return self._loras.load(path, scale, name, **self._adapted())

    def _adapted(self):
        """The networks that LoRAs change, by name."""
        return {name: getattr(self, name) for name in ADAPTED if name in self.architecture.networks}

    def set_lora_scale(self, name: str, scale: Scale) -> None:
        """Changes how strong a loaded LoRA is; its file is not read again, and nothing is compiled.

        Args:
            name: Its name, see `loras`.
            scale: See `load_lora`. At 0 the weights are, bit for bit, those without it.

        Raises:
            TypeError, ValueError: If no LoRA of this name is loaded, or `scale` is wrong. Nothing has been changed.
        """
        with changing(self, *self._loras.networks.values()):
            self._loras.set_scale(name, scale)

    def unload_lora(self, name: str | None = None) -> None:
        """Takes a LoRA out of the weights again: they are, bit for bit, as if it had not been loaded.

        Args:
            name: Its name, see `loras`; None takes out all of them.

        Raises:
            ValueError: If no LoRA of this name is loaded.
        """
        with changing(self, *self._loras.networks.values()):
            self._loras.unload(name)

    @contextmanager
    def _loras_of_prompt(self, prompt, prompt_weighting):
        """Gives the LoRAs that a prompt names their scales for as long as the block runs.

        Args:
            prompt: See `text_to_image`.
            prompt_weighting: Whether tags are read at all.

        Yields:
            The prompt without tags.
        """
        prompt, scales = take_loras("prompt", prompt) if prompt_weighting is True else (prompt, {})
        if not scales:
            yield prompt
            return
        paths = {name: None if name in self.loras else lora_folder.find(self.lora_folder, name) for name in scales}
        with changing(self, *self._present().values()), self._loras.during(paths, scales, **self._adapted()):
            yield prompt

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
            ValueError: If the word is one token already, or the model has two text encoders.
        """
        if self.architecture.text_encoder_2:
            raise ValueError(
                "Textual inversions are for models with one text encoder, Stable Diffusion 1 and 2. "
                f"Received: path={str(path)!r:.200}, a model of {self.architecture.name!r}"
            )
        with changing(self, *self._present().values()):
            text_encoder, token = textual_inversion.load(path, token, self.text_encoder, self.tokenizer)
            self._loras.replace("text_encoder", self.text_encoder, text_encoder)
            self.text_encoder = text_encoder
        return token
