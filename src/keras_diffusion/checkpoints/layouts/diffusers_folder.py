"""Reads and writes a model as diffusers stores it: a folder with one folder per part, of weights and JSON."""

import logging
import re
from pathlib import Path

from keras_diffusion.architectures import SD14
from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.layouts.diffusers_configs import from_diffusers, to_diffusers
from keras_diffusion.checkpoints.layouts.files import (
    CONFIGS,
    TOKENIZERS,
    WEIGHTS,
    new_folder,
    parts,
    read_json,
    weights,
    write_json,
)
from keras_diffusion.checkpoints.layouts.saving import describe, write_weights
from keras_diffusion.checkpoints.layouts.tokenizer_files import FIRST, base_size, write_words
from keras_diffusion.checkpoints.mapping.loading import Part, find_targets, load, warn_of_unused
from keras_diffusion.checkpoints.mapping.names import NETWORKS, rows
from keras_diffusion.errors import CorruptCheckpointError
from keras_diffusion.prompts import tokenizer

OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}  # of the VAE
INSIDE = {  # part → how the names of its tensors begin
    "text_encoder": re.compile(r"(text_model\.)?(embeddings|encoder|final_layer_norm)\.|.*lora"),
    "text_encoder_2": re.compile(r"(text_model\.)?(embeddings|encoder|final_layer_norm|text_projection)\.|.*lora"),
    "unet": re.compile(""),
    "vae": re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\."),
}
LEFTOVERS = {"embeddings.position_ids"}  # tensors without a meaning

log = logging.getLogger(__name__)


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
        index, usual = self._config(CONFIGS["model_index"]), to_diffusers(SD14)
        defaults = {part: usual.get(part) for part in optional}
        configs = {}
        for part in parts(index)[1:]:
            configs[part] = self._config(CONFIGS[part], defaults.get(part) or usual_padding(part, configs))
        configs["model_index"] = index
        if configs.get("text_encoder") is defaults.get("text_encoder", configs):  # another one takes its place
            width = configs["unet"].get("cross_attention_dim", SD14.text_encoder.width)
            fitting = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 1}
            configs["text_encoder"] = configs["text_encoder"] | fitting
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
        wanted, differences = find_targets(networks, self.architecture)
        tensors = {part: self.tensors(part) for part in wanted}
        load([Part(part, x, wanted[part], self._known(part, x)) for part, x in tensors.items()], differences)

    def _config(self, names, default=None):
        path = next((self.path / name for name in names if (self.path / name).is_file()), None)
        if path is None and default:
            if "pad_token" in default:
                log.warning("%s has no %s; %s is assumed", self.path, " or ".join(names), default)
            return default
        if path is None:
            raise CorruptCheckpointError(
                f"This is no complete diffusers folder: {' or '.join(names)} is missing. It must hold "
                f"{', '.join(CONFIGS[part][0] for part in parts({}))}. Received: path={str(self.path)!r:.200}"
            )
        return read_json(path)

    def tensors(self, part):
        """Lists the tensors of a part, such as "text_encoder", "unet" or "vae", by the names in the table of names.

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
        networks = (name for name in self.architecture.networks if NETWORKS[name][0] == part)
        known = LEFTOVERS.union(row.diffusers for name in networks for row in rows(name, self.architecture))
        return known | warn_of_unused(self.path / part, tensors, INSIDE[part], known)


def usual_padding(part, configs):
    """Returns what a tokenizer pads with where no file says it: Stable Diffusion 1's text encoder is the narrow one."""
    encoder = next((encoder for encoder, tokenizer in TOKENIZERS.items() if tokenizer == part), None)
    if encoder not in configs:
        return None
    width = configs[encoder].get("hidden_size", SD14.text_encoder.width)
    return {"pad_token": "!" if isinstance(width, int) and width > SD14.text_encoder.width else "<|endoftext|>"}


def canonical(name):
    """The name of a tensor in today's files."""
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def stored_name(part, name):
    """The name of a tensor in a file: that of a text encoder has a prefix, which transformers 5 also reads without."""
    return f"text_model.{name}" if part in TOKENIZERS and not name.startswith("text_projection") else name


def save(path, architecture, dtype="float32", scheduler_config=None, words=None, **networks):
    """Writes a model as a folder that `StableDiffusionPipeline.from_pretrained` of diffusers loads.

    The folder appears when it is complete; the same weights make the same bytes.

    Args:
        path: The folder. There may be an empty one at most.
        architecture: The `Architecture` of the networks.
        dtype: How tensors are stored, "float32", "float16" or "bfloat16".
        scheduler_config: A dict for scheduler_config.json; None takes DDIM on Stable Diffusion's schedule.
        words: A `SimpleTokenizer` with added words, or None.
        **networks: All networks of the architecture, by name.

    Raises:
        FileExistsError: If there is something at `path`.
        TypeError: If a network is missing or has another name.
        ValueError: If `dtype` is another one, a network is of another architecture, diffusers has no such
            architecture, or a weight is not finite in `dtype`.
    """
    configs = describe(architecture, dtype, scheduler_config, networks)
    wanted, _ = find_targets(networks, architecture)
    with new_folder(path) as folder:
        write_configs(folder, configs, architecture, words)
        for part, targets in wanted.items():
            targets = [target._replace(name=stored_name(part, target.name)) for target in targets]
            write_weights(folder / part / f"{WEIGHTS[part]}.safetensors", targets, dtype)


def write_configs(folder, configs, architecture, words=None):
    """Writes everything of a model but its weights: configuration files, which `describe` returns, and tokenizers."""
    for part, config in configs.items():
        write_json(folder / CONFIGS[part][0], config)
    for name, shape in architecture.text_encoders.items():
        size = words.end_of_text + 1 if words else base_size(shape.vocabulary)
        if size < FIRST:  # else the tokens are those that transformers takes for granted
            write_json(folder / CONFIGS[name][0], {**configs[name], "bos_token_id": size - 2, "eos_token_id": size - 1})
        write_tokenizer(folder / TOKENIZERS[name], configs[TOKENIZERS[name]], shape.length, size)
        if words:
            write_words(folder / TOKENIZERS[name], words)


def write_tokenizer(folder, special_tokens, length, size):
    """Writes the files of transformers' `CLIPTokenizer` for prompts of a length and the first `size` tokens of CLIP."""
    words, merges = tokenizer.table(size)
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
