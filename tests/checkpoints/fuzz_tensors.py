"""Files of tensors, changed by their structure: names, shapes, dtypes, metadata, and the configurations beside them."""

import json
import re
import struct
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import h5py
import numpy as np

from keras_diffusion import StableDiffusion, Upscaler
from keras_diffusion.architectures import VisionEncoderShape
from keras_diffusion.checkpoints import presets
from keras_diffusion.checkpoints.adapters import lora_file, textual_inversion
from keras_diffusion.checkpoints.formats import gguf_file, safetensors, tensor_index
from keras_diffusion.checkpoints.layouts import keras_files, keras_names
from keras_diffusion.checkpoints.mapping.image_prompt_names import vision_encoder
from keras_diffusion.checkpoints.mapping.loading import targets
from keras_diffusion.checkpoints.mapping.paths import targets_by_path
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.t2i_adapter import T2IAdapter, T2IAdapterShape
from keras_diffusion.networks.tiny_autoencoder import TinyArchitecture, TinyDecoder, TinyImageEncoder
from keras_diffusion.networks.upscalers import NETWORKS, CompactArchitecture, RRDBArchitecture
from keras_diffusion.networks.vision_encoder import VisionEncoder

from ..golden import ip_adapters, lora
from ..small import SMALL
from .fuzz_json import changed, written

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
SIDES = [0, 1, 2, 3, 4, 7, 64, 77, 768, 4096, 10**5, 10**9, 2**40]
PIECES = ["", ".", "0", "-1", "999", "9" * 30, "weight", "bias", "alpha", "model.", "unet.", "é", "\\", "/", "a" * 900]
MODEL = replace(lora.ARCHITECTURE, name="custom")
SPARSE = 2**33  # bytes that a file may have; a larger one is cut short
METADATA = {
    "lora_adapter_metadata": {"unet.lora_alpha": 8, "unet.r": 4, "unet.alpha_pattern": {"mid_block.*": 2}},
    "ss_network_args": {"conv_dim": 8},
}


def changed_tensors(tensors, dice):
    """A copy of {name: shape} as {name: (dtype, shape)}, with up to four changes."""
    tensors = {name: ("F32", tuple(shape)) for name, shape in tensors.items()}
    for _ in range(dice.randint(0, 4)):
        name = dice.choice([*tensors] or ["x"])
        dtype, shape = tensors.get(name, ("F32", (1,)))
        match dice.randrange(7):
            case 0:
                tensors.pop(name, None)
            case 1:
                tensors[_renamed(name, dice)] = tensors.pop(name, (dtype, shape))
            case 2:
                tensors |= {_renamed(name, dice): (dtype, shape) for _ in range(dice.choice([1, 3, 300]))}
            case 3:
                tensors[name] = dice.choice([*SIZES]), shape
            case 4 if shape:
                place = dice.randrange(len(shape))
                tensors[name] = dtype, (*shape[:place], dice.choice(SIDES), *shape[place + 1 :])
            case 5:
                tensors[name] = dtype, dice.choice([(), shape[1:], shape[::-1], (*shape, 1), (1, *shape), (0,) * 8])
            case 6:
                part = name[: dice.randrange(len(name) + 1)]
                tensors = {key: each for key, each in tensors.items() if not key.startswith(part)}
    return tensors


def _renamed(name, dice):
    if dice.random() < 0.3:
        return re.sub(r"\d+", lambda _: dice.choice(["0", "1", "17", "999", "9" * 30]), name, count=1)
    place = dice.randrange(len(name) + 1)
    return name[:place] + dice.choice(PIECES) + name[place + dice.choice([0, 0, 1, 5]) :]


def write(path, tensors, metadata=None):
    """Writes a safetensors file of zeros, which takes no room."""
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype] * int(np.prod(shape, dtype=object))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    _sparse(path, json.dumps(header).encode("utf-8", "surrogatepass"), end)


def _sparse(path, head, size, gguf=False):
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.write(head if gguf else len(head).to_bytes(8, "little") + head)
        file.truncate(min(file.tell() + size, SPARSE))


@cache
def model():
    found = StableDiffusion(preset=MODEL)
    assert found.decoder
    return found


