"""The options of diffusers' configuration files that are understood, as data.

An option that is neither in `OPTIONS` nor in `WITHOUT_EFFECT` may only be None or False, which is how diffusers
switches things off.
"""

from dataclasses import dataclass

from keras_diffusion.architectures import PREDICTION_TYPES


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


class Depths(Numbers):
    """Numbers of transformer blocks: one, or a list with one for each residual block."""

    def __contains__(self, value):
        return bool(value) and all(map(super().__contains__, value if isinstance(value, list) else [value]))


WIDTH, COUNT, DEPTHS = Numbers(1, 65536), Numbers(1, 64), Depths(1, 64)
PAD_TOKENS = {"<|endoftext|>": 49407, "!": 0}
MIDDLE, RESIDUAL_MIDDLE = "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"
NO_MIDDLE = "none"  # stands for null, which is a value of its own here

TEXT_ENCODER = {
    "hidden_size": (512, WIDTH),
    "intermediate_size": (2048, WIDTH),
    "num_hidden_layers": (12, COUNT),
    "num_attention_heads": (8, COUNT),
    "max_position_embeddings": (77, WIDTH),
    "vocab_size": (49408, Numbers(1, 2**20)),
    "hidden_act": ("quick_gelu", ("quick_gelu", "gelu")),
    "layer_norm_eps": (1e-5, (1e-5,)),
}
TOKENIZER = {"pad_token": ("<|endoftext|>", tuple(PAD_TOKENS))}
OPTIONS = {  # part → option → (value where the file has none, as in diffusers; values understood)
    "text_encoder": TEXT_ENCODER,
    "text_encoder_2": TEXT_ENCODER | {"projection_dim": (512, WIDTH)},
    "unet": {
        "sample_size": (64, WIDTH),
        "in_channels": (4, WIDTH),
        "out_channels": (4, WIDTH),
        "block_out_channels": ([320, 640, 1280, 1280], WIDTH),
        "down_block_types": (["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ("CrossAttnDownBlock2D", "DownBlock2D")),
        "up_block_types": (["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, ("CrossAttnUpBlock2D", "UpBlock2D")),
        "mid_block_type": (MIDDLE, (MIDDLE, RESIDUAL_MIDDLE, NO_MIDDLE)),
        "transformer_layers_per_block": (1, DEPTHS),
        "reverse_transformer_layers_per_block": (None, DEPTHS),
        "addition_embed_type": (None, ("text_time",)),
        "addition_time_embed_dim": (256, WIDTH),
        "projection_class_embeddings_input_dim": (0, WIDTH),
        "time_cond_proj_dim": (0, Numbers(4, 65536)),
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
    "tokenizer": TOKENIZER,
    "tokenizer_2": TOKENIZER,
}
PER_LEVEL = {  # options that may be lists
    *("block_out_channels", "down_block_types", "up_block_types"),
    *("attention_head_dim", "transformer_layers_per_block", "only_cross_attention"),
    "reverse_transformer_layers_per_block",
}
WITHOUT_EFFECT = {  # on what the networks here compute
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype"),
    *("attention_dropout", "dropout", "initializer_factor", "initializer_range", "projection_dim"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "addition_embed_type_num_heads"),
    *("sample_size", "upcast_attention", "force_upcast"),  # softmax and decoding are in float32 anyway
}
