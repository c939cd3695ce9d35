"""Names and orders the weights of networks as Keras stores them, KerasCV's and our own. Pure data, no Keras.

A `.weights.h5` names every part of a layer by the attribute that holds it, and the layers of a model by their classes,
counted: `layers/res_block_3/entry_flow/padded_conv2d/conv2d/vars/0`. An `.h5` of Keras 2 is read by order alone. Both
follow from the rows of `names.py` and the tables below, whose order is that in which KerasCV makes its layers.
"""

import re
from collections import Counter
from itertools import groupby
from typing import NamedTuple

from keras_diffusion.checkpoints.mapping import names


class Row(NamedTuple):
    """One tensor: the path of our variable, its name in a `.weights.h5`, and how it is stored."""

    path: str
    name: str
    layout: str


FLOW = (  # how the layers of a network follow each other, by the beginnings of their names
    "embeddings",
    "post_quant_conv",
    "time_embedding_cond_proj",
    "time_embedding_linear_1",
    "conv_in",
    "time_embedding_linear_2",
    "add_embedding",
    "encoder_layers",
    "down_blocks",
    "mid_block",
    "up_blocks",
    "final_layer_norm",
    "text_projection",
    "conv_norm_out",
    "conv_out",
    "quant_conv",
)
VARIABLES = {"kernel": 0, "embeddings": 0, "gamma": 0, "bias": 1, "beta": 1}  # our variable → its number in the layer

WHOLE = {"": ""}  # a layer without parts
CONV = {"": "conv2d", "conv": "conv2d"}  # KerasCV pads in a layer around the convolution
CLIP_EMBEDDING = {"token_embedding": "token_embedding", "position_embedding": "position_embedding"}
CLIP_ENCODER_LAYER = {
    "layer_norm1": "layer_norm1",
    "self_attn/to_q": "clip_attn/q_proj",
    "self_attn/to_k": "clip_attn/k_proj",
    "self_attn/to_v": "clip_attn/v_proj",
    "self_attn/to_out": "clip_attn/out_proj",
    "layer_norm2": "layer_norm2",
    "mlp_fc1": "fc1",
    "mlp_fc2": "fc2",
}
RES_BLOCK = {
    "norm1": "entry_flow/group_normalization",
    "conv1": "entry_flow/padded_conv2d/conv2d",
    "time_emb_proj": "embedding_flow/dense",
    "norm2": "exit_flow/group_normalization",
    "conv2": "exit_flow/padded_conv2d/conv2d",
    "conv_shortcut": "residual_projection/conv2d",
}
RESNET_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1/conv2d",
    "norm2": "norm2",
    "conv2": "conv2/conv2d",
    "conv_shortcut": "residual_projection/conv2d",
}
ATTENTION_BLOCK = {
    "group_norm": "norm",
    "attention/to_q": "q/conv2d",
    "attention/to_k": "k/conv2d",
    "attention/to_v": "v/conv2d",
    "attention/to_out": "proj_out/conv2d",
}
TRANSFORMER_BLOCK = {
    f"transformer_blocks_0/{ours}": f"transformer_block/{theirs}"
    for ours, theirs in {
        "norm1": "norm1",
        "attn1/to_q": "attn1/to_q",
        "attn1/to_k": "attn1/to_k",
        "attn1/to_v": "attn1/to_v",
        "attn1/to_out": "attn1/out_proj",
        "norm2": "norm2",
        "attn2/to_q": "attn2/to_q",
        "attn2/to_k": "attn2/to_k",
        "attn2/to_v": "attn2/to_v",
        "attn2/to_out": "attn2/out_proj",
        "norm3": "norm3",
        "ff/net_0_proj": "geglu/dense",
        "ff/net_2": "dense",
    }.items()
}
SPATIAL_TRANSFORMER = {  # by whether the projections are linear, as in Stable Diffusion 2
    linear: {"norm": "norm", "proj_in": f"proj1{inner}", **TRANSFORMER_BLOCK, "proj_out": f"proj2{inner}"}
    for linear, inner in ((True, ""), (False, "/conv2d"))
}


def keras_cv(network, architecture):
    """Lists the weights of KerasCV's network of this architecture, in the order of its layers.

    Source: keras_cv/src/models/stable_diffusion of KerasCV 0.9.

    Args:
        network: A name in `names.NETWORKS` that the architecture has.
        architecture: An `Architecture`. KerasCV has those of Stable Diffusion 1 and 2.

    Returns:
        A list of `Row`.
    """
    shared = (
        (r"conv_in/|conv_out/|\w*quant_conv/|\w+_downsamplers_0/", "padded_conv2d", CONV),
        (r"conv_norm_out/", "group_normalization", WHOLE),
    )
    autoencoder = (
        *shared,
        (r"\w+_resnets_\d+/", "resnet_block", RESNET_BLOCK),
        (r"\w+_attentions_\d+/", "attention_block", ATTENTION_BLOCK),
        (r"\w+_upsamplers_0/", "padded_conv2d", CONV),
    )
    linear = architecture.diffusion_model.linear_projection
    layers = {
        "text_encoder": (
            (r"embeddings_", "clip_embedding", CLIP_EMBEDDING),  # two layers of ours
            (r"encoder_layers_\d+/", "clip_encoder_layer", CLIP_ENCODER_LAYER),
            (r"final_layer_norm/", "layer_normalization", WHOLE),
            (r"text_projection/", "dense", WHOLE),
        ),
        "diffusion_model": (
            *shared,
            (r"time_embedding_cond_proj/|\w+_embedding_linear_\d/", "dense", WHOLE),
            (r"\w+_resnets_\d+/", "res_block", RES_BLOCK),
            (r"\w+_attentions_\d+/", "spatial_transformer", SPATIAL_TRANSFORMER[linear]),
            (r"\w+_upsamplers_0/", "upsample", {"conv": "conv/conv2d"}),
        ),
        "image_encoder": autoencoder,
        "decoder": autoencoder,
    }
    kind = "text_encoder" if network == "text_encoder_2" else network
    return list(_rows(network, architecture, layers[kind]))


