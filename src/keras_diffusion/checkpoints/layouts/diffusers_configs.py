"""Translates between an `Architecture` and the configuration files of a diffusers folder."""

from dataclasses import replace
from itertools import islice
from operator import mul

import numpy as np

from keras_diffusion import limits
from keras_diffusion.architectures import (
    ARCHITECTURES,
    Architecture,
    AutoencoderShape,
    DiffusionModelShape,
    Level,
    TextEncoderShape,
)
from keras_diffusion.checkpoints.layouts.diffusers_options import OPTIONS, PAD_TOKENS, PER_LEVEL, WITHOUT_EFFECT
from keras_diffusion.checkpoints.mapping.names import NETWORKS
from keras_diffusion.errors import CheckpointMismatchError

FIELDS = {  # part → option → field of its shape
    "text_encoder": {
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "max_position_embeddings": "length",
        "vocab_size": "vocabulary",
        "hidden_act": "activation",
    },
    "unet": {
        "in_channels": "in_channels",
        "out_channels": "out_channels",
        "layers_per_block": "blocks",
        "cross_attention_dim": "context",
        "norm_num_groups": "groups",
        "use_linear_projection": "linear_projection",
    },
    "vae": {
        "layers_per_block": "blocks",
        "latent_channels": "latent_channels",
        "norm_num_groups": "groups",
        "scaling_factor": "scaling_factor",
    },
}
CLASSES = {  # part of a diffusers pipeline → library and class
    "scheduler": ("diffusers", "DDIMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "feature_extractor": (None, None),
    "image_encoder": (None, None),
    "safety_checker": (None, None),
}
SPECIAL_TOKENS = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
SCHEDULER = {  # that of Stable Diffusion 1 and 2
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def from_diffusers(configs):
    """Reads an architecture from the configuration files of a diffusers folder.

    Args:
        configs: A dict of dicts: the contents of the files, by part.

    Returns:
        An `Architecture`: one of `ARCHITECTURES` where it equals one in all but the name, else one named "custom".

    Raises:
        CheckpointMismatchError: If an option has a value that is not understood or contradicts another option; all of
            them are named.
    """
    pad_token = configs["tokenizer"].get("pad_token")
    pad_token = pad_token.get("content") if isinstance(pad_token, dict) else pad_token
    configs = {**configs, "tokenizer": {"pad_token": pad_token}}
    problems = [problem for part in OPTIONS for problem in _not_understood(part, configs[part])]
    if not problems:
        options = {part: _options(part, configs[part]) for part in OPTIONS}
        architecture = _architecture(options)
        problems = list(_contradictions(options, to_diffusers(architecture))) or list(_remainders(options))
        problems = problems or list(_too_large(architecture))
    if problems:
        raise CheckpointMismatchError(
            "\n  ".join(["The model has options that are not supported:", *problems])
            + "\nGive a model of the family Stable Diffusion 1 or 2. Received: "
            + f"_class_name={configs['model_index'].get('_class_name')!r:.200}",
            mismatched=problems,
        )
    same = [name for name, known in ARCHITECTURES.items() if known == replace(architecture, name=name)]
    name = configs["model_index"].get("_name_or_path")
    return replace(architecture, name=name if name in same else [*same, "custom"][0])


def to_diffusers(architecture):
    """Writes an architecture as the configuration files of a diffusers folder.

    Args:
        architecture: An `Architecture`.

    Returns:
        A dict of dicts: the contents of the files, by part. The scheduler is DDIM on Stable Diffusion's schedule.
    """
    unet, vae = architecture.diffusion_model, architecture.autoencoder
    shapes = {"text_encoder": architecture.text_encoder, "unet": unet, "vae": vae}
    text_encoder_config, unet_config, vae_config = (
        {option: getattr(shapes[part], field) for option, field in fields.items()} for part, fields in FIELDS.items()
    )
    attends = [level.depth > 0 for level in unet.levels]
    pad_tokens = {token: text for text, token in PAD_TOKENS.items()}
    return {
        "model_index": {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.0",  # its pipelines for inpainting refuse a folder without one
            "_name_or_path": architecture.name,
            **{part: list(names) for part, names in CLASSES.items()},
            "requires_safety_checker": False,
        },
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "dtype": "float32",  # else transformers 5 takes that of the weights, and diffusers float32 for the rest
            **text_encoder_config,
            "intermediate_size": architecture.text_encoder.hidden,
        },
        "unet": {
            "_class_name": "UNet2DConditionModel",
            **unet_config,
            "sample_size": architecture.image_size // vae.factor,
            "block_out_channels": [level.channels for level in unet.levels],
            "attention_head_dim": [level.heads for level in unet.levels],
            "transformer_layers_per_block": [level.depth or unet.middle_depth for level in unet.levels],
            "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
            "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            **vae_config,
            "sample_size": architecture.image_size,
            "block_out_channels": list(vae.channels),
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.channels),
        },
        "scheduler": {**SCHEDULER, "prediction_type": architecture.prediction_type},
        "tokenizer": {**SPECIAL_TOKENS, "pad_token": pad_tokens[architecture.text_encoder.pad_token]},
    }


