"""Reads and writes a model as diffusers stores it: a folder with one folder per part, of weights and JSON."""

import re
from pathlib import Path

from keras_diffusion.architectures import SD14
from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.layouts.diffusers_configs import from_diffusers, to_diffusers
from keras_diffusion.checkpoints.layouts.files import CONFIGS, WEIGHTS, new_folder, read_json, weights, write_json
from keras_diffusion.checkpoints.layouts.saving import describe, write_weights
from keras_diffusion.checkpoints.mapping.loading import Part, find_targets, load, warn_of_unused
from keras_diffusion.checkpoints.mapping.names import NETWORKS, rows
from keras_diffusion.errors import CorruptCheckpointError
from keras_diffusion.prompts import tokenizer

PREFIXES = {"text_encoder": "text_model."}  # of every name in a file; transformers 5 reads it and writes without it
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}  # of the VAE
INSIDE = {  # part → how the names of its tensors begin
    "text_encoder": re.compile(r"(text_model\.)?(embeddings|encoder|final_layer_norm)\.|.*lora"),
    "unet": re.compile(""),
    "vae": re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\."),
}
LEFTOVERS = {"embeddings.position_ids"}  # tensors without a meaning


class DiffusersFolder:
    """A Stable Diffusion model in a folder, as `save_pretrained` of diffusers writes it.

    Weights may be safetensors or, where a part has none, pickles (.bin).

    Args:
        path: The folder.
        prediction_type: What the diffusion model predicts, "epsilon", "v_prediction" or "sample"; None takes the
            folder's word.
        optional: Parts whose configuration may be missing, because they are given otherwise; then it is that of
            Stable Diffusion 1.

    Attributes:
        path: The folder, a `Path`.
        architecture: The `Architecture` that its configuration files describe.
        scheduler_config: A dict, the contents of scheduler_config.json.

    Raises:
        CorruptCheckpointError: If a configuration file is missing or damaged.
        CheckpointMismatchError: If the folder holds a model of another family.
    """

    def __init__(self, path, prediction_type=None, optional=()):
        self.path = Path(path)
        usual = to_diffusers(SD14)
        configs = {
            part: self._config(names, usual[part] if part in optional else None) for part, names in CONFIGS.items()
        }
        if prediction_type is not None:
            configs["scheduler"]["prediction_type"] = prediction_type
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
            UnsafeCheckpointError: If a file refers to one elsewhere, or is a pickle that asks for more than values.
            TypeError: If a network has another name.
        """
        parts, differences = find_targets(networks, self.architecture)
        tensors = {part: self.tensors(part) for part in parts}
        load([Part(part, tensors[part], parts[part], self._known(part, tensors[part])) for part in parts], differences)

    def _config(self, names, default=None):
        path = next((self.path / name for name in names if (self.path / name).is_file()), None)
        if path is None and default:
            return default
        if path is None:
            raise CorruptCheckpointError(
                f"This is no complete diffusers folder: {' or '.join(names)} is missing. It must hold "
                f"{', '.join(names[0] for names in CONFIGS.values())}. Received: path={str(self.path)!r:.200}"
            )
        return read_json(path)

    def tensors(self, part):
        """Lists the tensors of a part, "text_encoder", "unet" or "vae", by the names in the table of names.

        Raises:
            CorruptCheckpointError: If a file is missing or damaged.
            UnsafeCheckpointError: If a file refers to one elsewhere, or is a pickle that asks for more than values.
        """
        tensors = {}
        for path in weights(self.path / part, WEIGHTS[part]):
            for name, tensor in tensor_index.index(path).items():
                if name in tensors:
                    raise CorruptCheckpointError(f"{path} repeats a tensor of another file. Received: {name!r:.200}")
                tensors[name] = tensor
        # Where a file holds a tensor under its old and its present name, the old one is unexpected.
        return {name if canonical(name) in tensors else canonical(name): tensor for name, tensor in tensors.items()}

    def _known(self, part, tensors):
        """Names that may be in the files of a part although no network asks for them."""
        networks = (name for name, (folder, _) in NETWORKS.items() if folder == part)
        known = LEFTOVERS.union(row.diffusers for name in networks for row in rows(name, self.architecture))
        return known | warn_of_unused(self.path / part, tensors, INSIDE[part], known)


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
        dtype: How tensors are stored, "float32", "float16" or "bfloat16".
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
    networks = {
        "text_encoder": text_encoder,
        "diffusion_model": diffusion_model,
        "image_encoder": image_encoder,
        "decoder": decoder,
    }
    configs = describe(architecture, dtype, scheduler_config, networks)
    parts, _ = find_targets(networks, architecture)
    with new_folder(path) as folder:
        for part, names in CONFIGS.items():
            write_json(folder / names[0], configs[part])
        write_tokenizer(folder / "tokenizer", configs["tokenizer"], architecture.text_encoder.length)
        for part, stem in WEIGHTS.items():
            write_weights(folder / part / f"{stem}.safetensors", parts[part], dtype, PREFIXES.get(part, ""))


def write_tokenizer(folder, special_tokens, length):
    """Writes the files of transformers' `CLIPTokenizer`."""
    words, merges = tokenizer.table()
    write_json(
        folder / "tokenizer_config.json",
        {
            **special_tokens,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": length,
            "tokenizer_class": "CLIPTokenizer",
        },
    )
    write_json(folder / "vocab.json", {word: token for token, word in enumerate(words)})
    lines = ["#version: 0.2", *(f"{words[left]} {words[right]}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
