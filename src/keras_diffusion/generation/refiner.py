"""Lets a second model draw the last steps on the same latents (Podell et al. 2023, arXiv:2307.01952, section 2.5)."""

from dataclasses import replace

import numpy as np

from keras_diffusion import arguments
from keras_diffusion.generation.options import SizeOptions
from keras_diffusion.generation.request import make_request

TIMESTEPS = 1000  # of a noise schedule
# Options that the refiner has no use for.
OF_THE_BASE = ("control", "guess_mode", "diffusion_noise", "image_prompt", "tiny_vae", "upscale")
OF_THE_BASE += ("variation_seed", "variation_strength", "seed_resize_from")


def make_parts(model, name, *given, refiner=None, refiner_start=0.8, **options):
    """Checks a call and says who draws which of its steps.

    Args:
        model: The `StableDiffusion` that begins.
        name: What to call the prompt in errors.
        *given: The other arguments of `make_request`.
        refiner: The `StableDiffusion` that draws the steps of the least noise, or None.
        refiner_start: From which share of the noise schedule on, 0 to 1.
        **options: The options of the call.

    Returns:
        A list of pairs: a model, and the `Request` for its steps.

    Raises:
        TypeError, ValueError: As `make_request`; also if the refiner's latents or predictions are of another kind.
    """
    start = arguments.number("refiner_start", refiner_start, 0, 1)
    if refiner is None:
        return [(model, make_request(model, name, *given, **options))]
    _check(model, name, refiner)
    for_model, for_refiner = (_options_for(each, (model, refiner), options) for each in (model, refiner))
    request = make_request(model, name, *given, **for_model)
    factor = model.architecture.autoencoder.factor
    height, width = (factor * side for side in request.noise.shape[1:3])
    for_refiner |= {"img_height": height, "img_width": width}
    for_refiner |= {"sampler": options.get("sampler") or model.sampler}
    kept = {key: value for key, value in for_refiner.items() if key not in OF_THE_BASE}
    prompt, negative, _, num_steps, guidance, _ = given
    refined = make_request(refiner, name, prompt, negative, len(request.seeds), num_steps, guidance, 0, **kept)
    refined = request._replace(
        prompt=refined.prompt,
        negative=refined.negative,
        size_ids=refined.size_ids,
        embedded_guidance=refined.embedded_guidance,
        controls=[],
        scales=refined.scales,
        image_prompts=[],
    )
    first = _first_row(request.table, round(TIMESTEPS * (1 - start)))
    count = len(request.table.rows)
    parts = [(model, request, 0, first), (refiner, refined, first, count)]
    return [(each, _cut(part, first, last)) for each, part, first, last in parts if first < last]


def _check(model, name, refiner):
    if name != "prompt":
        raise ValueError("`refiner` encodes prompts itself; call text_to_image. Received: an encoded text")
    if not isinstance(refiner, type(model)):
        raise TypeError(f"`refiner` must be a {type(model).__name__}. Received: {refiner!r:.200}")
    ours, theirs = (
        {
            "latent channels": each.architecture.autoencoder.latent_channels,
            "factor": each.architecture.autoencoder.factor,
            "prediction type": each.architecture.prediction_type,
        }
        for each in (model, refiner)
    )
    if ours != theirs:
        raise ValueError(f"`refiner` must draw on the same latents, with {ours}. Received: one with {theirs}")


def _options_for(model, models, options):
    """The options without the size ids that only the other model has."""
    known = {name for each in models for name in each.architecture.size_ids}
    others = known - set(model.architecture.size_ids)
    sizes = {name for name in SizeOptions.__annotations__ if name.removeprefix("negative_") in others}
    return {name: value for name, value in options.items() if name not in sizes}


def _first_row(table, timestep):
    """The first row of the first step that begins below a timestep."""
    begins = np.flatnonzero(np.diff(table.steps, prepend=-1))
    return next((int(row) for row in begins if table.rows[row, 0] < timestep), len(table.rows))


def _cut(request, first, last):
    """The request for some of its rows; the first of them cannot reuse the features of another model."""
    table, deep = request.table, request.deep[first:last].copy()
    deep[0] = True
    ends = slice(first, last + 1)
    return request._replace(
        first=first,
        table=replace(
            table,
            rows=table.rows[first:last],
            steps=table.steps[first:last],
            noises=table.noises[first:last],
            correlations=table.correlations[first:last],
            alphas=table.alphas[ends],
            sigmas=table.sigmas[ends],
        ),
        guided=request.guided[first:last],
        deep=deep,
        scales=request.scales[first:last],
    )
