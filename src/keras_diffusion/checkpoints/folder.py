"""Reads and writes a model as diffusers stores it: a folder with one folder per part, of safetensors and JSON."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from keras import ops

from keras_diffusion import tokenizer
from keras_diffusion.checkpoints import safetensors
from keras_diffusion.checkpoints.configs import from_diffusers, to_diffusers
from keras_diffusion.checkpoints.files import CONFIGS, WEIGHTS, new_folder, read_json, weights, write_json
from keras_diffusion.checkpoints.loading import Part, load, stored, targets
from keras_diffusion.checkpoints.names import NETWORKS, rows
from keras_diffusion.errors import CorruptCheckpointError

PREFIXES = {"text_encoder": "text_model."}  # of every name in a file; transformers 5 reads it and writes without it
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}  # of the VAE
LEFTOVERS = {"embeddings.position_ids"}  # tensors without a meaning
SHAPES = {  # network → the field of an architecture that describes it
    "text_encoder": "text_encoder",
    "diffusion_model": "diffusion_model",
    "image_encoder": "autoencoder",
    "decoder": "autoencoder",
}
NOT_COMPUTED = {"linear_projection", "pad_token"}  # fields that do not change what a network computes


class DiffusersFolder:
    """A Stable Diffusion model in a folder, as `save_pretrained` of diffusers writes it.

    Args:
        path: The folder.

    Attributes:
        path: The folder, a `Path`.
        architecture: The `Architecture` that its configuration files describe.
        scheduler_config: A dict, the contents of scheduler_config.json.

    Raises:
        CorruptCheckpointError: If a configuration file is missing or damaged.
        CheckpointMismatchError: If the folder holds a model of another family.
    """

    def __init__(self, path):
        self.path = Path(path)
        configs = {part: self._config(names) for part, names in CONFIGS.items()}
        self.architecture = from_diffusers(configs)
        self.scheduler_config = configs["scheduler"]

    def load(self, **networks):
        """Fills networks with the weights of the folder: all of them or, on an error, none.

        Tensors are stored in float32, float16 or bfloat16 and become the dtype of their variable.

        Args:
            **networks: Any of text_encoder, diffusion_model, image_encoder and decoder, built for this `architecture`.

        Raises:
            CheckpointMismatchError: If anything does not fit: every missing, unexpected, mis-shaped, not finite or
                overflowing tensor is named.
            CorruptCheckpointError: If a file is missing or damaged.
            UnsafeCheckpointError: If a file refers to one elsewhere.
            TypeError: If a network has another name.
        """
        if unknown := sorted(networks.keys() - NETWORKS.keys()):
            raise TypeError(f"The networks must be named {', '.join(NETWORKS)}. Received: {unknown}")
        parts, differences = {}, []
        for name, network in networks.items():
            part = NETWORKS[name][0]
            if part not in parts:
                parts[part] = Part(part, self._tensors(part), [], self._known(part))
            parts[part].targets.extend(targets(network, rows(name, network.architecture)))
            differences += self._differences(name, network)
        load(list(parts.values()), differences)

    def _config(self, names):
        path = next((self.path / name for name in names if (self.path / name).is_file()), None)
        if path is None:
            raise CorruptCheckpointError(
                f"This is no complete diffusers folder: {' or '.join(names)} is missing. It must hold "
                f"{', '.join(names[0] for names in CONFIGS.values())}. Received: path={str(self.path)!r:.200}"
            )
        return read_json(path)

    def _tensors(self, part):
        """The tensors of a part, by the names that `rows` knows."""
        tensors = {}
        for path in weights(self.path / part, WEIGHTS[part]):
            for name, tensor in safetensors.index(path).items():
                if name in tensors:
                    raise CorruptCheckpointError(f"{path} repeats a tensor of another file. Received: {name!r:.200}")
                tensors[name] = tensor
        # Where a file holds a tensor under its old and its present name, the old one is unexpected.
        return {name if canonical(name) in tensors else canonical(name): tensor for name, tensor in tensors.items()}

    def _known(self, part):
        """Names that may be in the files of a part although no network asks for them."""
        networks = (name for name, (folder, _) in NETWORKS.items() if folder == part)
        return LEFTOVERS.union(row.diffusers for name in networks for row in rows(name, self.architecture))

    def _differences(self, name, network):
        """A line for each field by which a network would compute something else than the folder's."""
        ours, theirs = (asdict(getattr(a, SHAPES[name])) for a in (network.architecture, self.architecture))
        return [
            f"{name}: built with {field}={ours[field]}, the folder says {theirs[field]}"
            for field in ours
            if field not in NOT_COMPUTED and ours[field] != theirs[field]
        ]


