"""The parts of a model: where they come from, what is added to them, and how they are saved and let go."""

import logging
import os
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict

import keras

from keras_diffusion import arguments
from keras_diffusion.architectures import DTYPES, INT8, PREDICTION_TYPES, STORED, Architecture
from keras_diffusion.checkpoints import presets
from keras_diffusion.checkpoints.adapters import textual_inversion
from keras_diffusion.checkpoints.layouts import diffusers_folder, single_file, tiny_vae_files
from keras_diffusion.checkpoints.layouts.files import naming
from keras_diffusion.checkpoints.layouts.part_files import PARTS, PartFiles, read_scheduler
from keras_diffusion.checkpoints.layouts.tokenizer_files import read_tokenizer
from keras_diffusion.checkpoints.mapping.loading import require_tensors
from keras_diffusion.checkpoints.mapping.names import NETWORKS
from keras_diffusion.components.adapters import Adapters
from keras_diffusion.engines.engine import checksum
from keras_diffusion.networks.classes import CLASSES, make
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.image_encoder import ImageEncoder
from keras_diffusion.networks.keras_internals import no_leftovers
from keras_diffusion.networks.network import keras_settings
from keras_diffusion.networks.text_encoder import TextEncoder
from keras_diffusion.networks.tiny_autoencoder import TinyDecoder, TinyImageEncoder
from keras_diffusion.prompts.tokenizer import SimpleTokenizer
from keras_diffusion.system.locks import Unchanged, changing, reading, reads
from keras_diffusion.system.processes import require_own_process

logger = logging.getLogger(__name__)

ALONE = ("image_encoder",)  # loaded when first needed; all others at the start, and after `unload`
AUTOENCODER = ("decoder", "image_encoder")
_loading_lock = Lock()  # one for all models: a model's own could be neither copied nor pickled
TINY = {"tiny_decoder": TinyDecoder, "tiny_image_encoder": TinyImageEncoder}
Source = str | os.PathLike[str] | None  # of a part of a model
VAE_DTYPE = "float32"  # half precision overflows in the VAE decoder of Stable Diffusion


class Parts(TypedDict, total=False):
    """Says where parts of a model are taken from; None takes the preset's.

    Args:
        vae: The autoencoder, see `load_vae`.
        text_encoder: The text encoder, of the same width.
        scheduler: The noise schedule and sampler: a scheduler_config.json of diffusers, its folder, or its contents as
            a dict.
        tokenizer: The words that the tokenizer has beyond CLIP's: a folder as transformers saves it, or a
            `SimpleTokenizer`.
        diffusion_model: The diffusion model, of the same shape: the unet folder of diffusers, or a file with the UNet
            alone or within a whole model, such as one of GGUF.
        offload: Whether the text encoders, the diffusion model and the autoencoder are in memory in turn. Each is
            loaded when a call comes to it and let go of afterwards: the same images, later, in less memory. A network
            that was changed after it was loaded, as by a LoRA, stays in memory.
    """

    vae: Source
    text_encoder: Source
    scheduler: Source | dict[str, Any]
    tokenizer: Source | SimpleTokenizer
    diffusion_model: Source
    offload: bool


class Components(Adapters):
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
        self,
        preset,
        dtype,
        prediction_type,
        ema,
        vae=None,
        text_encoder=None,
        scheduler=None,
        tokenizer=None,
        diffusion_model=None,
        offload=False,
    ):
        if arguments.boolean("offload", offload) and isinstance(preset, Architecture):
            raise ValueError("Random weights cannot be loaded again, as `offload` needs. Received: offload=True")
        self._offload, self._checksums = offload, {}
        if dtype is not None:
            arguments.choice("dtype", dtype, DTYPES)
        if prediction_type is not None:
            arguments.choice("prediction_type", prediction_type, PREDICTION_TYPES)
        self._preset = "random weights" if isinstance(preset, Architecture) else str(preset)
        with keras_settings():
            self._dtype = dtype or keras.config.dtype_policy()
        self._vae_dtype = dtype if dtype in STORED and dtype not in INT8 else VAE_DTYPE
        given = {
            "vae": vae,
            "text_encoder": text_encoder,
            "diffusion_model": diffusion_model,
            "scheduler": scheduler,
        }
        given = {name: value for name, value in given.items() if value is not None}
        self._parts = {PARTS[name]: PartFiles(name, given[name]) for name in PARTS if name in given}
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
        self.tokenizer, self._loaded = self._make_tokenizer(), {}
        self.lora_folder: str | os.PathLike[str] | None = None
        self._forget_adapters()
        self.tiny_decoder = self.tiny_image_encoder = None

    def _make_tokenizer(self):
        shape = self.architecture.text_encoder
        tokenizer = read_tokenizer(self._tokenizer_source, shape.vocabulary if shape else None)
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
                model._load((name,) if name in ALONE or self._offload else None)
            return vars(self).setdefault(name, vars(model)[name])

    @contextmanager
    def _for_one_call(self):
        """Gives the model as it is now: what is assigned meanwhile does not reach it, and its weights cannot change."""
        require_own_process()
        with reading(self):
            model = object.__new__(type(self))
            vars(model).update(vars(self), _model=self)  # what it still loads, it loads for both
            try:
                with reading(*model._present().values()):
                    yield model
            finally:
                model._let_go()

    def _let_go(self, *kept):
        """Lets go, with `offload`, of all networks but those named and those that loading does not bring back."""
        if not self._offload:
            return
        model = vars(self).get("_model", self)
        with _loading_lock:
            present = {name: network for name, network in model._present().items() if name not in kept}
            gone = [name for name, network in present.items() if model._comes_back(name, network)]
            for name in gone:
                del vars(model)[name], model._loaded[name]
                vars(self).pop(name, None)
        for name in present.keys() - gone:
            logger.warning("`offload`: %s stays in memory, for it was changed after it was loaded", name)
        if gone:
            self._engine.unload()

    def _comes_back(self, name, network):
        """Tells whether a network is again what it is when it is loaded again."""
        adapted = self.loras or self._ip_adapters or self.tokenizer.added_tokens.keys() - self._words.keys()
        return network is self._loaded.get(name) and not adapted and checksum(network) == self._checksums[name]

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
        self._loaded = self._loaded | missing
        if self._offload:
            self._checksums |= {name: checksum(network) for name, network in missing.items()}

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
            self._loaded = {}
            self._forget_adapters()
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
            self._checksums |= {name: checksum(network) for name, network in networks.items() if self._offload}

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
