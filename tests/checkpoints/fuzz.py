"""Reads what people send, changed by its structure: the answer is a model or an error of our own that names the file.

    python -m tests.checkpoints.fuzz                              # 10,000 cases of each reader, an hour
    python -m tests.checkpoints.fuzz --reader lora --count 300 --seed 7

A case is a sound file of which one to three values are replaced, dropped, repeated or nested, as the seed says. A line
of JSON says how it went; the exit code is not 0 after any other error, a second of processor time, or 64 MB of memory.
Damaged bytes are the matter of formats/fuzz.py.
"""

import argparse
import io
import json
import logging
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from keras_diffusion.architectures import EMOJI
from keras_diffusion.checkpoints import presets
from keras_diffusion.checkpoints.download.sources import FOLDER
from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.layouts import files
from keras_diffusion.checkpoints.layouts.controlnet_files import ControlNetFiles
from keras_diffusion.checkpoints.layouts.files import naming
from keras_diffusion.errors import CheckpointError
from keras_diffusion.images import metadata, reading
from keras_diffusion.prompts import reading as prompts
from keras_diffusion.prompts.tokenizer import SimpleTokenizer
from keras_diffusion.sampling.scheduler_config import from_scheduler_config

SECONDS, GROWTH = 1, 64_000  # of processor time; kB
VALUES = [
    *(None, True, 0, 1, -1, 0.5, 64, 77, 1000, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf")),
    *("", "a", "64", "epsilon", "../x", "/etc/passwd", "\0", "\ud800", "a" * 5000, "(" * 3000, "é" * 300),
    *([], {}, [[]], [None], {"a": {}}, [1] * 500, ["DownBlock2D"] * 9, [64] * 17, [[1, 2]]),
]
MINE = (CheckpointError, FileNotFoundError)


def paths_in(value, path=()):
    """Yields the path of every value in JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_in(inner, (*path, key))


def changed(value, dice):
    """A copy of JSON with one to three changes."""
    whole = {"": deepcopy(value)}
    for _ in range(dice.randint(1, 3)):
        *above, key = ("", *dice.choice(list(paths_in(whole[""]))))
        place = whole
        for step in above:
            place = place[step]
        match dice.randrange(5):
            case 0 if above:
                del place[key]
            case 1:
                place[key] = [deepcopy(place[key]) for _ in range(dice.choice([1, 2, 50]))]
            case 2 if isinstance(place, dict) and above:
                place[str(dice.choice(VALUES))[:2000]] = deepcopy(place[key])
            case _:
                place[key] = deepcopy(dice.choice(VALUES))
    return whole[""]


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))


def folder(path, dice):
    source = FOLDER / "emoji"
    names = [name for group in files.CONFIGS.values() for name in group if (source / name).is_file()]
    contents = {name: json.loads((source / name).read_bytes()) for name in names}
    contents[name] = changed(contents[name := dice.choice(names)], dice)
    for name, content in contents.items():
        written(path / name, content)
    return lambda: _scheduler(presets.read(path))


def _scheduler(found):
    with naming(found.path):
        from_scheduler_config(found.scheduler_config)


def shards(path, dice):
    (path / "model-1.safetensors").write_bytes(b"")
    index = {"metadata": {"total_size": 4}, "weight_map": dict.fromkeys("abc", "model-1.safetensors")}
    written(path / "model.safetensors.index.json", changed(index, dice))
    return lambda: files.weights(path, "model")


def header(path, dice):
    shape = [2, 3]
    tensors = {f"unet.layer.{i}.lora_{side}.weight": shape for i in range(3) for side in "AB"}
    content = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [24 * i, 24 * (i + 1)]} for i, name in enumerate(tensors)
    }
    content = changed(content | {"__metadata__": {"format": "pt", "ss_tags": '{"a": 1}'}}, dice)
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    (path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(24 * len(tensors)))
    return lambda: (tensor_index.index(path / "x.safetensors"), tensor_index.metadata(path / "x.safetensors"))


def controlnet(path, dice):
    config = {
        "_class_name": "ControlNetModel",
        "block_out_channels": [64, 128, 128],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "conditioning_embedding_out_channels": [16, 32, 96],
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 128,
        "in_channels": 4,
    }
    written(path / "config.json", changed(config, dice))

    def read():
        with naming(path):
            ControlNetFiles(path, EMOJI)

    return read


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


READERS = {  # reader → (what writes a case and returns what reads it, the errors it may raise)
    "folder": (folder, MINE),
    "shards": (shards, MINE),
    "header": (header, MINE),
    "controlnet": (controlnet, MINE),
    "infotext": (infotext, (ValueError,)),
    "image": (image, (ValueError,)),
    "prompt": (prompt, (ValueError, TypeError)),
}


def fuzz(reader, count, seed):
    """Returns what happened, or exits with what must not."""
    make, allowed = READERS[reader]
    outcomes, slowest, dice = Counter(), 0.0, random.Random(f"{reader} {seed}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(count):
        with tempfile.TemporaryDirectory() as path:
            read, outcome, begun = make(Path(path), dice), "read", time.process_time()
            try:
                read()
            except allowed as error:
                outcome = type(error).__name__
                if isinstance(error, CheckpointError) and path not in str(error):
                    raise SystemExit(f"{reader} {seed}, case {case}: {error!r:.300} does not name its file") from error
            seconds = time.process_time() - begun
        outcomes[outcome] += 1
        slowest = max(slowest, seconds)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before if case else 0
        before = before if case else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if seconds > SECONDS or grown > GROWTH:
            raise SystemExit(f"{reader} {seed}, case {case}: {seconds:.2f} s, {grown} kB")
    return {"reader": reader, "cases": count, **outcomes, "slowest_ms": round(1e3 * slowest, 1), "memory_kb": grown}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reader", choices=READERS, help="one of them")
    parser.add_argument("--count", type=int, default=10_000, help="cases of each reader")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other cases")
    options = parser.parse_args()
    logging.disable()
    np.seterr(all="ignore")
    for reader in [options.reader] if options.reader else READERS:
        print(json.dumps(fuzz(reader, options.count, options.seed)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
