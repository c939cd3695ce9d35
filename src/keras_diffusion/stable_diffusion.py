"""The facade: prompts to images."""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import keras
import numpy as np

from keras_diffusion import arguments, noise
from keras_diffusion.architectures import DTYPES, Architecture
from keras_diffusion.checkpoints import folder, presets
from keras_diffusion.decoder import Decoder
from keras_diffusion.diffusion_model import DiffusionModel
from keras_diffusion.engine import Engine
from keras_diffusion.errors import GenerationCancelled
from keras_diffusion.image_encoder import ImageEncoder
from keras_diffusion.samplers import Table, build
from keras_diffusion.scheduler_config import from_scheduler_config
from keras_diffusion.text_encoder import TextEncoder
from keras_diffusion.tokenizer import SimpleTokenizer

VAE_DTYPE = "float32"  # half precision overflows in the VAE decoder of Stable Diffusion


class Plan(NamedTuple):
    """What a call asks for, checked."""

    table: Table
    latents: np.ndarray
    step_noise: Callable
    negative: np.ndarray
    guidance: np.ndarray
    callback: Callable | None
    verbose: int


class StableDiffusion:
    """Stable Diffusion: text to image by latent diffusion (Rombach et al. 2022, arXiv:2112.10752).

    The constructor, methods and defaults are those of `keras_cv.models.StableDiffusion`. The networks are plain
    attributes: assign another one, or load weights into one, and the next call uses it.

    Args:
        img_height: Height of the images in pixels, a multiple of the latent factor (8; 4 for "emoji"). None takes the
            size the model was trained at.
        img_width: Likewise, the width.
        jit_compile: True compiles with XLA on TensorFlow and `torch.compile` on torch; "auto" and False run
            TensorFlow's plain graph and eager torch. JAX compiles in any case.
        dtype: "float32", "mixed_float16", "mixed_bfloat16", "float16" or "bfloat16", for the text encoder and the
            diffusion model; the autoencoder always computes in float32. None takes Keras' global policy.
        preset: The weights: a bundled name ("emoji"), a folder in diffusers layout, or a built-in name such as "sd14"
            that says how to get them. An `Architecture` builds untrained networks with random weights.

    Attributes:
        architecture: The `Architecture` of the networks.
        tokenizer: A `SimpleTokenizer`.
        text_encoder: A `TextEncoder`.
        diffusion_model: A `DiffusionModel`.
        decoder: A `Decoder`.
        image_encoder: An `ImageEncoder`, loaded when it is first needed.
        sampler: Name of the sampler that is used unless a call names another one.

    Example:
        model = StableDiffusion.from_preset("emoji")
        images = model.text_to_image("a slice of pizza", batch_size=3, seed=42)  # uint8 (3, 64, 64, 3)
    """

    def __init__(self, img_height=None, img_width=None, jit_compile="auto", dtype=None, preset="sd14"):
        self._engine = Engine(jit_compile)
        if dtype is not None:
            arguments.choice("dtype", dtype, DTYPES)
        self._folder = None if isinstance(preset, Architecture) else folder.DiffusersFolder(presets.find(preset))
        self.architecture = self._folder.architecture if self._folder else preset
        self.img_height = self._side("img_height", img_height, self.architecture.image_size)
        self.img_width = self._side("img_width", img_width, self.architecture.image_size)
        self.sampler, self._schedule = "ddim", {"prediction_type": self.architecture.prediction_type}
        if self._folder:
            self.sampler, self._schedule = from_scheduler_config(self._folder.scheduler_config)
        self.tokenizer = SimpleTokenizer()
        networks = {
            "text_encoder": self._build(TextEncoder, dtype),
            "diffusion_model": self._build(DiffusionModel, dtype),
            "decoder": self._build(Decoder, VAE_DTYPE),
        }
        if self._folder:
            self._folder.load(**networks)
        vars(self).update(networks)

    @classmethod
    def from_preset(cls, preset, dtype=None, img_height=None, img_width=None, jit_compile="auto"):
        """Loads a model; the arguments are the constructor's."""
        return cls(img_height, img_width, jit_compile, dtype, preset)

    @cached_property
    def image_encoder(self):
        network = self._build(ImageEncoder, VAE_DTYPE)
        if self._folder:
            self._folder.load(image_encoder=network)
        return network

    def save_to_preset(self, path, dtype="float32"):
        """Writes the model as a folder in diffusers layout, which `from_preset` and diffusers load.

        Args:
            path: The folder; it must not exist yet.
            dtype: What the weights are stored in, "float32" or "float16".
        """
        folder.save(
            path,
            self.architecture,
            dtype=dtype,
            scheduler_config=self._folder and self._folder.scheduler_config,
            text_encoder=self.text_encoder,
            diffusion_model=self.diffusion_model,
            image_encoder=self.image_encoder,
            decoder=self.decoder,
        )

    def text_to_image(
        self,
        prompt,
        negative_prompt=None,
        batch_size=None,
        num_steps=50,
        unconditional_guidance_scale=7.5,
        seed=None,
        **options,
    ):
        """Draws images of a prompt.

        Args:
            prompt: What to draw; a str, or a list with one for each image.
            negative_prompt: What to keep away from; likewise. None is the empty prompt.
            batch_size: Number of images, 1 to 1024; None takes one for each prompt.
            num_steps: Number of steps, 1 to 1000.
            unconditional_guidance_scale: How much to follow the prompt; a number of at least 0, or a list with one
                for each image. At 1 the negative prompt has no part and costs nothing.
            seed: Where the noise comes from: an int from 0 to 2**63 - 1, where image i takes seed + i, or a list with
                one for each image. None takes another one every time.
            **options: `sampler`, `img_height`, `img_width`, `callback` and `verbose`, see `generate_image`.

        Returns:
            A uint8 array (batch_size, height, width, 3).

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range, or a prompt is too long.
            NumericalError: If a stage gives values that are not finite.
            GenerationCancelled: If the callback returned False.
        """
        tokens = self._tokens("prompt", prompt)
        plan = self._plan(
            len(tokens), negative_prompt, batch_size, num_steps, unconditional_guidance_scale, None, seed, **options
        )
        return self._draw(self._encode(tokens), plan)

    def encode_text(self, prompt):
        """Turns prompts into the context that `generate_image` takes.

        Args:
            prompt: A str or a list of them.

        Returns:
            A float32 array (b, 77, width).

        Raises:
            TypeError: If a prompt is not a str.
            ValueError: If a prompt is too long.
        """
        return self._encode(self._tokens("prompt", prompt))

    def generate_image(
        self,
        encoded_text,
        negative_prompt=None,
        batch_size=None,
        num_steps=50,
        unconditional_guidance_scale=7.5,
        diffusion_noise=None,
        seed=None,
        **options,
    ):
        """Draws images of a context.

        Args:
            encoded_text: What `encode_text` returns, or one of its rows: (77, width) or (b, 77, width).
            negative_prompt: See `text_to_image`, as for all that is not described here.
            batch_size: Number of images; None takes one for each context.
            num_steps: Number of steps.
            unconditional_guidance_scale: How much to follow the context.
            diffusion_noise: Noise of unit variance to start from instead of a seed's, (h/f, w/f, c) for all images or
                (batch_size, h/f, w/f, c), for the latent factor f.
            seed: Where the noise comes from.
            **options: `sampler`, the name of a sampler in `samplers.SAMPLERS`; `img_height` and `img_width`, the size
                of these images; `callback`, called as callback(step, timestep, latents) after every step, counted
                from 1, with the latents as a float32 array, which cancels when it returns False; `verbose`, 1 for a
                progress bar and 0 for none.

        Returns:
            A uint8 array (batch_size, height, width, 3).

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range.
            NumericalError: If a stage gives values that are not finite.
            GenerationCancelled: If the callback returned False.
        """
        shape = self.architecture.text_encoder
        context = arguments.context("encoded_text", encoded_text, (shape.length, shape.width))
        plan = self._plan(
            len(context),
            negative_prompt,
            batch_size,
            num_steps,
            unconditional_guidance_scale,
            diffusion_noise,
            seed,
            **options,
        )
        return self._draw(context, plan)

    def _plan(
        self,
        count,
        negative_prompt,
        batch_size,
        num_steps,
        unconditional_guidance_scale,
        diffusion_noise,
        seed,
        sampler=None,
        img_height=None,
        img_width=None,
        callback=None,
        verbose=1,
    ):
        """Checks the arguments of a call, for `count` contexts, before anything is computed."""
        batch_size = arguments.batch_size("batch_size", batch_size, count)
        height = self._side("img_height", img_height, self.img_height)
        width = self._side("img_width", img_width, self.img_width)
        autoencoder = self.architecture.autoencoder
        latent_shape = (*autoencoder.latent_size(height, width), autoencoder.latent_channels)
        if seed is not None and diffusion_noise is not None:
            raise ValueError(f"Give `seed` or `diffusion_noise`, not both. Received: both, with {seed=!r:.200}")
        seeds = noise.seeds(seed, batch_size)
        schedule = self._schedule
        if sampler is not None:
            schedule = {key: schedule[key] for key in ("prediction_type", "alphas_cumprod") if key in schedule}
        table = build(self.sampler if sampler is None else sampler, num_steps, **schedule)
        if diffusion_noise is None:
            latents = noise.starting_noise(seeds, latent_shape)
        else:
            latents = arguments.array("diffusion_noise", diffusion_noise, (batch_size, *latent_shape))
        name = "unconditional_guidance_scale"
        return Plan(
            table=table,
            latents=np.float32(table.initial_scale) * latents,
            step_noise=lambda steps: noise.step_noise(seeds, latent_shape, steps),
            negative=self._tokens("negative_prompt", "" if negative_prompt is None else negative_prompt, batch_size),
            guidance=arguments.guidance_scales(name, unconditional_guidance_scale, batch_size),
            callback=callback,
            verbose=verbose,
        )

    def _draw(self, context, plan):
        """Runs the denoising loop on a context (1 or b, n, d) and decodes."""
        context = np.resize(context, (len(plan.latents), *context.shape[1:]))
        if (plan.guidance != 1.0).any():
            negative = self._encode(plan.negative)
            context = np.concatenate([np.resize(negative, context.shape), context])
        steps = plan.table.steps[-1] + 1
        progress = keras.utils.Progbar(steps, verbose=plan.verbose)
        loop = self._engine.denoise(
            self.diffusion_model, plan.latents, context, plan.guidance, plan.table, plan.step_noise
        )
        for step, timestep, latents in loop:
            progress.update(step + 1)
            if plan.callback and plan.callback(step + 1, timestep, latents) is False:
                raise GenerationCancelled(f"The callback stopped the generation after step {step + 1} of {steps}.")
        return self._engine.decode(self.decoder, latents)

    def _encode(self, tokens):
        """Tokens (b, 77) → context (b, 77, width), one prompt at a time: no context depends on its neighbours."""
        return np.concatenate([self._engine.encode(self.text_encoder, row[None]) for row in tokens])

    def _tokens(self, name, prompts, count=None):
        """Prompts → tokens (b, 77), 1 or `count` of them."""
        prompts = arguments.texts(name, prompts)
        if count:
            arguments.repeated(name, prompts, count)
        shape = self.architecture.text_encoder
        return self.tokenizer.tokenize(prompts, pad_token=shape.pad_token, length=shape.length)

    def _side(self, name, value, default):
        return arguments.image_side(name, default if value is None else value, self.architecture.autoencoder.factor)

    def _build(self, network, dtype):
        """An empty network for a loader to fill, or a random one if there is nothing to load."""
        return network(architecture=self.architecture, initialize=self._folder is None, dtype=dtype)