@cache
def known(kind):
    """The tensors of a sound file: {name: shape}."""
    if kind in lora.FILES:
        return {name: tensor.shape for name, tensor in tensor_index.index(lora.FILES[kind]).items()}
    if kind == "decoder":
        shapes = {variable.path: variable.shape for variable in decoder().variables}
        return {row.name: shapes[row.path] for row in keras_names.own("decoder", SMALL)}
    if kind.startswith("ip "):
        return {name: x.shape for name, x in ip_adapters.tensors(kind[3:], MODEL.diffusion_model).items()}
    make, find = NETWORK[kind]
    return {target.name: target.shape for target in find(make())}


@cache
def decoder():
    return Decoder(architecture=SMALL)


@cache
def whole():
    """The tensors of a model in one file, and its metadata."""
    with tempfile.TemporaryDirectory() as folder:
        model().export_checkpoint(path := Path(folder) / "x.safetensors")
        return {name: x.shape for name, x in tensor_index.index(path).items()}, safetensors.metadata(path)


VISION = VisionEncoderShape(ip_adapters.WIDTH, 3, 3, 40, ip_adapters.EMBEDDING, "gelu", 14, 28)
VISION_CONFIG = {
    **{"hidden_size": ip_adapters.WIDTH, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40},
    **{"projection_dim": ip_adapters.EMBEDDING, "hidden_act": "gelu", "patch_size": 14, "image_size": 28},
}
T2I = T2IAdapterShape("full_adapter", (16, 32), 2, MODEL.autoencoder.factor, 3)
TINY = TinyArchitecture((1, 1, 1), 8, MODEL.autoencoder.latent_channels)
NETWORK = {
    "T2I-adapter": (lambda: T2IAdapter(T2I, initialize=False), targets_by_path),
    "vision": (
        lambda: VisionEncoder(VISION, initialize=False),
        lambda network: targets(network, vision_encoder(VISION)),
    ),
    "taesd decoder": (lambda: TinyDecoder(architecture=TINY, initialize=False), targets_by_path),
    "taesd encoder": (lambda: TinyImageEncoder(architecture=TINY, initialize=False), targets_by_path),
    "RRDB": (partial(NETWORKS[RRDBArchitecture], RRDBArchitecture(1, 4, 4), initialize=False), targets_by_path),
    "compact": (partial(NETWORKS[CompactArchitecture], CompactArchitecture(2, 4), initialize=False), targets_by_path),
}


def lora_reader(path, dice):
    metadata = {key: json.dumps(changed(value, dice)) for key, value in METADATA.items() if dice.random() < 0.3}
    write(path / "x.safetensors", changed_tensors(known(dice.choice([*lora.FILES])), dice), metadata)
    networks = {name: getattr(model(), name) for name in ("text_encoder", "diffusion_model")}
    return lambda: (lora_file.changes(path / "x.safetensors", networks), lora_file.titles(path / "x.safetensors"))


def embedding(path, dice):
    write(path / "x.safetensors", changed_tensors({dice.choice(["<cat>", "emb_params"]): (2, 16)}, dice))
    return lambda: textual_inversion.read_embedding(path / "x.safetensors", model().text_encoder)


def t2i_adapter(path, dice):
    config = {"adapter_type": "full_adapter", "channels": [16, 32], "num_res_blocks": 2}
    config["downscale_factor"] = MODEL.autoencoder.factor
    written(path / "config.json", changed(config, dice) if dice.random() < 0.5 else config)
    tensors = {f"adapter.{name}": shape for name, shape in known("T2I-adapter").items()}
    write(path / "diffusion_pytorch_model.safetensors", changed_tensors(tensors, dice))
    return lambda: model().load_t2i_adapter(path)


def image_prompt(path, dice):
    config = changed(VISION_CONFIG, dice) if dice.random() < 0.3 else VISION_CONFIG
    (path / "image_encoder").mkdir()
    written(path / "image_encoder/config.json", config)
    encoder = changed_tensors(known("vision"), dice) if dice.random() < 0.3 else _sound(known("vision"))
    write(path / "image_encoder/model.safetensors", encoder)
    write(path / "x.safetensors", changed_tensors(known(f"ip {dice.choice(['plain', 'plus', 'full'])}"), dice))

    def read():
        model().load_ip_adapter(path / "x.safetensors")
        model().unload_ip_adapter()

    return read


