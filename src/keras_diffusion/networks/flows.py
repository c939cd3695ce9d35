"""What a diffusion model and a ControlNet have alike: the embedding of the timestep, the way down and the middle."""

from keras import layers

from keras_diffusion.networks.layers import Downsample, ResidualBlock, SpatialTransformer, dense


def embed_time(shape, timestep):
    """The sinusoidal embedding (b, frequencies) → what residual blocks take, (b, time width)."""
    time = dense(shape.time_width, "time_embedding_linear_1")(timestep)
    time = dense(shape.time_width, "time_embedding_linear_2")(layers.Activation("silu")(time))
    return layers.Activation("silu")(time)


def blocks(shape, time, context):
    """The two blocks of every flow, as functions of a feature map, their size and their name."""

    def residual(x, channels, name):
        return ResidualBlock(channels, shape.groups, name=name)(x, time)

    def attend(x, heads, depth, name):
        return SpatialTransformer(heads, depth, shape.groups, name=name)(x, context) if depth else x

    return residual, attend


def descend(shape, x, residual, attend):
    """The way down and the middle: the first feature map → every feature map for a skip connection, and the middle."""
    # Downsampling flow
    skips = [x]
    for i, (channels, heads, depth) in enumerate(shape.levels):
        for j in range(shape.blocks):
            x = residual(x, channels, f"down_blocks_{i}_resnets_{j}")
            x = attend(x, heads, depth, f"down_blocks_{i}_attentions_{j}")
            skips.append(x)
        if i < len(shape.levels) - 1:
            x = Downsample(channels, padding=(1, 1), name=f"down_blocks_{i}_downsamplers_0")(x)
            skips.append(x)

    # Middle flow
    x = residual(x, channels, "mid_block_resnets_0")
    x = attend(x, heads, shape.middle_depth, "mid_block_attentions_0")
    return skips, residual(x, channels, "mid_block_resnets_1")
