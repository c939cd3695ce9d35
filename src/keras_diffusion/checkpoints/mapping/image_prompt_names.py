"""The names of the tensors of vision encoders and of IP-Adapters, which read image prompts. Pure data, no Keras."""

from keras_diffusion.checkpoints.mapping.layer_tables import CLIP_LAYER, RESAMPLER_LAYER, Row, block, layer

VISION = "vision_model."
EMBEDDINGS = {"class_embedding": "class_embedding", "position_embedding": "position_embedding.weight"}
PROJECTIONS = {  # kind of IP-Adapter → the layers around those that repeat
    "plain": {"proj": "dense", "norm": "norm"},
    "full": {"proj.0": "dense", "proj.2": "dense", "proj.3": "norm"},
    "plus": {"latents": "parameter", "proj_in": "dense", "proj_out": "dense", "norm_out": "norm"},
}


def vision_encoder(shape):
    """Yields the rows of a vision encoder of a `VisionEncoderShape`, as transformers names them."""
    for ours, stored in EMBEDDINGS.items():
        yield Row(f"embeddings/{ours}", f"{VISION}embeddings.{stored}", "same", "", "same")
    yield from layer("embeddings.patch_embedding", "", "patches", prefix=VISION)
    yield from layer("pre_layrnorm", "", "norm", prefix=VISION)
    for i in range(shape.layers):
        yield from block(f"encoder.layers.{i}", "", CLIP_LAYER, prefix=VISION)
    yield from layer("post_layernorm", "", "norm", prefix=VISION)
    yield from layer("visual_projection", "", "projection")


def ip_adapter(shape):
    """Yields the rows of an IP-Adapter of an `IPAdapterShape`.

    Odd numbers are the cross-attention layers, in the order of its `crossings`; even ones would be self-attention.
    """
    for name, kind in PROJECTIONS[shape.kind].items():
        yield from layer(name, "", kind, prefix="image_proj.")
    for i in range(shape.depth):
        yield from block(f"layers.{i}", "", RESAMPLER_LAYER, prefix="image_proj.")
    for i in range(len(shape.crossings)):
        for part in ("to_k_ip", "to_v_ip"):
            yield from layer(f"{2 * i + 1}.{part}", "", "projection", prefix="ip_adapter.")
