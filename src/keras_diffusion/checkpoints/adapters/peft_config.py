"""Reads what files say about adapters beside their tensors: peft's adapter_config.json, and diffusers' copy of it.

Source: peft 0.21, `LoraConfig`, `LoHaConfig` and `LoKrConfig`; diffusers' `lora_adapter_metadata`.
"""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.system import limits

METADATA = "lora_adapter_metadata"  # peft's configuration in a file of diffusers
BESIDE = "adapter_config.json"  # peft's own, beside adapter_model.safetensors
PREFIXES = {
    "text_encoder": "text_encoder.",
    "text_encoder_2": "text_encoder_2.",
    "diffusion_model": "unet.",
}  # of a network's options in `METADATA`
NESTED = re.compile(r"[)\]}*+?][*+?{]|[*+?}]\)")  # repeats of repeats, in a regular expression
REPEATS, ALTERNATIVES = re.compile(r"[*+?{]"), re.compile(r"\|")
FOLLOWED = {"alpha", "alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_rslora"}
CHOICES = {  # option → values with which the tensors mean what they say
    "peft_type": (None, "LORA", "LOHA", "LOKR"),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal", "mica"),  # others change the model first
}
WITHOUT_EFFECT = {  # on what trained tensors mean; or it shows in their names and shapes
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "target_modules"),
    *("bias", "decompose_both", "decompose_factor", "init_weights", "lora_bias", "use_dora", "use_effective_conv2d"),
    *("lora_dropout", "module_dropout", "rank_dropout", "rank_dropout_scale", "runtime_config", "eva_config"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
}


class Declared(NamedTuple):
    """Says how strong an adapter is in a network, where tensors do not.

    Args:
        alpha: A number, or None.
        alphas: A dict from compiled regular expressions of layers' names to numbers.
        rank: For tensors that show none, a number or None.
        ranks: Like `alphas`.
        root: Whether alpha is divided by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732).
    """

    alpha: float | None = None
    alphas: dict[str, float] = {}  # noqa: RUF012
    rank: float | None = None
    ranks: dict[str, float] = {}  # noqa: RUF012
    root: bool = False

    def factor(self, layer, rank):
        """Returns alpha / rank of a layer, or 1 if alpha or the rank is not known."""
        alpha = named(self.alphas, layer, self.alpha)
        rank = rank or named(self.ranks, layer, self.rank)
        return 1.0 if alpha is None or rank is None else alpha / (math.sqrt(rank) if self.root else rank)


def named(patterns, layer, default):
    """Returns the value of the first pattern, see `compiled`, that matches a layer; or the default."""
    return next((value for pattern, value in patterns.items() if pattern.match(layer)), default)


def declarations(path):
    """Reads the metadata of a file, or peft's file beside it.

    Args:
        path: The file, which has been indexed.

    Returns:
        A dict from networks to `Declared`.

    Raises:
        CorruptCheckpointError: If it is damaged.
        CheckpointMismatchError: If it has an option that changes the result and is not understood; each is named.
    """
    text, beside = tensor_index.metadata(path).get(METADATA), Path(path).with_name(BESIDE)
    own = text is None and Path(path).stem == "adapter_model" and beside.is_file()  # peft's, of whichever network
    try:
        options = json.loads(beside.read_bytes()[: limits.JSON] if own else text or ("{}" if text is None else ""))
        by_network = {
            network: options if own else {k.removeprefix(p): v for k, v in options.items() if k.startswith(p)}
            for network, p in PREFIXES.items()
        }
        declared = {network: read(options) for network, options in by_network.items()}
    except (re.error, ArithmeticError, AttributeError, RecursionError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"{path} has damaged metadata. Received: {METADATA}={text!r:.200}") from error
    if problems := sorted({line for options in by_network.values() for line in not_understood(options)}):
        raise CheckpointMismatchError(
            f"The adapter has options that are not supported, nothing was changed: {'; '.join(problems)}. Convert it, "
            f"or give another one. Received: path={str(path)!r:.200}",
            mismatched=problems,
        )
    return declared


def read(options):
    """Reads peft's options for one network into a `Declared`."""
    alpha = options.get("lora_alpha", options.get("alpha"))
    alphas, ranks = (options.get(name) or {} for name in ("alpha_pattern", "rank_pattern"))
    if sum(map(choices, [*alphas, *ranks])) > limits.PATTERNS_CHOICES:
        raise ValueError("its patterns are too many, or too involved")
    alphas, ranks = ({compiled(key): finite(value) for key, value in each.items()} for each in (alphas, ranks))
    rank = finite(options.get("r"))
    if any(each is not None and not each > 0 for each in (rank, *ranks.values())):
        raise ValueError("a rank must be positive")
    return Declared(finite(alpha), alphas, rank, ranks, root=bool(options.get("use_rslora")))


def not_understood(options):
    """Yields every option that changes what tensors mean in a way that is not understood."""
    for option, value in options.items():
        if option in CHOICES:
            if value not in CHOICES[option]:
                yield f"{option}={value!r:.99}"
        elif value and option not in FOLLOWED | WITHOUT_EFFECT:
            yield f"{option}={value!r:.99}"


def compiled(pattern):
    """Compiles a pattern of layers' names, as peft matches them; one that could take forever is an error."""
    if len(pattern) > limits.PATTERN or choices(pattern) > limits.PATTERN_CHOICES or NESTED.search(pattern):
        raise ValueError(f"the pattern {pattern:.100} is too involved")
    re.compile(pattern)  # alone, too
    return re.compile(rf"(.*\.)?({pattern})$")


def choices(pattern):
    """Estimates how many ways to match a pattern offers: 8 for each repeat, 2 for each alternative."""
    return 8 ** len(REPEATS.findall(pattern)) * 2 ** len(ALTERNATIVES.findall(pattern))


def finite(value):
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return value
