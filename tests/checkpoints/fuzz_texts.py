"""Prompts, images with what is written into them, and tables of people, changed by their structure."""

import csv
import io
import json
from types import SimpleNamespace

from PIL import Image, PngImagePlugin

from keras_diffusion.architectures import EMOJI
from keras_diffusion.cli import batch
from keras_diffusion.images import job_settings, metadata, reading
from keras_diffusion.prompts import reading as prompts
from keras_diffusion.prompts.tags import take_loras
from keras_diffusion.prompts.tokenizer import SimpleTokenizer
from keras_diffusion.training import folder

from ..images import test_other_tools
from .fuzz_json import VALUES, changed

TEXT = (
    "a (cat:1.2), [dog] BREAK\nNegative prompt: blue\nSteps: 25, Sampler: Euler a, CFG scale: 3.0, Seed: 7, Size: 64x64"
)


def text(dice):
    parts = list(TEXT)
    for _ in range(dice.randint(1, 8)):
        place = dice.randrange(len(parts))
        parts[place : place + dice.randint(0, 9)] = dice.choice(
            [":", '"', "(", "\\", "\n", ",", "\0", "é", "💥" * 99, TEXT]
        )
    return "".join(parts)


def infotext(path, dice):
    texts = PngImagePlugin.PngInfo()
    for _ in range(dice.choice([1, 1, 1, 2, 9])):
        texts.add_itxt(dice.choice(["parameters", "comment"]), text(dice), zip=dice.random() < 0.5)
    Image.new("RGB", (8, 8)).save(path / "x.png", pnginfo=texts)
    return lambda: metadata.call_arguments(metadata.read(path / "x.png"))


def image(path, dice):
    mode = dice.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"])
    size = dice.choice([(1, 1), (8, 8), (64, 64), (5000, 1), (4097, 3)])
    content = io.BytesIO()
    try:
        Image.new(mode, size).save(content, dice.choice(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]))
    except (OSError, KeyError, ValueError):
        content.write(b"none")
    (path / "x").write_bytes(content.getvalue()[: dice.choice([None, None, 40, 100])])
    return lambda: reading.read_images("image", path / "x")


def prompt(path, dice):
    tokenizer = SimpleTokenizer()
    given = dice.choice([text(dice), [text(dice)], dice.choice(VALUES), [dice.choice(VALUES)], text(dice) * 200])
    options = {
        "prompt_weighting": dice.choice([True, False]),
        "long_prompts": dice.choice(["error", "truncate", "chunk"]),
    }
    return lambda: prompts.read("prompt", given, tokenizer, EMOJI.text_encoder, **options)


TOOLS = {  # name of a text in an image → what a tool writes there
    "prompt": [test_other_tools.PROMPT, test_other_tools.CUSTOM],
    "workflow": [test_other_tools.WORKFLOW],
    "invokeai_metadata": [test_other_tools.INVOKEAI],
    "sd-metadata": [test_other_tools.OLDER_INVOKEAI],
    "Comment": [test_other_tools.NOVELAI],
    "parameters": [test_other_tools.FOOOCUS, test_other_tools.SWARMUI],
}


def tools(path, dice):
    """What ComfyUI, InvokeAI, NovelAI, Fooocus and SwarmUI write into images."""
    texts, name = PngImagePlugin.PngInfo(), dice.choice([*TOOLS])
    content = changed(dice.choice(TOOLS[name]), dice)
    texts.add_itxt(name, json.dumps(content).encode("utf-8", "replace").decode(), zip=True)
    Image.new("RGB", (8, 8)).save(path / "x.png", pnginfo=texts)
    return lambda: job_settings.read((path / "x.png").read_bytes())


def tags(path, dice):
    given = "".join(
        dice.choice(["<lora:", "a", ":", "0.5", "te=", "unet=", "1e999", "nan", ">", "<", " ", "=", "lyco", "💥"])
        for _ in range(dice.choice([3, 9, 30, 3000]))
    )
    return lambda: take_loras("prompt", dice.choice([given, [given, given], dice.choice(VALUES)]))


def captions(path, dice):
    """A folder to learn from."""
    for name in "abc":
        Image.new("RGB", (8, 8)).save(path / f"{name}.png")
    rows = [{"file_name": f"{name}.png", "text": "a cat"} for name in "abc"]
    rows[0] = changed(rows[0], dice)
    if dice.random() < 0.5:
        text = "\n".join(json.dumps(row) for row in rows)
        (path / "metadata.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        with open(path / "metadata.csv", "w", newline="", encoding="utf-8", errors="replace") as file:
            csv.writer(file).writerows([["file_name", "text"], *(_cells(row) for row in rows)])
    return lambda: folder.records(path)


def _cells(row):
    return [str(cell).replace("\0", "") for cell in (row.values() if isinstance(row, dict) else [row])]


JOB = {"prompt": "a cat", "seed": 7, "num_steps": 2, "name": "x", "batch_size": 2, "variation_strength": 0.5}


def jobs(path, dice):
    """A file of jobs: a line that is none is noted, the others are read."""
    lines = [json.dumps(changed(JOB, dice)).encode("utf-8", "surrogatepass") for _ in range(2)]
    lines.append(dice.choice([b"", b"{", b"[" * 5000, b"\xff", b'{"a": 1' + b"0" * 5000 + b"}"]))
    (path / "jobs.jsonl").write_bytes(b"\n".join(lines))
    options = SimpleNamespace(jobs=path / "jobs.jsonl", output=path, preset="emoji")
    return lambda: batch.read_jobs(options)


READERS = {
    "infotext": infotext,
    "tools": tools,
    "image": image,
    "prompt": prompt,
    "tags": tags,
    "captions": captions,
    "jobs": jobs,
}
