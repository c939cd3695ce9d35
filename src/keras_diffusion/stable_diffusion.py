"""The facade: prompts to images."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, Self, Unpack

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_diffusion import arguments
from keras_diffusion.architectures import Architecture
from keras_diffusion.checkpoints import presets
from keras_diffusion.checkpoints.layouts.files import naming
from keras_diffusion.components.components import Components, Parts
from keras_diffusion.engines.engine import Engine, JitCompile, finite
from keras_diffusion.engines.plan import Plan
from keras_diffusion.errors import GenerationCancelled
from keras_diffusion.exporting.export import export
from keras_diffusion.generation.conditions import encode_start, make_conditions, starting_latents
from keras_diffusion.generation.hires import make_passes, start_from
from keras_diffusion.generation.options import Options, OptionsOnce, OptionsWithImage, OptionsWithMask, OptionsWithNoise
from keras_diffusion.generation.refiner import make_parts
from keras_diffusion.generation.results import decode_images, show_roughly
from keras_diffusion.generation.texts import EncodedText, encode_prompts, read
from keras_diffusion.learning import Learning
from keras_diffusion.sampling import noise
from keras_diffusion.sampling.defaults import find_defaults
from keras_diffusion.sampling.scheduler_config import from_scheduler_config
from keras_diffusion.system.locks import resumed
from keras_diffusion.terminal import bar_or_line

Preset = str | os.PathLike[str] | Architecture
NegativePrompt = str | Sequence[str] | np.ndarray | EncodedText | None
Guidance = float | Sequence[float] | np.ndarray
Images = Any  # a uint8 array, or what the option `output` says


class StableDiffusion(Components, Learning):
    """Stable Diffusion: text to image by latent diffusion (Rombach et al. 2022, arXiv:2112.10752).

    The constructor, methods and defaults are those of `keras_cv.models.StableDiffusion`. The networks are plain
    attributes: assign another one, or load weights into one, and the next call uses it.

    Args:
        img_height: Height of the images in pixels, a multiple of the latent factor (8; 4 for "emoji"). None takes the
            size the model was trained at.
        img_width: Likewise, the width.
        jit_compile: "auto" compiles where that pays for the backend, the device and the size of the
            images, see the property `way`. True compiles with XLA on TensorFlow and `torch.compile` on torch; False
            runs TensorFlow's plain graph and eager torch. JAX compiles in any case. "openvino" runs the networks with
            OpenVINO on the processor, whatever the backend.
        dtype: "float32", "mixed_float16", "mixed_bfloat16", "float16" or "bfloat16", for the text encoder and the
            diffusion model; the autoencoder always computes in float32. "float32_from_float16" and
            "float32_from_bfloat16" compute in float32 with weights stored in half precision, in half the memory, those
            of the autoencoder too. "float32_from_int8", "float16_from_int8" and "bfloat16_from_int8" store the kernels
            of the text encoder and the diffusion model as int8, in a quarter of the memory; they take no LoRA and
            cannot be trained. None takes Keras' global policy.
        preset: The weights: a bundled name ("emoji"), a folder in diffusers layout or of KerasCV's .h5 files, a single
            .safetensors, .ckpt or .gguf file in the original (LDM) layout, or a built-in name such as "sd14" that says
            how to get them. An `Architecture` builds untrained networks with random weights.
        prediction_type: What the diffusion model predicts, "epsilon", "v_prediction" or "sample"; None takes the
            checkpoint's word. Only single files of Stable Diffusion 2 leave it open, and then say so.
        ema: Whether to take the moving averages (EMA) that a single file may hold beside its weights.
        **parts: What to take from elsewhere than the preset, see `Parts`.

    Attributes:
        architecture: The `Architecture` of the networks.
        tokenizer: A `SimpleTokenizer`.
        text_encoder: A `TextEncoder`; None in the refiner of SDXL.
        text_encoder_2: The second `TextEncoder` of SDXL; None in other models.
        diffusion_model: A `DiffusionModel`.
        decoder: A `Decoder`.
        image_encoder: An `ImageEncoder`, loaded when it is first needed.
        tiny_decoder: What `load_tiny_vae` loads, a `TinyDecoder`; None before, as for `tiny_image_encoder`.
        sampler: Name of the sampler that is used unless a call names another one.
        ip_adapters: The names of the IP-Adapters that are loaded.
        lora_folder: Folder with the files of LoRAs that prompts may name, or None, as at first. With
            `prompt_weighting`, <lora:name:0.8> in a prompt fuses the file of that name for the call, or gives a loaded
            LoRA that scale for the call.
        defaults: The number of steps and the guidance that calls take unless they say otherwise, by the checkpoint: 50
            and 7.5 as in KerasCV, 25 and 2 for "emoji", fewer for networks distilled for few steps.
        safety: Function of images, uint8 (b, height, width, 3), that returns b bools, or None, as at first. What draws
            images asks it, and raises `FlaggedImagesError` with all of them if it flags any; none is altered. `decode`,
            `preview` and latents are not checked.

    Example:
        model = StableDiffusion.from_preset("emoji")
        images = model.text_to_image("a slice of pizza", batch_size=3, seed=42)  # uint8 (3, 64, 64, 3)
    """

    def __init__(
        self,
        img_height: int | None = None,
        img_width: int | None = None,
        jit_compile: JitCompile = "auto",
        dtype: str | None = None,
        preset: Preset = "sd14",
        prediction_type: str | None = None,
        ema: bool = False,
        **parts: Unpack[Parts],
    ) -> None:
        for name, side in (("img_height", img_height), ("img_width", img_width)):  # where a preset is given by mistake
            if side is not None:
                arguments.whole_number(name, side, 1, arguments.LARGEST_SIDE)
        super().__init__(preset, dtype, prediction_type, ema, **parts)
        self._engine = Engine(jit_compile)
        self.safety: Callable[[np.ndarray], ArrayLike] | None = None
        self.img_height = self.img_width = self.architecture.image_size
        self.img_height, self.img_width = self.side("img_height", img_height), self.side("img_width", img_width)
        self.sampler, self.schedule = "ddim", {"prediction_type": self.architecture.prediction_type}
        if self._checkpoint:
            with naming(self._checkpoint.path):
                self.sampler, self.schedule = from_scheduler_config(self._checkpoint.scheduler_config)
        name = os.path.basename(self._checkpoint.path) if self._checkpoint else ""
        self.defaults = find_defaults(self.architecture, self.sampler, self.schedule, name)
        if not self._offload:
            self._load()

    @classmethod
    def from_preset(
        cls,
        preset: Preset,
        dtype: str | None = None,
        img_height: int | None = None,
        img_width: int | None = None,
        jit_compile: JitCompile = "auto",
        prediction_type: str | None = None,
        ema: bool = False,
        **parts: Unpack[Parts],
    ) -> Self:
        """Loads a model, and downloads it first where `preset` names one that is not at hand.

        The arguments are the constructor's, which itself never downloads. `preset` may also be
        "hf://owner/repository" or "hf://owner/repository@revision", in diffusers layout or KerasCV's .h5 files; that
        needs the package huggingface_hub. Size and licence are logged before a built-in model is downloaded.
        """
        if isinstance(preset, Architecture):
            return cls(img_height, img_width, jit_compile, dtype, preset, prediction_type, ema, **parts)
        path = presets.find(preset, may_download=True)
        model = cls(img_height, img_width, jit_compile, dtype, path, prediction_type, ema, **parts)
        model._preset = str(preset)  # the name rather than where its files lie
        return model

    def unload(self, discard: bool = False) -> None:
        """Frees the memory of the networks and of what was compiled; the next call that needs them loads them again.

        Args:
            discard: Whether to give up what loading does not bring back. Weights that were changed in place, by
                `load_weights` or by training, are lost in any case.

        Raises:
            ValueError: If anything else would be lost, unless `discard`. Nothing has been done.
        """
        super().unload(discard)
        self._engine.unload()

    def __repr__(self) -> str:
        dtype = getattr(self._dtype, "name", self._dtype)
        return (
            f"{type(self).__name__}(preset={self._preset!r}, img_height={self.img_height}, img_width={self.img_width}, "
            f"dtype={dtype!r}, backend={keras.backend.backend()!r})"
        )

    @property
    def way(self) -> str:
        """The runner of the diffusion model for one image: "graph", "xla", "jit", "eager", "inductor" or "openvino"."""
        size = self.architecture.autoencoder.latent_size(self.img_height, self.img_width)
        return self._engine.runner(self.diffusion_model, (1, *size, self.diffusion_model.inputs[0].shape[-1]))

    def text_to_image(
        self,
        prompt: str | Sequence[str],
        negative_prompt: NegativePrompt = None,
        batch_size: int | None = None,
        num_steps: int | None = None,
        unconditional_guidance_scale: Guidance | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Unpack[Options],
    ) -> Images:
        """Draws images of a prompt.

        Args:
            prompt: What to draw; a str, or a list with one for each image.
            negative_prompt: What to keep away from; likewise, or a context as `encode_text` returns it. None is the
                empty prompt, or for models that were trained so, as SDXL, a context of zeros; "" is the empty prompt.
            batch_size: Number of images, 1 to 1024; None takes one for each prompt.
            num_steps: Number of steps, 1 to 1000. None takes the checkpoint's own number, `defaults.num_steps`.
            unconditional_guidance_scale: How much to follow the prompt; a number of at least 0, or a list with one
                for each image. At 1 the negative prompt has no part and costs nothing. None takes `defaults.guidance`.
            seed: Where the noise comes from: an int from 0 to 2**63 - 1, where image i takes seed + i, or a list with
                one for each image. None takes another one every time.
            **options: See `keras_diffusion.Options`.

        Returns:
            A uint8 array (batch_size, height, width, 3), or what the option `output` says.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range, or a prompt is too long.
            NumericalError: If a stage gives values that are not finite.
            GenerationCancelled: If the callback returned False.
        """
        weighting = options.get("prompt_weighting")
        with self._loras_of_prompt(prompt, weighting) as prompt, self._for_one_call() as model:
            given = prompt, negative_prompt, batch_size, num_steps, unconditional_guidance_scale, seed
            first, *others = make_passes(model, *given, options)
            drawn = model._draw(first)
            for parts in others:
                drawn = model._draw(start_from(parts, drawn))
            return drawn

    def image_to_image(
        self,
        image: Any,
        prompt: str | Sequence[str],
        strength: float = 0.8,
        negative_prompt: NegativePrompt = None,
        batch_size: int | None = None,
        num_steps: int | None = None,
        unconditional_guidance_scale: Guidance | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Unpack[OptionsWithMask],
    ) -> Images:
        """Draws images of a prompt that start from a picture (Meng et al. 2021, "SDEdit", arXiv:2108.01073).

        Args:
            image: The picture, or one for each image: a path to a PNG, JPEG or WebP file, a PIL image, an array (h, w,
                3) or (b, h, w, 3), uint8 or floats in [0, 1], or a list of them; or latents (b, h/f, w/f, c). Its size
                is that of the images; the options `img_height` and `img_width` scale pictures first.
            prompt: What to draw.
            strength: How much to change: more than 0, at most 1. The first `num_steps * (1 - strength)` steps are left
                out; at 1 little of the picture remains, as in diffusers: the first step has some of it left.
            negative_prompt: See `text_to_image`, as for all that follows.
            batch_size: Number of images; None takes one for each prompt or picture.
            num_steps: Number of steps.
            unconditional_guidance_scale: How much to follow the prompt.
            seed: Where the noise comes from.
            **options: See `keras_diffusion.Options`.

        Returns:
            As `text_to_image`.

        Raises:
            TypeError, ValueError, NumericalError, GenerationCancelled: As `text_to_image`; also if the image is
                damaged or of a size that the model cannot draw.
        """
        given = {"image": image, "strength": strength, **options}
        return self.text_to_image(
            prompt, negative_prompt, batch_size, num_steps, unconditional_guidance_scale, seed, **given
        )

    def inpaint(
        self,
        image: Any,
        mask: Any,
        prompt: str | Sequence[str],
        strength: float = 1.0,
        negative_prompt: NegativePrompt = None,
        batch_size: int | None = None,
        num_steps: int | None = None,
        unconditional_guidance_scale: Guidance | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Unpack[OptionsWithNoise],
    ) -> Images:
        """Repaints a part of a picture.

        A model for inpainting, whose diffusion model takes 9 channels, sees the rest of the picture. With any other,
        the rest is put back after every step (Avrahami et al. 2022, "Blended latent diffusion", arXiv:2206.02779).
        Pixels that are not repainted stay exactly as they are.

        Args:
            image: The picture, as in `image_to_image`.
            mask: Where to repaint: white, of the picture's size; as `image`, or an array (h, w) or (b, h, w) of bool,
                uint8 or floats in [0, 1]. A latent is repainted if any of its pixels is.
            prompt: What to draw there.
            strength: How much to change there, see `image_to_image`.
            negative_prompt: See `text_to_image`, as for all that follows.
            batch_size: Number of images.
            num_steps: Number of steps.
            unconditional_guidance_scale: How much to follow the prompt.
            seed: Where the noise comes from.
            **options: See `keras_diffusion.Options`.

        Returns:
            As `text_to_image`.

        Raises:
            TypeError, ValueError, NumericalError, GenerationCancelled: As `image_to_image`; also if the mask has
                another size or repaints nothing.
        """
        return self.image_to_image(
            image,
            prompt,
            strength,
            negative_prompt,
            batch_size,
            num_steps,
            unconditional_guidance_scale,
            seed,
            mask=mask,
            **options,
        )

    def encode_text(
        self,
        prompt: str | Sequence[str],
        prompt_weighting: bool = False,
        long_prompts: Literal["error", "truncate", "chunk"] = "error",
        clip_skip: int = 0,
    ) -> np.ndarray | EncodedText:
        """Turns prompts into the context that `generate_image` takes.

        Args:
            prompt: A str or a list of them.
            prompt_weighting: Whether (word), [word] and (word:1.3) weight words and BREAK begins a new chunk, as in
                A1111, see `prompts`; otherwise brackets are text. <lora:name:0.8> is for `text_to_image` and its like.
            long_prompts: What becomes of prompts of more than 77 tokens: "error"; "truncate", with a warning in the
                log that quotes what is cut; or "chunk", which encodes every 75 words alone and gives k · 77 tokens.
            clip_skip: Number of the text encoder's last blocks to leave out, counted as diffusers does: 1 is what A1111
                calls "Clip skip 2".

        Returns:
            A float32 array (b, 77, width), or (b, k · 77, width) where a prompt has several chunks; shorter prompts in
            the list are then repeated, which draws the same images. For SDXL, an `EncodedText` of it and of a vector
            for each prompt.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a prompt is too long, a weight too large, or an option unknown.
            NumericalError: If the context is not finite.
        """
        reading = {"prompt_weighting": prompt_weighting, "long_prompts": long_prompts, "clip_skip": clip_skip}
        with self._for_one_call() as model:
            encoded = encode_prompts(model, model._engine, read(model, "prompt", prompt, **reading))
        return encoded.context if encoded.pooled is None else encoded

    def generate_image(
        self,
        encoded_text: np.ndarray | EncodedText,
        negative_prompt: NegativePrompt = None,
        batch_size: int | None = None,
        num_steps: int | None = None,
        unconditional_guidance_scale: Guidance | None = None,
        diffusion_noise: ArrayLike | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Unpack[OptionsWithImage],
    ) -> Images:
        """Draws images of a context.

        Args:
            encoded_text: What `encode_text` returns, or one of its rows: (77, width) or (b, 77, width), or a multiple
                of 77. The options by which it was encoded do not hold for `negative_prompt` unless repeated here.
            negative_prompt: See `text_to_image`, as for all that is not described here.
            batch_size: Number of images; None takes one for each context.
            num_steps: Number of steps.
            unconditional_guidance_scale: How much to follow the context.
            diffusion_noise: Noise of unit variance to start from instead of a seed's, (h/f, w/f, c) for all images or
                (batch_size, h/f, w/f, c), for the latent factor f.
            seed: Where the noise comes from.
            **options: See `keras_diffusion.Options`. Those of `encode_text` are for the negative prompt here.

        Returns:
            A uint8 array (batch_size, height, width, 3), or what the option `output` says.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range.
            NumericalError: If a stage gives values that are not finite.
            GenerationCancelled: If the callback returned False.
        """
        given = encoded_text, negative_prompt, batch_size, num_steps, unconditional_guidance_scale, seed
        with self._for_one_call() as model:
            return model._draw(make_parts(model, "encoded_text", *given, diffusion_noise=diffusion_noise, **options))

    def denoise(
        self,
        prompt: str | Sequence[str],
        negative_prompt: NegativePrompt = None,
        batch_size: int | None = None,
        num_steps: int | None = None,
        unconditional_guidance_scale: Guidance | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Unpack[OptionsOnce],
    ) -> Iterator[tuple[int, float, np.ndarray]]:
        """Draws images of a prompt step by step, as the caller asks for them.

        Args:
            prompt: What to draw.
            negative_prompt: See `text_to_image`, as for all that follows.
            batch_size: Number of images.
            num_steps: Number of steps.
            unconditional_guidance_scale: How much to follow the prompt.
            seed: Where the noise comes from.
            **options: See `keras_diffusion.Options`.

        Yields:
            (step, timestep, latents) after every step: its number, counted from 1, its timestep, and the latents, a
            float32 array (batch_size, h/f, w/f, c) for `preview` and `decode`.

        Raises:
            TypeError, ValueError, NumericalError: As `text_to_image`, arguments before the first step.
        """
        given = prompt, negative_prompt, batch_size, num_steps, unconditional_guidance_scale, seed
        with self._for_one_call() as model:
            steps = model._steps(make_parts(model, "prompt", *given, **options))
            steps = resumed(steps, *model._present().values())
        return ((i + 1, timestep, finite(f"denoising step {i + 1}", latents)) for i, timestep, latents in steps)

    def decode(self, latents: ArrayLike) -> np.ndarray:
        """Turns latents into images.

        Args:
            latents: Numbers (b, h/f, w/f, c), as `denoise` yields them.

        Returns:
            A uint8 array (b, h, w, 3).

        Raises:
            ValueError: If the latents have another shape or are not finite.
            NumericalError: If the images are not finite.
        """
        with self._for_one_call() as model:
            return model._engine.decode(model.decoder, model._latents(latents))

    def preview(self, latents: ArrayLike) -> np.ndarray:
        """Shows latents roughly, at a small part of the cost of `decode`.

        After `load_tiny_vae` these are the images of the tiny decoder. Otherwise the colours are the affine function of
        the latents that is nearest to the decoder's, which decodes a few plain areas for it: as much work as an image
        of 64×64.

        Args:
            latents: Numbers (b, h/f, w/f, c), as `denoise` and callbacks give them.

        Returns:
            A uint8 array (b, h, w, 3), or without a tiny decoder (b, h/f, w/f, 3): one pixel for each place of the
            latents.

        Raises:
            ValueError, NumericalError: As `decode`.
        """
        with self._for_one_call() as model:
            return show_roughly(model, model._engine, model._latents(latents))

    def export(self, folder: str | os.PathLike[str], format: str = "saved_model", dtype: str = "float32") -> None:
        """Writes the model in the format of another runtime, which needs neither this library nor Keras.

        LoRAs that are loaded become part of the weights. The guide "Exporting" shows how each format is run.

        Args:
            folder: The folder; it must not exist yet, or be empty.
            format: "saved_model" for TensorFlow and TF Serving, the whole loop in one artifact that draws images of the
                size `img_height` × `img_width`; "onnx" for ONNX Runtime; "openvino" for OpenVINO GenAI; or "litert"
                for phones, where sizes are fixed too.
            dtype: How weights are stored, "float32", or "float16" in half the space; a SavedModel knows only float32.

        Raises:
            FileExistsError: If there is something at `folder`.
            ImportError: If a package that the format needs is not installed.
            ValueError: If `format` or `dtype` is another one, or the format cannot hold the model.
        """
        export(self, folder, format, dtype)

    def _latents(self, latents):
        shape = (*np.shape(latents)[:-1], self.architecture.autoencoder.latent_channels)
        if len(shape) != 4 or 0 in shape:
            wanted = f"(b, h, w, {shape[-1]}), each at least 1"
            raise ValueError(f"`latents` must be of shape {wanted}. Received: {np.shape(latents)}")
        return arguments.array("latents", latents, shape)

    def _draw(self, parts):
        """Runs the denoising loop, shows how far it is, and decodes."""
        request, last = parts[0][1], parts[-1][1]
        callback, steps = request.callback, last.table.steps[-1] + 1
        progress = keras.utils.Progbar(steps, verbose=bar_or_line(request.verbose))
        with ExitStack() as refiners:
            for refiner, _ in parts[1:]:
                refiners.enter_context(refiner._for_one_call())
            for step, timestep, latents in self._steps(parts, rows_per_call=1 if callback else None):
                progress.update(step + 1)
                if callback and callback(step + 1, timestep, finite(f"denoising step {step + 1}", latents)) is False:
                    raise GenerationCancelled(f"The callback stopped the generation after step {step + 1} of {steps}.")
        if request.output == "latents":
            return finite("denoising", latents)
        for model, _ in parts:
            model._let_go("decoder")
        return decode_images(self, self._engine, request, latents)

    def _steps(self, parts, rows_per_call=1):
        """Encodes requests and denoises; yields the number of each step, from 0, its timestep and its latents."""
        known = encode_start(self, self._engine, parts[0][1])
        latents, history = starting_latents(parts[0][1], known), None
        for model, request in parts:
            conditions, texts = make_conditions(model, model._engine, request, known)
            for other, _ in parts:
                other._let_go(*["diffusion_model"] * (other is model))
            plan = Plan(
                request.table,
                partial(noise.row_noise, request.seeds, latents.shape[1:], request.table),
                request.guided,
                request.deep,
                request.scales if request.controls else None,
                texts,
                last=request is parts[-1][1],
            )
            controlnets = tuple(control.network for control in request.controls)
            latents, history = yield from model._engine.denoise(
                model.diffusion_model, latents, conditions, plan, rows_per_call, controlnets, history
            )

    def side(self, name: str, value: int | None) -> int:
        """Returns a height or width in pixels if latents can have it; None is that of the model."""
        return arguments.image_side(
            name, getattr(self, name) if value is None else value, self.architecture.autoencoder.factor
        )