def own(network, architecture):
    """Lists the weights of our network of this architecture, as Keras names them in a `.weights.h5`.

    Args:
        network: A name in `names.NETWORKS` that the architecture has.
        architecture: An `Architecture`.

    Returns:
        A list of `Row`.
    """
    attention = "spatial_transformer" if network == "diffusion_model" else "spatial_attention"
    layers = (
        (r"embeddings_\w+/", "embedding", {}),
        (r"encoder_layers_\d+/", "encoder_layer", {}),
        (r"final_layer_norm/", "layer_normalization", {}),
        (r"conv_in/|conv_out/", "conv2d", {}),
        (r"\w*quant_conv/|time_embedding_cond_proj/|\w+_embedding_linear_\d/|text_projection/", "dense", {}),
        (r"conv_norm_out/", "group_norm", {}),
        (r"\w+_downsamplers_0/", "downsample", {}),
        (r"\w+_upsamplers_0/", "upsample", {}),
        (r"\w+_resnets_\d+/", "residual_block", {}),
        (r"\w+_attentions_\d+/", attention, {}),
    )
    rows = _rows(network, architecture, layers)
    return [row._replace(name=re.sub(r"transformer_blocks_(\d+)", _attribute, row.name)) for row in rows]


def own_paths(network, architecture):
    """Lists the same weights as Keras names them in an `.h5` with a whole model of ours."""
    paths = (row.path for row in names.rows(network, architecture))
    return [Row(path, f"{path.partition('/')[0]}/{path}", "same") for path in paths]


def keras_cv_2(network, architecture):
    """Lists KerasCV's weights under the names that `keras_files.write` gives in a Keras 2 `.h5`: layer/layer/part."""
    return [row._replace(name=ordered(row)) for row in keras_cv(network, architecture)]


def ordered(row):
    """The name of a weight of KerasCV's in such a file."""
    _, layer, *inner, _, _ = row.name.split("/")
    return "/".join([layer, layer, *inner, f"{row.path.rpartition('/')[2]}:0"])


TABLES = (keras_cv, own, own_paths, keras_cv_2)


def detect_table(network, architecture, tensors):
    """Finds the table that names most tensors of a file.

    Args:
        network: A name in `names.NETWORKS`.
        architecture: An `Architecture`.
        tensors: The names of the tensors in the file.

    Returns:
        A list of `Row`; KerasCV's if no table names any of them.
    """
    tables = [table(network, architecture) for table in TABLES]
    return max(tables, key=lambda rows: sum(row.name in tensors for row in rows))


def _attribute(match):
    return f"blocks/{_counted('transformer_block', int(match[1]))}"


class _Place(NamedTuple):
    """Holds the place of a variable of ours in Keras' layers."""

    path: str  # of the variable
    stored_as: str  # the layout of its tensor in other files
    layer: str  # of ours
    kind: str  # the class of Keras' layer, in snake case
    part: str  # of Keras' layer
    order: int  # among the parts of the layer
    number: int  # of the variable in the part

    @classmethod
    def find(cls, row, layers):
        """Finds the place of a row of `names.py`."""
        layer, kind, parts = next((m[0], *rest) for pattern, *rest in layers if (m := re.match(pattern, row.path)))
        part, _, variable = row.path.removeprefix(layer).rpartition("/")
        order = list(parts).index(part) if part in parts else len(parts)
        return cls(row.path, row.layout, layer, kind, parts.get(part, part), order, VARIABLES[variable])

    def row(self, layer):
        """Names the variable, given the name of Keras' layer."""
        name = "/".join(filter(None, ("layers", layer, self.part, "vars", str(self.number))))
        window = self.part.endswith("conv2d") and self.number == VARIABLES["kernel"] and self.stored_as != "conv"
        return Row(self.path, name, "window" if window else "same")


def _rows(network, architecture, layers):
    """Renames the rows of `names.py`, layer by layer, by a table of patterns, classes and their parts."""
    places = [_Place.find(row, layers) for row in names.rows(network, architecture)]
    counts = Counter()
    for (_, kind), parts in groupby(sorted(places, key=_stage), key=lambda place: (place.layer, place.kind)):
        layer = _counted(kind, counts[kind])
        counts[kind] += 1
        yield from (place.row(layer) for place in sorted(parts, key=lambda place: place.order))


def _stage(place):
    """Tells when Keras makes a layer, as a place in `FLOW`."""
    return next(i for i, beginning in enumerate(FLOW) if place.path.startswith(beginning))


def _counted(name, number):
    """Numbers equal names as Keras does: without a number, then from 1."""
    return f"{name}_{number}" if number else name
