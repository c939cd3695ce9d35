"""Reads and writes tiny autoencoders: folders of diffusers' `AutoencoderTiny`, and files of madebyollin/taesd."""

import os
import re
from pathlib import Path

from keras_diffusion.arguments import choice
from keras_diffusion.checkpoints.formats import safetensors, tensor_index
from keras_diffusion.checkpoints.layouts.files import new_file, new_folder, read_json, weights, write_json
from keras_diffusion.checkpoints.layouts.saving import write_weights
from keras_diffusion.checkpoints.mapping.loading import Part, families, load
from keras_diffusion.checkpoints.mapping.paths import targets_by_path
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.networks.tiny_autoencoder import TinyArchitecture

HALVES = {"tiny_decoder": "decoder", "tiny_image_encoder": "encoder"}  # network → what files call it
FIRST_PLACE = {"encoder": 0, "decoder": 1}  # in the original files: that of the decoder's clip is 0
PREFIX = re.compile(r"(taesd_)?(encoder|decoder)\.(layers\.)?")
PLACE = re.compile(r"(\d{1,3})\.(.+)")
OPTIONS = {  # option of config.json → values understood; the first is diffusers' own
    "_class_name": ("AutoencoderTiny",),
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
    "shift_factor": (0.0,),
}
MADE_FOR = {"taesdxl": True, "taesd": False}  # how names of files begin → whether that is for SDXL


class TinyVaeFiles:
    """A tiny autoencoder, or one half of it.

    Args:
        path: A folder as `save_pretrained` of diffusers writes it, of the autoencoder or of a whole model; or a file,
            safetensors or a pickle, with the names of diffusers or of madebyollin/taesd.
        architecture: The `Architecture` of the model whose latents it is for.

    Attributes:
        path: The folder or file, a `Path`.
        architectures: A dict from "tiny_decoder" and "tiny_image_encoder", those that are there, to `TinyArchitecture`.

    Raises:
        TypeError: If `path` is neither a str nor a path.
        CorruptCheckpointError: If there is nothing to read, or it is damaged.
        UnsafeCheckpointError: If a pickle asks for more than values.
        CheckpointMismatchError: If it is no tiny autoencoder, or one for other latents.
    """

    def __init__(self, path, architecture):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"A tiny autoencoder is given as a folder or a file. Received: path={path!r:.200}")
        if not os.path.exists(path):
            raise CorruptCheckpointError(f"There is no such folder or file. Received: path={str(path)!r:.200}")
        self.path = Path(path)
        if (self.path / "vae" / "config.json").is_file():
            self.path = self.path / "vae"
        config = read_json(self.path / "config.json") if (self.path / "config.json").is_file() else {}
        self._require(
            f"{option}={config[option]!r:.200}, only {allowed[0]!r} is possible"
            for option, allowed in OPTIONS.items()
            if config.get(option) not in (None, *allowed)
        )
        self._tensors = self._read()
        factor = config.get("scaling_factor") or 1.0
        self.architectures = {
            name: _shape(half, self._tensors[half], factor) for name, half in HALVES.items() if half in self._tensors
        }
        vae = architecture.autoencoder
        self._require(
            f"{name}: {what} {given}, not {wanted}"
            for name, shape in self.architectures.items()
            for what, given, wanted in (
                ("pixels per latent", shape.factor, vae.factor),
                ("latent channels", shape.latent_channels, vae.latent_channels),
            )
            if given != wanted
        )

    def load(self, **networks):
        """Fills the networks, built with these `architectures`: all of them or, on an error, none.

        Raises:
            CheckpointMismatchError: If anything does not fit; every tensor is named.
            CorruptCheckpointError: If a file is damaged.
        """
        load(
            [
                Part(name, self._tensors[HALVES[name]], targets_by_path(network), set())
                for name, network in networks.items()
            ]
        )

    def _require(self, problems):
        if problems := list(problems):
            raise CheckpointMismatchError(
                "\n  ".join(["The tiny autoencoder does not fit the model:", *problems])
                + f"\nGive one that was made for it, such as taesd for Stable Diffusion 1 and 2 and taesdxl for SDXL. "
                f"Received: path={str(self.path)!r:.200}",
                mismatched=problems,
            )

    def _read(self):
        """The tensors of each half by their names in diffusers, without the prefix."""
        paths = weights(self.path, "diffusion_pytorch_model") if self.path.is_dir() else [self.path]
        tensors = {name: tensor for path in paths for name, tensor in tensor_index.index(path).items()}
        halves, unknown = {}, []
        alone = "encoder" if "0.weight" in tensors else "decoder"
        for name, tensor in tensors.items():
            prefix = PREFIX.match(name)
            half = prefix[2] if prefix else alone
            place = PLACE.fullmatch(name[prefix.end() :] if prefix else name)
            if not place:
                unknown.append(name)
                continue
            start = 0 if prefix and prefix[3] else FIRST_PLACE[half]
            halves.setdefault(half, {})[f"layers.{int(place[1]) - start}.{place[2]}"] = tensor
        if unknown or not halves:
            looks = ", ".join(families(tensors)) or "nothing known"
            raise CheckpointMismatchError(
                f"This is no tiny autoencoder, it looks like {looks}. Give a folder of diffusers' AutoencoderTiny, or "
                f"a file such as taesd_decoder.safetensors; `load_vae` takes other autoencoders. "
                f"Received: path={str(self.path)!r:.200}",
                unexpected=unknown,
            )
        return halves


