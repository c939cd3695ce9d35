"""The translation between architectures and diffusers' configuration files."""

import json
from dataclasses import replace

import pytest

from keras_diffusion.architectures import ARCHITECTURES, SD14, SD15, SD21, SD21_BASE, Level
from keras_diffusion.checkpoints.layouts.diffusers_configs import from_diffusers, to_diffusers
from keras_diffusion.errors import CheckpointMismatchError

# What the published folders hold, less what `test_options_without_effect` lists.
PUBLISHED_SD1 = {
    "model_index": {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.2.2"},
    "text_encoder": {
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "vocab_size": 49408,
    },
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.2.2",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "scheduler": {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear"},
    "tokenizer": {"pad_token": "<|endoftext|>"},
}
PUBLISHED_SD2 = {
    **PUBLISHED_SD1,
    "text_encoder": {
        **PUBLISHED_SD1["text_encoder"],
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "projection_dim": 512,
    },
    "unet": {
        **PUBLISHED_SD1["unet"],
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "dual_cross_attention": False,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "upcast_attention": True,
        "use_linear_projection": True,
        "sample_size": 96,
    },
    "scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "tokenizer": {"pad_token": {"content": "!", "lstrip": False, "single_word": False}},
}


def changed(configs, part, **options):
    return {**configs, part: {**configs[part], **options}}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_round_trip(name):
    configs = json.loads(json.dumps(to_diffusers(ARCHITECTURES[name])))
    assert from_diffusers(configs) == ARCHITECTURES[name]


def test_reads_published_folders():
    assert from_diffusers(PUBLISHED_SD1) == SD14
    assert from_diffusers(PUBLISHED_SD2) == replace(SD21, name="sd20")  # the first of the two that are alike


def test_the_folder_may_say_which_of_equals_it_is():
    assert from_diffusers(changed(PUBLISHED_SD1, "model_index", _name_or_path="sd15")) == SD15
    assert from_diffusers(changed(PUBLISHED_SD1, "model_index", _name_or_path="sd21")) == SD14


def test_an_architecture_of_its_own_is_custom():
    architecture = from_diffusers(changed(PUBLISHED_SD1, "unet", in_channels=9))
    assert architecture == replace(SD14, name="custom", diffusion_model=architecture.diffusion_model)
    assert architecture.diffusion_model == replace(SD14.diffusion_model, in_channels=9)


def test_depth_per_level():
    unet = {
        "block_out_channels": [320, 640],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 3,
        "attention_head_dim": [5, 10],
    }
    architecture = from_diffusers(changed(PUBLISHED_SD1, "unet", **unet))
    assert architecture.diffusion_model.levels == (Level(320, 5, 0), Level(640, 10, 3))