def _not_understood(part, config):
    """Yields a line for every option that is not understood or whose value is not."""
    for option, value in config.items():
        if option in OPTIONS[part]:
            understood = OPTIONS[part][option][1]
        elif part in FIELDS and option not in WITHOUT_EFFECT and not option.startswith("_"):
            understood = (False,)
        else:
            continue
        values = value if isinstance(value, list) and option in PER_LEVEL else [value]
        if value is not None and not (0 < len(values) <= limits.LEVELS and all(x in understood for x in values)):
            allowed = " or ".join(map(repr, understood)) if isinstance(understood, tuple) else understood
            yield f"{part}: {option}={value!r:.200}, understood is only {allowed}"


def _contradictions(options, expected):
    """Yields a line for every option that is not what the architecture, made of some of them, asks for."""
    for part in OPTIONS:
        for option, value in _options(part, expected[part]).items():
            if option in expected[part] and options[part][option] != value:
                yield f"{part}: {option}={options[part][option]!r:.200}, but the other options ask for {value!r:.200}"


def _remainders(options):
    """Yields a line for all heads or groups that do not divide the channels."""
    text_encoder, unet, vae = (options[part] for part in FIELDS)
    for option, divisors, channels in (
        ("text_encoder: num_attention_heads", text_encoder["num_attention_heads"], [text_encoder["hidden_size"]]),
        ("unet: attention_head_dim", unet["attention_head_dim"], unet["block_out_channels"]),
        ("unet: norm_num_groups", unet["norm_num_groups"], unet["block_out_channels"]),
        ("vae: norm_num_groups", vae["norm_num_groups"], vae["block_out_channels"]),
    ):
        if np.any(np.mod(channels, divisors)):
            yield f"{option}={divisors!r:.200}, which does not divide {channels!r:.200}"


def _too_large(architecture):
    """Yields a line for every network of more tensors than any model has."""
    for name, (_, table) in NETWORKS.items():
        if any(islice(table(architecture), limits.NETWORK, None)):
            yield f"{name}: more than {limits.NETWORK} tensors"


def _options(part, config):
    """The options of a part, also those that the file leaves out; a list where there is a value per level."""
    options = {option: default for option, (default, _) in OPTIONS[part].items()}
    options |= {option: config[option] for option in options if config.get(option) is not None}
    for option in PER_LEVEL & options.keys():
        if not isinstance(options[option], list):
            options[option] = [options[option]] * len(options["block_out_channels"])
    return options


def _architecture(options):
    """The architecture with these options."""
    text_encoder, unet, vae = (
        {field: options[part][option] for option, field in fields.items()} for part, fields in FIELDS.items()
    )
    channels, heads = options["unet"]["block_out_channels"], options["unet"]["attention_head_dim"]
    attends = [kind.startswith("CrossAttn") for kind in options["unet"]["down_block_types"]]
    depths = map(mul, options["unet"]["transformer_layers_per_block"], attends)
    autoencoder = AutoencoderShape(**vae, channels=tuple(options["vae"]["block_out_channels"]))
    return Architecture(
        name="custom",
        text_encoder=TextEncoderShape(**text_encoder, pad_token=PAD_TOKENS[options["tokenizer"]["pad_token"]]),
        diffusion_model=DiffusionModelShape(**unet, levels=tuple(map(Level, channels, heads, depths))),
        autoencoder=autoencoder,
        prediction_type=options["scheduler"]["prediction_type"],
        image_size=options["unet"]["sample_size"] * autoencoder.factor,
    )
