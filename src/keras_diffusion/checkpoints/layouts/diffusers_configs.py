"""Translates between an `Architecture` and the configuration files of a diffusers folder."""

from dataclasses import replace

from keras_diffusion.architectures import (
    ARCHITECTURES,
    SIZE_IDS,
    Architecture,
    AutoencoderShape,
    DiffusionModelShape,
    TextEncoderShape,
)
from keras_diffusion.checkpoints.layouts.diffusers_checks import disagreements, remainders, too_large
from keras_diffusion.checkpoints.layouts.diffusers_levels import levels, transformers, with_depths
from keras_diffusion.checkpoints.layouts.diffusers_options import (
    MIDDLE,
    NO_MIDDLE,
    OPTIONS,
    PAD_TOKENS,
    PER_LEVEL,
    WITHOUT_EFFECT,
)
from keras_diffusion.checkpoints.layouts.files import TOKENIZERS
from keras_diffusion.errors import CheckpointMismatchError
from keras_diffusion.system import limits

TEXT_ENCODER = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "max_position_embeddings": "length",
    "vocab_size": "vocabulary",
    "hidden_act": "activation",
}
FIELDS = {  # part → option → field of its shape
    "text_encoder": TEXT_ENCODER,
    "text_encoder_2": TEXT_ENCODER | {"projection_dim": "projection"},
    "unet": {
        "in_channels": "in_channels",
        "out_channels": "out_channels",
        "layers_per_block": "blocks",
        "cross_attention_dim": "context",
        "norm_num_groups": "groups",
        "use_linear_projection": "linear_projection",
        "addition_time_embed_dim": "id_width",
        "projection_class_embeddings_input_dim": "added",
        "time_cond_proj_dim": "guidance_width",
    },
    "vae": {
        "layers_per_block": "blocks",
        "latent_channels": "latent_channels",
        "norm_num_groups": "groups",
        "scaling_factor": "scaling_factor",
    },
}
OF_SOME = {  # fields that not every UNet has → the field that says whether it has them
    "added": "added",  # SDXL's
    "id_width": "added",
    "guidance_width": "guidance_width",  # LCM's
}
DEPENDENT = (  # options that are compared also where the architecture has their default
    *("transformer_layers_per_block", "reverse_transformer_layers_per_block", "mid_block_type"),
    "addition_embed_type",
)
CLASSES = {  # part of a diffusers pipeline → library and class
    "scheduler": ("diffusers", "DDIMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "feature_extractor": (None, None),
    "image_encoder": (None, None),
    "safety_checker": (None, None),
}
PIPELINES = {  # names of an architecture's size ids → class of its pipeline
    (): "StableDiffusionPipeline",
    SIZE_IDS[6]: "StableDiffusionXLPipeline",
    SIZE_IDS[5]: "StableDiffusionXLImg2ImgPipeline",
}
ZERO_NEGATIVE = "force_zeros_for_empty_prompt"  # in the model_index.json of SDXL
SPECIAL_TOKENS = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
SCHEDULER = {  # all of it but the class
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
    configs = {part: _plain(part, config) for part, config in configs.items()}
    parts = [part for part in OPTIONS if part in configs]
    problems = [problem for part in parts for problem in _not_understood(part, configs[part])]
    if not problems:
        options = {part: _options(part, configs[part]) for part in parts}
        architecture = _architecture(options, configs["model_index"].get(ZERO_NEGATIVE, True))
        problems = list(_contradictions(options, to_diffusers(architecture))) or list(remainders(options))
        problems = problems or list(too_large(architecture)) or list(disagreements(architecture))
    if problems:
        raise CheckpointMismatchError(
            "\n  ".join(["The model has options that are not supported:", *problems])
            + "\nGive a model of the family Stable Diffusion 1, 2 or XL. Received: "
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
        A dict of dicts: the contents of the files, by part. The scheduler is DDIM, that of SDXL Euler's, that of
        LCM its own, on Stable Diffusion's schedule.
    """
    unet, vae, encoders = architecture.diffusion_model, architecture.autoencoder, architecture.text_encoders
    pad_tokens = {token: text for text, token in PAD_TOKENS.items()}
    return {
        "model_index": _model_index(architecture),
        "unet": {
            "_class_name": "UNet2DConditionModel",
            **{
                option: getattr(unet, field)
                for option, field in FIELDS["unet"].items()
                if field not in OF_SOME or getattr(unet, OF_SOME[field])
            },
            **({"addition_embed_type": "text_time"} if unet.added else {}),
            "sample_size": architecture.image_size // vae.factor,
            "block_out_channels": [level.channels for level in unet.levels],
            "attention_head_dim": [level.heads for level in unet.levels],
            **transformers(unet),
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            **{option: getattr(vae, field) for option, field in FIELDS["vae"].items()},
            "sample_size": architecture.image_size,
            "block_out_channels": list(vae.channels),
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.channels),
        },
        "scheduler": {
            **SCHEDULER,
            "_class_name": _scheduler(architecture),
            "prediction_type": architecture.prediction_type,
        },
        **{
            name: {
                "architectures": [CLASSES[name][1]],
                "model_type": "clip_text_model",
                "dtype": "float32",  # else transformers 5 takes that of the weights, and diffusers float32 for the rest
                **{option: getattr(shape, field) for option, field in FIELDS[name].items()},
                "intermediate_size": shape.hidden,
            }
            for name, shape in encoders.items()
        },
        **{
            TOKENIZERS[name]: {**SPECIAL_TOKENS, "pad_token": pad_tokens[shape.pad_token]}
            for name, shape in encoders.items()
        },
    }


def _scheduler(architecture):
    if architecture.diffusion_model.guidance_width:
        return "LCMScheduler"
    return "EulerDiscreteScheduler" if architecture.text_encoder_2 else "DDIMScheduler"


def _model_index(architecture):
    encoders = architecture.text_encoders
    absent = {part for name in TOKENIZERS.keys() - encoders for part in (name, TOKENIZERS[name])}
    described = {part: [None, None] if part in absent else list(names) for part, names in CLASSES.items()}
    if not architecture.text_encoder_2:
        options = {"requires_safety_checker": False}
        described = {part: names for part, names in described.items() if part not in absent}
    else:
        options = {ZERO_NEGATIVE: architecture.zero_negative}
        described.pop("safety_checker")
        if "aesthetic_score" in architecture.size_ids:
            options["requires_aesthetics_score"] = True
    return {
        "_class_name": PIPELINES.get(architecture.size_ids, PIPELINES[()]),
        "_diffusers_version": "0.42.0",  # its pipelines for inpainting refuse a folder without one
        "_name_or_path": architecture.name,
        **described,
        **options,
    }


def _plain(part, config):
    """A configuration with a pad token as text, and with a name for the middle that is none."""
    if part in TOKENIZERS.values():
        pad_token = config.get("pad_token")
        return {"pad_token": pad_token.get("content") if isinstance(pad_token, dict) else pad_token}
    if part == "unet" and config.get("mid_block_type", MIDDLE) is None:
        return {**config, "mid_block_type": NO_MIDDLE}
    return config


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
    for part in options:
        expected_options = _options(part, _plain(part, expected[part]))
        for option, value in expected_options.items():
            if (option in expected[part] or option in DEPENDENT) and options[part][option] != value:
                yield f"{part}: {option}={options[part][option]!r:.200}, but the other options ask for {value!r:.200}"


def _options(part, config):
    """The options of a part, also those that the file leaves out; a list where there is a value per level."""
    options = {option: default for option, (default, _) in OPTIONS[part].items()}
    options |= {option: config[option] for option in options if config.get(option) is not None}
    for option in PER_LEVEL & options.keys():
        if not isinstance(options[option], list | None):
            options[option] = [options[option]] * len(options["block_out_channels"])
    return with_depths(options) if part == "unet" else options


def _architecture(options, zero_negative):
    """The architecture with these options."""
    shapes = {
        part: {field: options[part][option] for option, field in FIELDS[part].items()}
        for part in FIELDS.keys() & options
    }
    second = "text_encoder_2" in options
    if not shapes["unet"]["added"]:
        shapes["unet"].pop("id_width")
    encoders = {
        name: TextEncoderShape(
            **shapes[name], pad_token=PAD_TOKENS[options[tokenizer]["pad_token"]], penultimate=second
        )
        for name, tokenizer in TOKENIZERS.items()
        if name in options
    }
    autoencoder = AutoencoderShape(**shapes["vae"], channels=tuple(options["vae"]["block_out_channels"]))
    return Architecture(
        name="custom",
        **{"text_encoder": None, **encoders},
        diffusion_model=DiffusionModelShape(
            **shapes["unet"], levels=tuple(levels(options["unet"])), middle=options["unet"]["mid_block_type"]
        ),
        autoencoder=autoencoder,
        zero_negative=second and bool(zero_negative),
        prediction_type=options["scheduler"]["prediction_type"],
        image_size=options["unet"]["sample_size"] * autoencoder.factor,
    )