def made_for_other(path, architecture):
    """Tells whether a path says that its tiny autoencoder is for SDXL and the model is another, or the reverse."""
    for begin, is_for_sdxl in MADE_FOR.items():
        if begin in Path(path).name.lower():
            return is_for_sdxl != bool(architecture.text_encoder_2)
    return False


def save(path, dtype="float32", **networks):
    """Writes a tiny autoencoder, which other tools load.

    Args:
        path: A folder for `AutoencoderTiny.from_pretrained` of diffusers, which needs both networks; or a file whose
            name ends in .safetensors, for one network, as madebyollin/taesd has them. It must not exist yet.
        dtype: What the weights are stored in, "float32", "float16" or "bfloat16".
        **networks: `tiny_decoder`, `tiny_image_encoder` or both.

    Raises:
        FileExistsError: If there is something at `path`.
        ValueError: If `dtype` is another one, a weight is not finite in it, or networks are missing or too many.
    """
    choice("dtype", dtype, safetensors.NAMES)
    single = Path(path).suffix.lower() == ".safetensors"
    if networks.keys() - HALVES.keys() or len(networks) != (1 if single else 2):
        wanted = "one of them is for a .safetensors file" if single else "a folder holds both"
        raise ValueError(f"The networks are {', '.join(HALVES)}; {wanted}. Received: {', '.join(networks)}")
    wanted = {HALVES[name]: targets_by_path(network) for name, network in networks.items()}
    if single:
        ((half, targets),) = wanted.items()
        targets = [target._replace(name=_original(target.name, half)) for target in targets]
        with new_file(path) as temporary:
            write_weights(temporary, targets, dtype)
        return
    targets = [target._replace(name=f"{half}.{target.name}") for half in wanted for target in wanted[half]]
    with new_folder(path) as folder:
        shapes = {HALVES[name]: network.architecture for name, network in networks.items()}
        write_json(folder / "config.json", _config(**shapes))
        write_weights(folder / "diffusion_pytorch_model.safetensors", targets, dtype)


def _original(name, half):
    """The name of a tensor in the files of madebyollin/taesd."""
    _, place, rest = name.split(".", 2)
    return f"{int(place) + FIRST_PLACE[half]}.{rest}"


def _config(encoder, decoder):
    """The configuration that diffusers reads."""
    return {option: allowed[0] for option, allowed in OPTIONS.items()} | {
        "latent_channels": decoder.latent_channels,
        "scaling_factor": decoder.scaling_factor,
        "num_encoder_blocks": list(encoder.blocks),
        "num_decoder_blocks": list(decoder.blocks),
        "encoder_block_out_channels": [encoder.channels] * len(encoder.blocks),
        "decoder_block_out_channels": [decoder.channels] * len(decoder.blocks),
    }


def _shape(half, tensors, scaling_factor):
    """The shape of a half: between convolutions there are as many residual blocks as tensors say."""
    places = sorted({int(name.split(".")[1]) for name in tensors})
    blocks = [0]
    for place in places:
        if f"layers.{place}.weight" in tensors:
            blocks.append(0)
        else:
            blocks[-1] += 1
    first, last = (tensors.get(f"layers.{place}.weight") for place in (places[0], places[-1]))
    if len(blocks) < 3 or first is None or last is None or min(len(first.shape), len(last.shape)) != 4:
        raise CheckpointMismatchError(
            f"The {half} lacks its first or last convolution. Fetch the file again. Received: {len(tensors)} tensors",
            missing=[f"{half}.layers.{place}.weight" for place in places[:1] + places[-1:]],
        )
    latent_channels = first.shape[1] if half == "decoder" else last.shape[0]
    return TinyArchitecture(tuple(blocks[1:-1]), first.shape[0], latent_channels, float(scaling_factor))
