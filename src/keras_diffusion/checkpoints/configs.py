"""Translates between an `Architecture` and the configuration files of a diffusers folder.

`OPTIONS` lists what is understood. An option that is neither there nor among those without effect may only be None or
False, which is how diffusers switches things off.
"""

from dataclasses import dataclass, replace
from operator import mul

from keras_diffusion.architectures import (
    ARCHITECTURES,
    PREDICTION_TYPES,
    Architecture,
    AutoencoderShape,
    DiffusionModelShape,
    Level,
    TextEncoderShape,
)
from keras_diffusion.errors import CheckpointMismatchError


@dataclass(frozen=True)
class Numbers:
    """The numbers from `low` to `high`, of one kind."""

    low: float
    high: float
    kinds: tuple = (int,)

    def __contains__(self, value):
        return isinstance(value, self.kinds) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self):
        return f"a number from {self.low} to {self.high}"


WIDTH, COUNT = Numbers(1, 65536), Numbers(1, 64)
PAD_TOKENS = {"<|endoftext|>": 49407, "!": 0}

OPTIONS = {  # part → option → (value where the file has none, as in diffusers; values understood)
    "text_encoder": {
        "hidden_size": (512, WIDTH),
        "intermediate_size": (2048, WIDTH),
        "num_hidden_layers": (12, COUNT),
        "num_attention_heads": (8, COUNT),
        "max_position_embeddings": (77, WIDTH),
        "vocab_size": (49408, Numbers(1, 2**20)),
        "hidden_act": ("quick_gelu", ("quick_gelu", "gelu")),
        "layer_norm_eps": (1e-5, (1e-5,)),
    },
    "unet": {
        "sample_size": (64, WIDTH),
        "in_channels": (4, WIDTH),
        "out_channels": (4, WIDTH),
        "block_out_channels": ([320, 640, 1280, 1280], WIDTH),
        "down_block_types": (["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ("CrossAttnDownBlock2D", "DownBlock2D")),
        "up_block_types": (["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, ("CrossAttnUpBlock2D", "UpBlock2D")),
        "mid_block_type": ("UNetMidBlock2DCrossAttn", ("UNetMidBlock2DCrossAttn",)),
        "transformer_layers_per_block": (1, COUNT),
        "attention_head_dim": (8, WIDTH),  # to diffusers this is the number of heads
        "layers_per_block": (2, COUNT),
        "cross_attention_dim": (1280, WIDTH),
        "norm_num_groups": (32, WIDTH),
        "use_linear_projection": (False, (False, True)),
        "norm_eps": (1e-5, (1e-5,)),
        "act_fn": ("silu", ("silu", "swish")),
        "attention_type": ("default", ("default",)),
        "time_embedding_type": ("positional", ("positional",)),
        "resnet_time_scale_shift": ("default", ("default",)),
        "flip_sin_to_cos": (True, (True,)),
        "freq_shift": (0, (0,)),
        "downsample_padding": (1, (1,)),
        "mid_block_scale_factor": (1, (1,)),
        "resnet_out_scale_factor": (1, (1,)),
        "conv_in_kernel": (3, (3,)),
        "conv_out_kernel": (3, (3,)),
    },
    "vae": {
        "block_out_channels": ([64], WIDTH),
        "down_block_types": (["DownEncoderBlock2D"], ("DownEncoderBlock2D",)),
        "up_block_types": (["UpDecoderBlock2D"], ("UpDecoderBlock2D",)),
        "layers_per_block": (1, COUNT),
        "latent_channels": (4, WIDTH),
        "norm_num_groups": (32, WIDTH),
        "scaling_factor": (0.18215, Numbers(1e-6, 1e6, (int, float))),
        "in_channels": (3, (3,)),
        "out_channels": (3, (3,)),
        "act_fn": ("silu", ("silu", "swish")),
        "mid_block_add_attention": (True, (True,)),
        "use_quant_conv": (True, (True,)),
        "use_post_quant_conv": (True, (True,)),
    },
    "scheduler": {"prediction_type": ("epsilon", PREDICTION_TYPES)},
    "tokenizer": {"pad_token": ("<|endoftext|>", tuple(PAD_TOKENS))},
}
PER_LEVEL = {  # options that may be lists
    *("block_out_channels", "down_block_types", "up_block_types"),
    *("attention_head_dim", "transformer_layers_per_block", "only_cross_attention"),
}
WITHOUT_EFFECT = {  # on what the networks here compute
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype"),
    *("attention_dropout", "dropout", "initializer_factor", "initializer_range", "projection_dim"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "addition_embed_type_num_heads"),
    *("sample_size", "upcast_attention", "force_upcast"),  # softmax and decoding are in float32 anyway
}

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
    problems = [problem for part in OPTIONS for problem in _not_understood(part, configs[part])]
    if not problems:
        options = {part: _options(part, configs[part]) for part in OPTIONS}
        architecture = _architecture(options)
        problems = [
            f"{part}: {option}={options[part][option]!r:.200}, but the other options ask for {value!r:.200}"
            for part, config in to_diffusers(architecture).items() if part in OPTIONS
            for option, value in _options(part, config).items() if option in config and value != options[part][option]
        ]
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
            "_name_or_path": architecture.name,
            **{part: list(names) for part, names in CLASSES.items()},
            "requires_safety_checker": False,
        },
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
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
    """Yields a line for every option whose value is not understood."""
    for option, value in config.items():
        if option in OPTIONS[part]:
            understood = OPTIONS[part][option][1]
        elif part in FIELDS and option not in WITHOUT_EFFECT and not option.startswith("_"):
            understood = (False,)
        else:
            continue
        values = value if isinstance(value, list) and option in PER_LEVEL else [value]
        if value is not None and not (values and all(value in understood for value in values)):
            allowed = " or ".join(map(repr, understood)) if isinstance(understood, tuple) else understood
            yield f"{part}: {option}={value!r:.200}, understood is only {allowed}"


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
