"""Makes the inputs of exported networks that draw images of one size."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_diffusion import arguments
from keras_diffusion.checkpoints.layouts.diffusers_folder import DiffusersFolder, write_configs
from keras_diffusion.checkpoints.layouts.files import read_json, write_json
from keras_diffusion.checkpoints.layouts.tokenizer_files import read_tokenizer
from keras_diffusion.prompts import reading
from keras_diffusion.sampling import noise
from keras_diffusion.sampling.defaults import find_defaults
from keras_diffusion.sampling.samplers import build
from keras_diffusion.sampling.scheduler_config import from_scheduler_config

EXTRA = "assets.extra"  # the folder in a SavedModel for files that TensorFlow leaves alone
SIZE = "size.json"


def write_description(folder, parts):
    """Writes what `export_inputs` reads: diffusers' configuration files, the tokenizer, and the size of images."""
    write_configs(folder, parts.configs, parts.architecture, parts.tokenizer)
    write_json(folder / SIZE, dict(zip(("img_height", "img_width"), parts.size, strict=True)))


def export_inputs(
    folder: str | os.PathLike[str],
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] = "",
    batch_size: int | None = None,
    num_steps: int | None = None,
    unconditional_guidance_scale: float | Sequence[float] | None = None,
    seed: int | Sequence[int] | None = None,
    sampler: str | None = None,
) -> dict[str, np.ndarray]:
    """Makes the inputs from which an exported model draws what `text_to_image` draws.

    Args:
        folder: What was exported as "saved_model" or "litert".
        prompt: A str, or a list with one for each image.
        negative_prompt: Likewise.
        batch_size: Number of images; None takes one for each prompt.
        num_steps: Number of steps; None takes the checkpoint's own number.
        unconditional_guidance_scale: A number, or one for each image; None takes the checkpoint's own.
        seed: Where the noise comes from, as in `text_to_image`.
        sampler: Name of a sampler; None takes the checkpoint's own.

    Returns:
        A dict of NumPy arrays for b images and k rows of the sampler: int32 `tokens` and `negative_tokens` (b, n);
        float32 `latents` (b, h, w, c) to start from, `table` (k, columns), `noise` (k, b, h, w, c), which the rows
        add, and `guidance` (b,).

    Raises:
        TypeError, ValueError: As `text_to_image`; also if `folder` is something else.
    """
    files = next((path for path in (Path(folder) / EXTRA, Path(folder)) if (path / SIZE).is_file()), None)
    if files is None:
        raise ValueError(f"`folder` must be what was exported as 'saved_model' or 'litert'. Received: {folder!r:.200}")
    checkpoint, size = DiffusersFolder(files), read_json(files / SIZE)
    architecture = checkpoint.architecture
    own_sampler, schedule = from_scheduler_config(checkpoint.scheduler_config)
    defaults = find_defaults(architecture, own_sampler, schedule)
    if sampler is not None:
        schedule = {key: schedule[key] for key in ("prediction_type", "alphas_cumprod") if key in schedule}
    table = build(sampler or own_sampler, defaults.num_steps if num_steps is None else num_steps, **schedule)
    tokenizer = read_tokenizer(files / "tokenizer", architecture.text_encoder.vocabulary)
    tokens = _tokens("prompt", prompt, tokenizer, architecture.text_encoder)
    count = arguments.batch_size("batch_size", batch_size, len(tokens))
    negative = _tokens("negative_prompt", negative_prompt, tokenizer, architecture.text_encoder)
    seeds, autoencoder = noise.seeds(seed, count), architecture.autoencoder
    latent = (*autoencoder.latent_size(size["img_height"], size["img_width"]), autoencoder.latent_channels)
    rows = np.arange(len(table.rows))
    quiet = np.zeros((len(rows), count, *latent), "float32")
    guidance = defaults.guidance if unconditional_guidance_scale is None else unconditional_guidance_scale
    return {
        "tokens": np.stack(arguments.repeated("prompt", tokens, count)),
        "negative_tokens": np.stack(arguments.repeated("negative_prompt", negative, count)),
        "latents": np.float32(table.initial_scale) * noise.starting_noise(seeds, latent),
        "table": table.rows.astype("float32"),
        "noise": noise.row_noise(seeds, latent, table, rows) if table.stochastic else quiet,
        "guidance": arguments.numbers("unconditional_guidance_scale", guidance, count),
    }


def _tokens(name, prompts, tokenizer, shape):
    """Reads prompts: a list of int32 (n,)."""
    texts = reading.read(name, prompts, tokenizer, shape)
    return [text.padded_with(tokenizer.padding(shape.pad_token))[0] for text in texts]