@pytest.mark.parametrize(
    ("part", "options"),
    [
        (
            "unet",
            {"upcast_attention": True, "dropout": 0.1, "act_fn": "swish", "mid_block_type": "UNetMidBlock2DCrossAttn"},
        ),
        ("unet", {"some_future_option": None, "another": False, "only_cross_attention": [False] * 4}),
        ("vae", {"force_upcast": False, "sample_size": 256, "latents_mean": None, "scaling_factor": None}),
        ("text_encoder", {"projection_dim": 512, "dtype": "float16", "torch_dtype": "float16", "model_type": "x"}),
        ("text_encoder", {"attention_dropout": 0.1, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}),
        ("scheduler", {"clip_sample": True, "anything": "goes"}),
        ("tokenizer", {"unk_token": "!"}),
    ],
)
def test_options_without_effect(part, options):
    assert from_diffusers(changed(PUBLISHED_SD1, part, **options)) == SD14


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [
        ("unet", "addition_embed_type", "text_time"),
        ("unet", "class_embed_type", "projection"),
        ("unet", "time_cond_proj_dim", 3),
        ("unet", "encoder_hid_dim", 4096),
        ("unet", "some_future_option", True),
        ("unet", "center_input_sample", True),
        ("unet", "only_cross_attention", [True, False, False, False]),
        ("unet", "down_block_types", ["SimpleCrossAttnDownBlock2D"] * 4),
        ("unet", "norm_eps", 1e-6),
        ("unet", "act_fn", "gelu"),
        ("unet", "flip_sin_to_cos", False),
        ("unet", "freq_shift", 1),
        ("unet", "downsample_padding", 0),
        ("unet", "conv_in_kernel", 1),
        ("unet", "resnet_time_scale_shift", "scale_shift"),
        ("unet", "in_channels", True),
        ("unet", "in_channels", "4"),
        ("unet", "in_channels", 4.5),
        ("unet", "in_channels", 0),
        ("unet", "sample_size", [64, 64]),
        ("unet", "layers_per_block", 10**9),
        ("unet", "layers_per_block", [1, 2, 2, 2]),
        ("unet", "block_out_channels", []),
        ("unet", "block_out_channels", [320, "640", 1280, 1280]),
        ("unet", "block_out_channels", [10**12] * 4),
        ("unet", "cross_attention_dim", {}),
        ("unet", "attention_head_dim", [[8]] * 4),
        ("vae", "down_block_types", ["AttnDownEncoderBlock2D"] * 4),
        ("vae", "use_quant_conv", False),
        ("vae", "mid_block_add_attention", False),
        ("vae", "shift_factor", 0.1159),
        ("vae", "latents_mean", [0.0, 1.0]),
        ("vae", "scaling_factor", 0.0),
        ("vae", "scaling_factor", float("nan")),
        ("vae", "scaling_factor", True),
        ("text_encoder", "hidden_act", "relu"),
        ("text_encoder", "layer_norm_eps", 1e-12),
        ("text_encoder", "num_hidden_layers", -1),
        ("scheduler", "prediction_type", "flow_prediction"),
        ("tokenizer", "pad_token", "<pad>"),
        ("unet", "norm_num_groups", 33),
        ("unet", "attention_head_dim", 7),
        ("vae", "norm_num_groups", 7),
        ("text_encoder", "num_attention_heads", 7),
        ("text_encoder", "intermediate_size", 768),
    ],
)
def test_refuses_what_it_would_compute_differently(part, option, value):
    with pytest.raises(CheckpointMismatchError) as caught:
        from_diffusers(changed(PUBLISHED_SD1, part, **{option: value}))
    assert any(option in line for line in caught.value.mismatched)
    assert repr(value)[:100] in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [
        ("unet", "up_block_types", ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]),
        ("unet", "block_out_channels", [320, 640, 1280]),
        ("unet", "attention_head_dim", [8, 8, 8]),
        ("unet", "transformer_layers_per_block", [1, 1, 2]),
        ("vae", "block_out_channels", [128, 256]),
    ],
)
def test_refuses_lists_of_different_lengths(part, option, value):
    with pytest.raises(CheckpointMismatchError, match=r"but the other options ask for \["):
        from_diffusers(changed(PUBLISHED_SD1, part, **{option: value}))


@pytest.mark.parametrize(
    "options",
    [
        {"transformer_layers_per_block": [1, 1, [1, 1, 1], 1]},
        {"reverse_transformer_layers_per_block": [1, 1]},
        {"reverse_transformer_layers_per_block": [1, 1, [1, 0, 1], 1]},
        {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 2816},
    ],
)
def test_refuses_depths_and_added_vectors_that_do_not_fit(options):
    with pytest.raises(CheckpointMismatchError, match="not supported"):
        from_diffusers(changed(PUBLISHED_SD1, "unet", **options))


def test_reads_what_is_published_of_sdxl():
    ours = to_diffusers(ARCHITECTURES["ssd_1b"])
    published = changed(
        ours,
        "unet",
        transformer_layers_per_block=[1, [2, 2], [4, 4]],
        reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
        mid_block_type="UNetMidBlock2D",
    )
    assert from_diffusers(published) == from_diffusers(ours) == ARCHITECTURES["ssd_1b"]
    refiner = changed(to_diffusers(ARCHITECTURES["sdxl_refiner"]), "unet", transformer_layers_per_block=4)
    assert from_diffusers(refiner) == ARCHITECTURES["sdxl_refiner"]


def test_names_everything_at_once():
    configs = changed(PUBLISHED_SD1, "unet", addition_embed_type="image", freq_shift=1)
    configs = changed(configs, "vae", shift_factor=0.1)
    configs = changed(configs, "model_index", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(CheckpointMismatchError, match="StableDiffusionXLPipeline") as caught:
        from_diffusers(configs)
    assert len(caught.value.mismatched) == 3


def test_size_follows_from_the_autoencoder():
    small = changed(PUBLISHED_SD1, "unet", sample_size=16)
    assert from_diffusers(small).image_size == 128
    assert to_diffusers(SD21_BASE)["unet"]["sample_size"] == 64
