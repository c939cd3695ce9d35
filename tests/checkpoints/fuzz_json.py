"""Configurations and other JSON, changed by its structure."""

import json
from copy import deepcopy

from keras_diffusion.architectures import EMOJI
from keras_diffusion.checkpoints import presets
from keras_diffusion.checkpoints.download.sources import FOLDER
from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.layouts import files
from keras_diffusion.checkpoints.layouts.controlnet_files import ControlNetFiles
from keras_diffusion.checkpoints.layouts.files import naming
from keras_diffusion.checkpoints.layouts.tokenizer_files import read_tokenizer
from keras_diffusion.sampling.scheduler_config import from_scheduler_config

VALUES = [
    *(None, True, 0, 1, -1, 0.5, 64, 77, 1000, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf")),
    *("", "a", "64", "epsilon", "../x", "/etc/passwd", "\0", "\ud800", "a" * 5000, "(" * 3000, "é" * 300),
    *([], {}, [[]], [None], {"a": {}}, [1] * 500, ["DownBlock2D"] * 9, [64] * 17, [[1, 2]]),
]


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


def tokenizer(path, dice):
    """The words beyond CLIP's, as transformers and diffusers write them."""
    words = {f"<a>{'_' * bool(i)}{i or ''}": 49408 + i for i in range(3)}
    tokens = {str(token): {"content": word, "special": False} for word, token in words.items()}
    contents = {"added_tokens.json": words, "tokenizer_config.json": {"added_tokens_decoder": tokens}}
    name = dice.choice([*contents])
    written(path / name, changed(contents[name], dice))
    return lambda: read_tokenizer(path, dice.choice([None, 49411]))


READERS = {"folder": folder, "shards": shards, "header": header, "controlnet": controlnet, "tokenizer": tokenizer}