def canonical(name):
    """The name of a tensor in today's files."""
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def save(
    path, architecture, dtype="float32", scheduler_config=None, *, text_encoder, diffusion_model, image_encoder, decoder
):
    """Writes a model as a folder that `StableDiffusionPipeline.from_pretrained` of diffusers loads.

    The folder appears when it is complete; the same weights make the same bytes.

    Args:
        path: The folder. There may be an empty one at most.
        architecture: The `Architecture` of the networks.
        dtype: How tensors are stored, "float32" or "float16".
        scheduler_config: A dict for scheduler_config.json; None takes DDIM on Stable Diffusion's schedule.
        text_encoder: The `TextEncoder`.
        diffusion_model: The `DiffusionModel`.
        image_encoder: The `ImageEncoder`.
        decoder: The `Decoder`.

    Raises:
        FileExistsError: If there is something at `path`.
        ValueError: If `dtype` is another one, a network is of another architecture, diffusers has no such
            architecture, or a weight is not finite in `dtype`.
    """
    if dtype not in safetensors.NAMES:
        raise ValueError(f"`dtype` must be one of {', '.join(safetensors.NAMES)}. Received: dtype={dtype!r:.200}")
    networks = {
        "text_encoder": text_encoder,
        "diffusion_model": diffusion_model,
        "image_encoder": image_encoder,
        "decoder": decoder,
    }
    for name, network in networks.items():
        if getattr(network.architecture, SHAPES[name]) != getattr(architecture, SHAPES[name]):
            raise ValueError(
                f"`{name}` must be of the architecture given. Received: {name} of {network.architecture.name!r}, "
                f"architecture {architecture.name!r}"
            )
    configs = to_diffusers(architecture)
    if replace(from_diffusers(configs), name=architecture.name) != architecture:
        raise ValueError(f"diffusers cannot describe this architecture. Received: architecture={architecture!r:.200}")
    scheduler = {**(scheduler_config or configs["scheduler"]), "prediction_type": architecture.prediction_type}
    configs["scheduler"] = scheduler
    configs["model_index"]["scheduler"] = ["diffusers", scheduler["_class_name"]]
    wanted = {part: [] for part in WEIGHTS}
    for name, network in networks.items():
        wanted[NETWORKS[name][0]] += targets(network, rows(name, architecture))
    with new_folder(path) as folder:
        for part, names in CONFIGS.items():
            write_json(folder / names[0], configs[part])
        write_tokenizer(folder / "tokenizer", configs["tokenizer"], architecture.text_encoder.length)
        for part, stem in WEIGHTS.items():
            write_weights(folder / part / f"{stem}.safetensors", wanted[part], dtype, PREFIXES.get(part, ""))


def write_tokenizer(folder, special_tokens, length):
    """Writes the files of transformers' `CLIPTokenizer`."""
    words, merges = tokenizer.table()
    write_json(folder / "tokenizer_config.json", {
        **special_tokens,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": length,
        "tokenizer_class": "CLIPTokenizer",
    })
    write_json(folder / "vocab.json", {word: token for token, word in enumerate(words)})
    lines = ["#version: 0.2", *(f"{words[left]} {words[right]}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def write_weights(path, wanted, dtype, prefix):
    """Writes the variables of some targets, one at a time."""
    def values():
        for target in wanted:
            array = np.asarray(ops.convert_to_numpy(target.variable), "float32")
            with np.errstate(over="ignore"):
                array = stored(array, target.layout).astype(dtype)
            if not np.isfinite(array).all():
                raise ValueError(f"Weights must be finite in {dtype}. Received: {prefix}{target.name} with inf or NaN")
            yield array

    wanted = sorted(wanted, key=lambda target: target.name)
    safetensors.write(path, dtype, {prefix + target.name: target.shape for target in wanted}, values())
