"""Reads what other tools than A1111 write into images: JSON, each under names of its own.

Sources: InvokeAI's texts `invokeai_metadata` and, before version 3, `sd-metadata`; `Comment` of NovelAI; `parameters`
of Fooocus and SwarmUI.
"""

import json
from typing import NamedTuple

from keras_diffusion.images import comfyui

AS_A1111 = "("  # of A1111's brackets these tools know the round ones, and number them alike
SQUARE, ALL = (str.maketrans({sign: f"\\{sign}" for sign in signs}) for signs in ("[]", "()[]\\"))
SAMPLING = {"steps": "Steps", "seed": "Seed", "width": "Width", "height": "Height", "sampler": "Sampler"}
PROMPTS = {"prompt": "Prompt", "negative_prompt": "Negative prompt"}
WITHOUT_EFFECT = {  # on the image, or said elsewhere
    *("app_version", "app_id", "version", "rand_device", "generation_mode", "metadata_scheme", "fooocus_scheme"),
    *("base_model_hash", "created_by", "model_hash", "signed_hash", "request_type", "performance", "full_prompt"),
    *("full_negative_prompt", "n_samples", "swarm_version", "type", "postprocessing", "cfg_scheduler", "batch_size"),
    *("positive_style_prompt", "negative_style_prompt", "model_weights", "images", "date", "generation_time"),
}


class Tool(NamedTuple):
    """Describes what a tool writes.

    Args:
        name: The tool's.
        text: The name of the text that holds the JSON.
        inside: The names of objects that hold the settings, one in another.
        marks: Names that the settings have.
        names: The tool's names of settings → `metadata`'s.
        weights: Signs in a prompt that mean weights to this tool alone.
    """

    name: str
    text: str
    inside: tuple
    marks: tuple
    names: dict
    weights: str = ""


TOOLS = (
    Tool(
        "InvokeAI",
        "invokeai_metadata",
        (),
        (),
        SAMPLING
        | {
            "positive_prompt": "Prompt",
            "negative_prompt": "Negative prompt",
            "cfg_scale": "CFG scale",
            "scheduler": "Sampler",
            "model": "Model",
            "vae": "VAE",
            "clip_skip": "Skipped blocks",
        },
        "()+",
    ),
    Tool("InvokeAI", "sd-metadata", ("image",), (), SAMPLING | PROMPTS | {"cfg_scale": "CFG scale"}, "()+["),
    Tool(
        "NovelAI",
        "Comment",
        (),
        ("uc", "sampler"),
        SAMPLING | PROMPTS | {"scale": "CFG scale", "uc": "Negative prompt", "noise_schedule": "Schedule type"},
        "{}[]",
    ),
    Tool(
        "SwarmUI",
        "parameters",
        ("sui_image_params",),
        (),
        SAMPLING
        | PROMPTS
        | {
            "cfgscale": "CFG scale",
            "negativeprompt": "Negative prompt",
            "model": "Model",
            "scheduler": "Schedule type",
        },
        AS_A1111,
    ),
    Tool(
        "Fooocus",
        "parameters",
        (),
        ("guidance_scale", "base_model"),
        SAMPLING
        | PROMPTS
        | {
            "guidance_scale": "CFG scale",
            "scheduler": "Schedule type",
            "base_model": "Model",
            "vae": "VAE",
            "resolution": "Resolution",
            "clip_skip": "Clip skip",
        },
        AS_A1111,
    ),
)


def settings(texts):
    """Reads what a tool other than A1111 wrote.

    Args:
        texts: A dict of the texts in an image, by their names.

    Returns:
        A dict of str, as `metadata.from_text`, with the name of the tool under "Made by" and what is not followed under
        the tool's names; or None.
    """
    found, weights = comfyui.settings(texts), AS_A1111
    for tool in TOOLS:
        if not found and (given := _given(tool, texts)):
            found, weights = _settings(tool, given), tool.weights
    return _finished(found, weights) if found else None


def _given(tool, texts):
    """The object that a tool wrote, or None."""
    try:
        given = json.loads(texts.get(tool.text, ""))
        for name in tool.inside:
            given = given[name]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return given if isinstance(given, dict) and given and given.keys() >= set(tool.marks) else None


def _settings(tool, given):
    found = {"Made by": tool.name, "Prompt": "", "Negative prompt": ""}
    for name, value in given.items():
        if name in tool.names:
            found[tool.names[name]] = _text(value)
        elif name == "loras":
            found["LoRAs"] = "".join(map(_lora, value if isinstance(value, list) else ()))
        elif name not in WITHOUT_EFFECT and value not in (None, "", [], {}, False, 0, "None"):
            found[f"{tool.name}'s {name}"] = json.dumps(value, ensure_ascii=False)[:300]
    if (skipped := found.get("Skipped blocks", "")).isdecimal():
        found["Clip skip"] = str(int(skipped[:9]) + 1)
    sides = found.get("Resolution", "").strip("()").split(",")
    sides = sides if len(sides) == 2 else [found.get("Width", ""), found.get("Height", "")]
    if all(sides):
        found["Size"] = "x".join(side.strip() for side in sides)
    return {
        name: value for name, value in found.items() if name not in ("Width", "Height", "Resolution", "Skipped blocks")
    }


def _text(value):
    """A value as text: of a model its name, of a weighted list of prompts their texts."""
    if isinstance(value, list):
        return " ".join(map(_text, value))
    if isinstance(value, dict):
        return _text(next((value[name] for name in ("prompt", "name", "model_name") if name in value), ""))
    return "" if value is None else str(value)


def _lora(entry):
    """A LoRA as the tag of a prompt: InvokeAI's {"model": {"name"}, "weight"}, or Fooocus' (name, weight, hash)."""
    if isinstance(entry, dict):
        name, weight = _text(entry.get("model", entry.get("lora"))), entry.get("weight", 1)
    else:
        name, weight = [*entry, "", 1][:2] if isinstance(entry, list) else (_text(entry), 1)
    return f"<lora:{str(name).removesuffix('.safetensors')}:{weight}>"


def _finished(found, weights):
    """Says how the prompt is read, and adds the tags of LoRAs: brackets that are no weights become text."""
    prompts, tags = ("Prompt", "Negative prompt"), found.pop("LoRAs", "")
    weighted = any(sign in found[name] for name in prompts for sign in weights)
    alike = weighted and weights == AS_A1111
    if weighted:
        how = "by A1111's formula" if alike else "taken as text"
        found[f"{found['Made by']}'s weights of words"] = how
    if alike or tags:
        for name in prompts:
            found[name] = found[name].translate(SQUARE if alike else ALL)
    found["Prompt"] += tags
    return {"Clip skip": "1", "Emphasis": "Original" if alike or tags else "None", "Long prompts": "chunk"} | found
