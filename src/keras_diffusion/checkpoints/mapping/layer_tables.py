"""Tables of the names inside layers. Pure data, no Keras.

Every row of a table has a layer's name here, its name in diffusers, its name in the original (LDM) files, and the kind
of leaf it is, or both kinds if the two differ. A kind says how the stored tensor becomes our variable.
"""

from typing import NamedTuple

import numpy as np

RGB = 3  # channels of an image


class Row(NamedTuple):
    """One tensor: the path of our variable, and its name and layout in the files of diffusers and in LDM's.

    `ldm` may end in "[i]": the i-th third of that tensor, along its first axis.
    """

    path: str
    diffusers: str
    layout: str
    ldm: str
    ldm_layout: str


class Inner(NamedTuple):
    """A layer within others: its names, and its kinds, in the files of diffusers and of LDM (None: the same)."""

    ours: str
    diffusers: str
    ldm: str
    kind: str
    ldm_kind: str | None = None


class Leaf(NamedTuple):
    """A variable of a layer, the tensor that it is stored as, and its layout."""

    variable: str
    tensor: str
    layout: str


def _to_patches(kernel):
    """A convolution of patches (out, 3, p, p) as our matrix (p · p · 3, out)."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def _from_patches(matrix):
    side = int((len(matrix) / RGB) ** 0.5)
    return matrix.reshape(side, side, RGB, -1).transpose(3, 2, 0, 1)


LAYOUTS = {  # stored → ours, ours → stored
    "same": (lambda x: x, lambda x: x),
    "matrix": (np.transpose, np.transpose),  # (out, in) ↔ (in, out)
    "pointwise": (lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),  # (out, in, 1, 1) ↔ (in, out)
    "conv": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),  # (out, in, h, w) ↔ (h, w, in, out)
    "patches": (_to_patches, _from_patches),
    "window": (lambda x: x[0, 0], lambda x: x[None, None]),  # (1, 1, in, out) ↔ (in, out), Keras' 1×1 convolution
}
BIAS = Leaf("bias", "bias", "same")
KINDS = {  # kind of layer → its leaves
    "conv": (Leaf("kernel", "weight", "conv"), BIAS),
    "pointwise": (Leaf("kernel", "weight", "pointwise"), BIAS),
    "dense": (Leaf("kernel", "weight", "matrix"), BIAS),
    "projection": (Leaf("kernel", "weight", "matrix"),),
    "matrix": (Leaf("kernel", "", "same"),),
    "third 0": (Leaf("kernel", "in_proj_weight[0]", "matrix"), Leaf("bias", "in_proj_bias[0]", "same")),
    "third 1": (Leaf("kernel", "in_proj_weight[1]", "matrix"), Leaf("bias", "in_proj_bias[1]", "same")),
    "third 2": (Leaf("kernel", "in_proj_weight[2]", "matrix"), Leaf("bias", "in_proj_bias[2]", "same")),
    "norm": (Leaf("gamma", "weight", "same"), Leaf("beta", "bias", "same")),
    "embedding": (Leaf("embeddings", "weight", "same"),),
    "parameter": (Leaf("embeddings", "", "same"),),
    "patches": (Leaf("kernel", "weight", "patches"),),
}


def table(*rows):
    return tuple(Inner(*row) for row in rows)


def nested_rows(ours, diffusers, ldm, rows):
    """The rows of a table one level deeper."""
    return tuple(
        row._replace(ours=f"{ours}/{row.ours}", diffusers=f"{diffusers}.{row.diffusers}", ldm=f"{ldm}.{row.ldm}")
        for row in rows
    )


CLIP_LAYER = table(  # SD 1; LDM's names are transformers'
    ("layer_norm1", "layer_norm1", "layer_norm1", "norm"),
    ("self_attn/to_q", "self_attn.q_proj", "self_attn.q_proj", "dense"),
    ("self_attn/to_k", "self_attn.k_proj", "self_attn.k_proj", "dense"),
    ("self_attn/to_v", "self_attn.v_proj", "self_attn.v_proj", "dense"),
    ("self_attn/to_out", "self_attn.out_proj", "self_attn.out_proj", "dense"),
    ("layer_norm2", "layer_norm2", "layer_norm2", "norm"),
    ("mlp_fc1", "mlp.fc1", "mlp.fc1", "dense"),
    ("mlp_fc2", "mlp.fc2", "mlp.fc2", "dense"),
)
OPEN_CLIP_LAYER = table(  # SD 2
    ("layer_norm1", "layer_norm1", "ln_1", "norm"),
    ("self_attn/to_q", "self_attn.q_proj", "attn", "dense", "third 0"),
    ("self_attn/to_k", "self_attn.k_proj", "attn", "dense", "third 1"),
    ("self_attn/to_v", "self_attn.v_proj", "attn", "dense", "third 2"),
    ("self_attn/to_out", "self_attn.out_proj", "attn.out_proj", "dense"),
    ("layer_norm2", "layer_norm2", "ln_2", "norm"),
    ("mlp_fc1", "mlp.fc1", "mlp.c_fc", "dense"),
    ("mlp_fc2", "mlp.fc2", "mlp.c_proj", "dense"),
)
ATTENTION = table(
    ("to_q", "to_q", "to_q", "projection"),
    ("to_k", "to_k", "to_k", "projection"),
    ("to_v", "to_v", "to_v", "projection"),
    ("to_out", "to_out.0", "to_out.0", "dense"),
)
TRANSFORMER_BLOCK = table(
    ("norm1", "norm1", "norm1", "norm"),
    *nested_rows("attn1", "attn1", "attn1", ATTENTION),
    ("norm2", "norm2", "norm2", "norm"),
    *nested_rows("attn2", "attn2", "attn2", ATTENTION),
    ("norm3", "norm3", "norm3", "norm"),
    ("ff/net_0_proj", "ff.net.0.proj", "ff.net.0.proj", "dense"),
    ("ff/net_2", "ff.net.2", "ff.net.2", "dense"),
)
RESIDUAL_BLOCK = table(  # of the UNet
    ("norm1", "norm1", "in_layers.0", "norm"),
    ("conv1", "conv1", "in_layers.2", "conv"),
    ("norm2", "norm2", "out_layers.0", "norm"),
    ("conv2", "conv2", "out_layers.3", "conv"),
    ("time_emb_proj", "time_emb_proj", "emb_layers.1", "dense"),
)
SHORTCUT = table(("conv_shortcut", "conv_shortcut", "skip_connection", "pointwise"))
DOWNSAMPLE = table(("conv", "conv", "op", "conv"))
UPSAMPLE = table(("conv", "conv", "conv", "conv"))
VAE_RESIDUAL_BLOCK = table(
    ("norm1", "norm1", "norm1", "norm"),
    ("conv1", "conv1", "conv1", "conv"),
    ("norm2", "norm2", "norm2", "norm"),
    ("conv2", "conv2", "conv2", "conv"),
)
VAE_SHORTCUT = table(("conv_shortcut", "conv_shortcut", "nin_shortcut", "pointwise"))
VAE_ATTENTION = table(
    ("group_norm", "group_norm", "norm", "norm"),
    ("attention/to_q", "to_q", "q", "dense", "pointwise"),
    ("attention/to_k", "to_k", "k", "dense", "pointwise"),
    ("attention/to_v", "to_v", "v", "dense", "pointwise"),
    ("attention/to_out", "to_out.0", "proj_out", "dense", "pointwise"),
)
VAE_RESAMPLE = table(("conv", "conv", "conv", "conv"))
RESAMPLER_LAYER = table(  # of the IP-Adapter; files of one kind alone
    ("norm1", "0.norm1", "", "norm"),
    ("norm2", "0.norm2", "", "norm"),
    ("to_q", "0.to_q", "", "projection"),
    ("to_kv", "0.to_kv", "", "projection"),
    ("to_out", "0.to_out", "", "projection"),
    ("ff_0", "1.0", "", "norm"),
    ("ff_1", "1.1", "", "projection"),
    ("ff_3", "1.3", "", "projection"),
)


def layer(name, ldm, kind, ldm_kind=None, prefix=""):
    """The rows of one layer at the top of a network."""
    return block(name, ldm, table(("", "", "", kind, ldm_kind)), prefix)


def block(name, ldm, layers, prefix=""):
    """The rows of a layer made of layers."""
    for inner in layers:
        for leaf, ldm_leaf in zip(KINDS[inner.kind], KINDS[inner.ldm_kind or inner.kind], strict=True):
            yield Row(
                join_names("/", name.replace(".", "_"), inner.ours, leaf.variable),
                prefix + join_names(".", name, inner.diffusers, leaf.tensor),
                leaf.layout,
                prefix + join_names(".", ldm, inner.ldm, ldm_leaf.tensor),
                ldm_leaf.layout,
            )


def join_names(separator, *names):
    return separator.join(filter(None, names))
