"""Derives text_encoder.npz, diffusion_model.npz, image_encoder.npz and decoder.npz from diffusers and transformers.

The references compute in float64, so that a fixture carries no rounding but its last.

    python tests/golden/make_networks.py             # writes the fixtures
    python tests/golden/make_networks.py --check     # compares them with what it would write

Needs diffusers, transformers and torch.
"""

import argparse
from functools import partial

import networks
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel


def text_encoder(architecture):
    shape = architecture.text_encoder
    config = CLIPTextConfig(
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        hidden_act=shape.activation,
        max_position_embeddings=shape.length,
        vocab_size=shape.vocabulary,
        layer_norm_eps=1e-5,
        attn_implementation="eager",
    )
    return CLIPTextModel(config)


def diffusion_model(architecture):
    shape = architecture.diffusion_model
    crossing = ["CrossAttn" * (level.depth > 0) for level in shape.levels]
    return UNet2DConditionModel(
        in_channels=shape.in_channels,
        out_channels=shape.out_channels,
        block_out_channels=[level.channels for level in shape.levels],
        attention_head_dim=[level.heads for level in shape.levels],  # heads, in spite of its name
        transformer_layers_per_block=[level.depth or shape.middle[0] for level in shape.levels],
        down_block_types=[f"{kind}DownBlock2D" for kind in crossing],
        up_block_types=[f"{kind}UpBlock2D" for kind in crossing[::-1]],
        layers_per_block=shape.blocks,
        cross_attention_dim=shape.context,
        norm_num_groups=shape.groups,
        use_linear_projection=shape.linear_projection,
    )


def autoencoder(architecture):
    shape = architecture.autoencoder
    return AutoencoderKL(
        block_out_channels=shape.channels,
        down_block_types=["DownEncoderBlock2D"] * len(shape.channels),
        up_block_types=["UpDecoderBlock2D"] * len(shape.channels),
        layers_per_block=shape.blocks,
        latent_channels=shape.latent_channels,
        norm_num_groups=shape.groups,
        scaling_factor=shape.scaling_factor,
    )


def encode_text(model, tokens, positions, clip_skip=0):
    """As diffusers' `encode_prompt` uses `clip_skip`."""
    output = model(input_ids=tokens.long(), position_ids=positions.long(), output_hidden_states=True)
    return getattr(model, "text_model", model).final_layer_norm(output.hidden_states[-1 - clip_skip])


def predict(model, latent, timesteps, context):
    return channels_last(model(channels_first(latent), timesteps, context).sample)


def encode_image(model, image):
    return channels_last(model.encode(channels_first(image)).latent_dist.mode()) * model.config.scaling_factor


def decode(model, latents):
    return channels_last(model.decode(channels_first(latents) / model.config.scaling_factor).sample)


def channels_first(x):
    return x.permute(0, 3, 1, 2)


def channels_last(x):
    return x.permute(0, 2, 3, 1)


REFERENCES = {  # network → (how it is built, how it is called)
    "text_encoder": (text_encoder, encode_text),
    "diffusion_model": (diffusion_model, predict),
    "image_encoder": (autoencoder, encode_image),
    "decoder": (autoencoder, decode),
}


def fill(model):
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(networks.weight(name.removeprefix("text_model."), tuple(tensor.shape))))


@torch.no_grad()
def outputs(case):
    """What the reference computes, one array for each call."""
    build, call = REFERENCES[case.network]
    model = build(case.architecture).eval()
    fill(model)
    model.double()
    for arguments in case.calls:
        yield call(model, *map(tensor, networks.inputs(case, arguments))).float().numpy()


def tensor(x):
    x = torch.from_numpy(x)
    return x.double() if x.is_floating_point() else x


def derive(network):
    return {f"{case.name}_{i}": output for case in networks.cases(network) for i, output in enumerate(outputs(case))}


def main(description, fixtures):
    """Writes fixtures, or compares them: other versions of torch may differ in the last digits.

    Args:
        description: What the script does.
        fixtures: A dict from the names of fixtures to functions that derive their arrays.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="compare with the fixtures instead of writing them")
    checking = parser.parse_args().check
    for name, derive in fixtures.items():
        derived, path = derive(), networks.HERE / f"{name}.npz"
        if not checking:
            np.savez_compressed(path, **derived)
        with np.load(path) as fixture:
            assert set(fixture) == set(derived)
            error = max(np.abs(fixture[key] - derived[key]).max() for key in derived)
        print(f"{name}: maximum difference {error:.1e}")
        assert error < 1e-5


if __name__ == "__main__":
    main(__doc__.splitlines()[0], {network: partial(derive, network) for network in REFERENCES})