def _sound(tensors):
    return {name: ("F32", shape) for name, shape in tensors.items()}


def tiny_vae(path, dice):
    halves = {"decoder": known("taesd decoder"), "encoder": known("taesd encoder")}
    tensors = {f"{half}.{name}": shape for half, its in halves.items() for name, shape in its.items()}
    write(path / "x.safetensors", changed_tensors(tensors, dice))
    return lambda: model().load_tiny_vae(path / "x.safetensors")


def upscaler(path, dice):
    write(path / "x.safetensors", changed_tensors(known(dice.choice(["RRDB", "compact"])), dice))
    return lambda: Upscaler.from_file(path / "x.safetensors")


def single_file(path, dice):
    tensors, metadata = whole()
    if dice.random() < 0.5:
        (key,) = metadata.keys() - {"format"}
        metadata = {**metadata, key: json.dumps(changed(json.loads(metadata[key]), dice))}
    write(path / "x.safetensors", changed_tensors(tensors, dice), metadata)
    return lambda: presets.read(path / "x.safetensors")


GGUF_TYPES = {"F32": 0, "F16": 1, "BF16": 30, "F64": 28, "I64": 27, "U8": 24, "BOOL": 8, "F8_E4M3": 99}


def gguf(path, dice):
    """GGUF of a whole model: also keys of every type, and wrong counts and offsets."""
    tensors, place = changed_tensors({f"a.{i}": (4, 32) for i in range(4)}, dice), 0
    head = [_gguf_key(dice, name) for name in dice.sample([*tensors] or ["x"], 1) for _ in range(dice.randint(0, 3))]
    count = len(head)
    for name, (dtype, shape) in tensors.items():
        head.append(_gguf_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]))
        head.append(struct.pack("<IQ", GGUF_TYPES[dtype], place + dice.choice([0] * 30 + [1, 32, 2**40, 2**63])))
        place += -(-SIZES[dtype] * int(np.prod(shape, dtype=object)) // 32) * 32
    listed = len(tensors) + dice.choice([0] * 20 + [1, -1, 2**31])
    start = b"GGUF" + struct.pack("<IQQ", dice.choice([3, 3, 3, 2, 1]), max(0, listed), count)
    _sparse(path / "x.gguf", start + b"".join(head), place + 64, gguf=True)
    return lambda: gguf_file.index(path / "x.gguf")


def _gguf_text(text):
    text = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text


def _gguf_key(dice, name):
    key = _gguf_text(dice.choice(["general.alignment", f"comfy.gguf.orig_shape.{name}", "x"]))
    value = dice.choice([0, 1, 32, 33, 2**31 - 1])
    array = struct.pack("<IIQ2i", 9, dice.choice([5, 5, 8, 9]), dice.choice([2, 2, 2**61]), 4, value)
    return key + dice.choice([struct.pack("<IIi", 4, value, 0)[:8], array, struct.pack("<I", 8) + _gguf_text("x")])


def datasets(path, dice):
    """A decoder as Keras writes it."""
    tensors = changed_tensors(known("decoder"), dice)
    with h5py.File(path / "x.weights.h5", "w") as file:
        for name, (_, shape) in tensors.items():
            if name.strip("./") and "\0" not in name and np.prod(shape, dtype=object) < 10**5 and len(shape) < 9:
                try:
                    file[name] = np.zeros(shape, "f4")
                except (ValueError, TypeError, OSError, RuntimeError):
                    continue
    return lambda: keras_files.load_weights(decoder(), path / "x.weights.h5")


READERS = {
    "lora": lora_reader,
    "embedding": embedding,
    "T2I-adapter": t2i_adapter,
    "image prompt": image_prompt,
    "tiny VAE": tiny_vae,
    "upscaler": upscaler,
    "single file": single_file,
    "gguf": gguf,
    "datasets": datasets,
}
