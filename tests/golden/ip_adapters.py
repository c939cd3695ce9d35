"""Small random IP-Adapters of every kind, and the image encoder that they read."""

import numpy as np

from . import networks

SIDE, PATCH, WIDTH, EMBEDDING = 28, 14, 24, 20  # of the image encoder
RESAMPLER_LAYER = {
    "0.norm1": (16,), "0.norm2": (16,), "0.to_q": (64, 16), "0.to_kv": (128, 16), "0.to_out": (16, 64),
    "1.0": (16,), "1.1": (64, 16), "1.3": (16, 64),
}  # fmt: skip
WITHOUT_BIAS = ("latents", "to_q", "to_kv", "to_out", "1.1", "1.3")


def shapes(kind, context):
    """The layers that turn features into tokens, and the shapes of their weights."""
    if kind == "plain":
        return {"proj": (4 * context, EMBEDDING), "norm": (context,)}
    if kind == "full":
        return {"proj.0": (WIDTH, WIDTH), "proj.2": (context, WIDTH), "proj.3": (context,)}
    ends = {"latents": (1, 3, 16), "proj_in": (16, WIDTH), "proj_out": (context, 16), "norm_out": (context,)}
    return ends | {f"layers.{i}.{name}": shape for i in range(4) for name, shape in RESAMPLER_LAYER.items()}


def tensors(kind, shape, seed=""):
    """The contents of an IP-Adapter's file for a `DiffusionModelShape`: a dict from names to float32 arrays."""
    found = {}
    for name, sides in shapes(kind, shape.context).items():
        found["image_proj." + (name if name == "latents" else f"{name}.weight")] = sides
        if not name.endswith(WITHOUT_BIAS):
            found[f"image_proj.{name}.bias"] = sides[:1]
    for i, crossing in enumerate(shape.crossings):
        for part in ("to_k_ip", "to_v_ip"):
            found[f"ip_adapter.{2 * i + 1}.{part}.weight"] = (crossing.channels, shape.context)
    return {name: networks.weight(f"{seed}{name}", sides) for name, sides in found.items()}


def nested(contents):
    """The same as diffusers takes it: two dicts of tensors of torch."""
    import torch

    parts = {"image_proj": {}, "ip_adapter": {}}
    for name, array in contents.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = torch.from_numpy(np.ascontiguousarray(array))
    return parts


def image_encoder(activation="gelu"):
    """A small `CLIPVisionModelWithProjection`."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=40,
        projection_dim=EMBEDDING,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act=activation,
    )
    model = CLIPVisionModelWithProjection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model
