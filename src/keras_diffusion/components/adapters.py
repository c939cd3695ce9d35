"""The adapters of a model: ControlNets, T2I-adapters, IP-Adapters, LoRAs and learned words."""

import logging
import os
from contextlib import contextmanager
from pathlib import Path

from keras_diffusion import arguments
from keras_diffusion.checkpoints.adapters import lora_folder, textual_inversion
from keras_diffusion.checkpoints.adapters.ip_adapter_file import load_ip_adapter
from keras_diffusion.checkpoints.adapters.lora_fusion import Loras, Scale
from keras_diffusion.checkpoints.layouts.controlnet_files import ControlNetFiles
from keras_diffusion.checkpoints.layouts.files import naming
from keras_diffusion.checkpoints.layouts.t2i_adapter_files import T2IAdapterFiles
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.networks.keras_internals import no_leftovers
from keras_diffusion.networks.t2i_adapter import T2IAdapter
from keras_diffusion.prompts.tags import take_loras
from keras_diffusion.system.locks import changing

logger = logging.getLogger(__name__)

ADAPTED = ("text_encoder", "text_encoder_2", "diffusion_model")  # by LoRAs


class Adapters:
    """Loads adapters for the networks of a `StableDiffusion`, and lets go of them."""

    _few_steps = None  # of a LoRA that was distilled for few steps, while it is loaded

    def _forget_adapters(self):
        self._loras, self._ip_adapters = Loras(), {}
        self._follow_few_steps()

    def _follow_few_steps(self):
        """Takes the sampler and the defaults of a LoRA that was distilled for few steps, as long as it is loaded."""
        few = self._loras.few_steps
        if few == self._few_steps:
            return
        own = self._without_few_steps if self._few_steps else (self.sampler, self.schedule, self.defaults)
        sampler, schedule, defaults = own
        if few:
            kept = {key: schedule[key] for key in ("prediction_type", "alphas_cumprod") if key in schedule}
            sampler, schedule, defaults = few.sampler, kept | few.schedule, few.defaults
            logger.info("Drawn with %s, %d steps and guidance %g unless a call says otherwise.", sampler, *defaults)
        taken = {"sampler": sampler, "schedule": schedule, "defaults": defaults}
        self._without_few_steps = own
        vars(self).update(taken, _few_steps=few)  # all or, on an interrupt, nothing

    @contextmanager
    def _changing_loras(self, networks):
        """Lets the block change the LoRAs of networks; whatever they are then, the model follows them."""
        with changing(self, *networks.values()):
            try:
                yield
            finally:
                self._follow_few_steps()

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

    def load_t2i_adapter(self, path: str | os.PathLike[str]) -> T2IAdapter:
        """Loads a T2I-adapter (Mou et al. 2023, arXiv:2302.08453), for the `control` of a call.

        Args:
            path: A folder of diffusers' `T2IAdapter`; or a file, safetensors or a pickle, with the names of diffusers
                or of TencentARC/T2I-Adapter.

        Returns:
            A `T2IAdapter`.

        Raises:
            CheckpointError: If there is none, or it is damaged or made for another model.

        Example:
            sketch = model.load_t2i_adapter("t2iadapter_sketch_sd15v2.pth")
            model.text_to_image("a bird", control=(sketch, "drawing.png", 0.8))
        """
        with naming(path), no_leftovers():
            source = T2IAdapterFiles(path, self.architecture)
            dtype = self.diffusion_model.get_config()["dtype"]
            network = T2IAdapter(source.shape, initialize=False, dtype=dtype)
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
        """Lets go of an IP-Adapter, of its image encoder if no other one uses it, and of what was compiled for them.

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
            before = _networks(self._ip_adapters.values())
            self._ip_adapters = {each: x for each, x in self._ip_adapters.items() if each not in names}
            kept = _networks(self._ip_adapters.values())
            self._engine.forget([network for number, network in before.items() if number not in kept])

    @property
    def loras(self) -> dict[str, Scale]:
        """The LoRAs that are fused into the weights: a dict from names to scales."""
        return self._loras.scales

    def load_lora(self, path: str | os.PathLike[str], scale: Scale = 1.0, name: str | None = None) -> str:
        """Fuses a LoRA into the weights of the text encoder and the diffusion model; nothing is compiled again.

        As long as a LoRA is loaded that was distilled for few steps and whose name says so (LCM, TCD, Hyper-SD,
        SDXL-Lightning), the model's `sampler` and `defaults` are those that it was made for.

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
        with self._changing_loras(self._present()):
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
        with self._changing_loras(self._loras.networks):
            self._loras.set_scale(name, scale)

    def unload_lora(self, name: str | None = None) -> None:
        """Takes a LoRA out of the weights again: they are, bit for bit, as if it had not been loaded.

        Args:
            name: Its name, see `loras`; None takes out all of them.

        Raises:
            ValueError: If no LoRA of this name is loaded.
        """
        with self._changing_loras(self._loras.networks):
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
        with self._changing_loras(self._present()), self._loras.during(paths, scales, **self._adapted()):
            self._follow_few_steps()
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


def _networks(adapters):
    """The networks of IP-Adapters, by id: several may share an image encoder."""
    return {id(network): network for adapter in adapters for network in (adapter.network, adapter.encoder)}
