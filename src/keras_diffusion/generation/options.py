"""The options of the methods that draw: their names, types and meaning, and what people call them elsewhere."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike

# Parameters of diffusers, A1111 and others → ours.
OTHER_NAMES = {
    "callback_on_step_end": "callback",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
    "seed_resize_from_h": "seed_resize_from",
    "seed_resize_from_w": "seed_resize_from",
    "cfg_scale": "unconditional_guidance_scale",
    "control_image": "control",
    "crops_coords_top_left": "crop",
    "controlnet_conditioning_scale": "control",
    "generator": "seed",
    "hr_scale": "hires",
    "hr_upscaler": "hires_upscaler",
    "guidance_scale": "unconditional_guidance_scale",
    "height": "img_height",
    "ip_adapter_image": "image_prompt",
    "latents": "diffusion_noise",
    "mask_image": "mask",
    "negative_prompt_embeds": "negative_prompt",
    "num_images_per_prompt": "batch_size",
    "num_inference_steps": "num_steps",
    "output_type": "output",
    "scheduler": "sampler",
    "steps": "num_steps",
    "use_karras_sigmas": "karras",
    "width": "img_width",
}


class SizeOptions(TypedDict, total=False):
    """The size ids of SDXL; `Options` documents them."""

    original_size: tuple[float, float] | None
    crop: tuple[float, float] | None
    target_size: tuple[float, float] | None
    aesthetic_score: float | None
    negative_original_size: tuple[float, float] | None
    negative_crop: tuple[float, float] | None
    negative_target_size: tuple[float, float] | None
    negative_aesthetic_score: float | None


class CommonOptions(SizeOptions, total=False):
    """The options of every method that draws; `Options` documents them."""

    mask_white: Literal["repaint", "keep"]
    img_height: int | None
    img_width: int | None
    resize: Literal["stretch", "crop", "pad"] | None
    variation_seed: int | Sequence[int] | None
    variation_strength: float
    seed_resize_from: tuple[int, int] | list[int] | None
    sampler: str | None
    spacing: str | None
    karras: bool
    eta: float | None
    timesteps: Sequence[float] | np.ndarray | None
    guidance_rescale: float | Sequence[float] | np.ndarray
    guidance_interval: tuple[float, float] | list[float]
    deep_cache: int
    control: Any
    guess_mode: bool
    image_prompt: Any
    refiner: Any
    refiner_start: float
    callback: Callable[[int, float, np.ndarray], Any] | None
    verbose: int
    output: Literal["array", "pil", "latents"]
    tiny_vae: bool
    upscale: Any
    prompt_weighting: bool
    long_prompts: Literal["error", "truncate", "chunk"]
    clip_skip: int


class NoiseOptions(TypedDict, total=False):
    diffusion_noise: ArrayLike | None


class ImageOptions(TypedDict, total=False):
    image: Any
    strength: float | None


class OutpaintOptions(TypedDict, total=False):
    outpaint: tuple[int, int, int, int] | list[int] | None


class MaskOptions(TypedDict, total=False):
    mask: Any


class OptionsWithImage(CommonOptions, ImageOptions, MaskOptions, OutpaintOptions, total=False):
    """`Options` for a method that has `diffusion_noise` as an argument."""


class OptionsWithNoise(CommonOptions, NoiseOptions, total=False):
    """`Options` for a method that has `image`, `strength` and `mask` as arguments."""


class OptionsWithMask(OptionsWithNoise, MaskOptions, OutpaintOptions, total=False):
    """`Options` for a method that has `image` and `strength` as arguments."""


class OptionsOnce(OptionsWithMask, ImageOptions, total=False):
    """`Options` for a method that draws once."""


class HiresOptions(TypedDict, total=False):
    hires: float | None
    hires_strength: float
    hires_upscaler: Any


class Options(OptionsOnce, HiresOptions, total=False):
    """The options of `text_to_image` and of the other methods that draw.

    Attributes:
        img_height: Height of these images in pixels; None takes the model's.
        img_width: Width of these images in pixels; None takes the model's.
        resize: How an image and its mask get to the size of the result: "stretch", as without this option; "crop" or
            "pad", which keep the proportions and cut off or repeat the edges. It then has the model's size unless
            `img_height` and `img_width` give another. Without it, an image keeps its own size, which must be a multiple
            of the latent factor. ControlNets' images follow it too.
        outpaint: (top, bottom, left, right), how many pixels to add to the image at its edges and to draw there; the
            rest stays as it is. A `strength` of 1 draws them from noise alone.
        hires: For `text_to_image`: draws a second time, from the image enlarged by this factor, so that large images
            keep one composition. As A1111's "Hires. fix".
        hires_strength: How much the second time changes, see `strength`; 0.5 unless given.
        hires_upscaler: The `Upscaler` that enlarges the image for the second time; None takes Lanczos' filter.
        variation_seed: Another seed, towards whose noise to go; image i takes variation_seed + i, and all of them the
            same `seed`. None takes any. As A1111's "Variation seed".
        variation_strength: How far to go, 0 to 1. Small numbers make variations of one image.
        seed_resize_from: (height, width) in pixels whose noise `seed` draws, also for an image of another size, which
            then resembles the one of that size. As A1111's "Resize seed from".
        sampler: Name of a sampler in `SAMPLERS`, or another spelling of it; None takes the model's.
        spacing: How the timesteps are spread, see `sampling.samplers.build`.
        karras: Whether to spread the noise levels as Karras et al. 2022 do.
        eta: Share of ancestral noise, from 0 to 1, for the samplers that have the choice.
        timesteps: The timesteps themselves, decreasing; they replace `num_steps`.
        guidance_rescale: From 0 to 1, or a list with one for each image: keeps high guidance from washing out (Lin et
            al. 2023, arXiv:2305.08891; they take 0.7).
        guidance_interval: The fractions (start, end) of the steps between which there is guidance. The other steps take
            half the time, though not with OpenVINO, and the images differ (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        deep_cache: For how many steps the deep features of the diffusion model serve, 1 to 1000. Each step but the
            first of so many takes about a tenth of the time, and the images differ (Ma et al. 2023, "DeepCache",
            arXiv:2312.00858).
        control: (network, image, scale, start, end), or a list of those, see `Control`: a ControlNet or a T2I-adapter.
        guess_mode: Whether ControlNets guess what their images show, so that the prompt may be empty. Shallow layers
            then follow them less, and the negative prompt does not. A guidance of 3 to 5 suits.
        image_prompt: (image, scale, mask, adapter), or a list of those, see `ImagePrompt`: images to follow beside the
            prompt, by IP-Adapters. A refiner does not follow them.
        refiner: A `StableDiffusion` that draws the last steps on the same latents, as SDXL's refiner does. It encodes
            the prompts itself.
        refiner_start: From which share of the noise schedule on, 0 to 1; 0.8 is as SDXL's refiner was trained.
        image: The image to start from, see `image_to_image`.
        strength: How much to change the image, see `image_to_image`.
        mask: Where to repaint the image, see `inpaint`.
        mask_white: What white in the mask means: "repaint" or, as in KerasCV, "keep".
        diffusion_noise: Noise of unit variance to start from, see `generate_image`; it replaces `seed`.
        callback: Called as callback(step, timestep, latents) after every step, counted from 1, with the latents as a
            float32 array. It cancels when it returns False.
        verbose: 1 for a progress bar, 2 for a line at the end, 0 for neither.
        output: "array" for a uint8 array, "pil" for a list of PIL images, "latents" for the float32 latents.
        tiny_vae: Whether the tiny autoencoder of `load_tiny_vae` decodes, and encodes the image to start from. Images
            are nearly the same, in less time and memory.
        upscale: An `Upscaler` that enlarges what is drawn, or a pair of one and a scale from 1 to 16.
        prompt_weighting: See `encode_text`; in `generate_image` it is for the negative prompt.
        long_prompts: See `encode_text`; in `generate_image` it is for the negative prompt.
        clip_skip: See `encode_text`; in `generate_image` it is for the negative prompt.
        original_size: (height, width) that SDXL is to take the image to have been enlarged or reduced from; a small one
            makes it blurred. None takes its size, as for `target_size`.
        crop: (top, left) pixels that SDXL is to take to have been cut off; (0, 0), the default, centres the subject.
        target_size: (height, width) that SDXL is to take the image to have.
        aesthetic_score: How beautiful SDXL's refiner is to take the image to be; 6 unless given.
        negative_original_size: The same for the negative prompt; None takes that of the prompt.
        negative_crop: Likewise.
        negative_target_size: Likewise.
        negative_aesthetic_score: Likewise, but 2.5 unless given.
    """


def refuse_unknown(unknown, known):
    """Raises a TypeError that lists the arguments there are and, for each unknown one, the nearest of them."""
    nearest = [OTHER_NAMES.get(name) or next(iter(get_close_matches(name, known, 1)), None) for name in unknown]
    suggested = ", ".join(dict.fromkeys(name for name in nearest if name in known))
    hint = f". Did you mean {suggested}?" if suggested else ""
    raise TypeError(f"The arguments are {', '.join(known)}. Received: {', '.join(unknown)}{hint}")
