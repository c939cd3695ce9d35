"""Translates the levels of a UNet: where diffusers' options put transformers, and of how many blocks."""

from keras_diffusion.architectures import Level
from keras_diffusion.checkpoints.layouts.diffusers_options import MIDDLE, NO_MIDDLE, RESIDUAL_MIDDLE

MIDDLES = {(True, False): MIDDLE, (False,): RESIDUAL_MIDDLE}  # which blocks in the middle attend → its class


def transformers(unet):
    """Writes where a `DiffusionModelShape` has transformers, as a dict of options."""
    down = [_listed(level.down(unet.blocks)) for level in unet.levels]
    up = [_listed(level.up(unet.blocks + 1)) for level in reversed(unet.levels)]
    middle = [1] * (len(down) - 1) + [next((depth for depth in unet.middle if depth), 1)]  # where no block attends
    options = {
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in down],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in up],
        "transformer_layers_per_block": [depth or other for depth, other in zip(down, middle, strict=True)],
    }
    if down != up[::-1]:
        options["reverse_transformer_layers_per_block"] = [depth or 1 for depth in up]
    if (kind := MIDDLES.get(tuple(map(bool, unet.middle)))) != MIDDLE:
        options["mid_block_type"] = kind
    return options


def with_depths(options):
    """Puts the depth of each block in place of the options that give it; 0 where there is no attention."""
    blocks, depths = options["layers_per_block"], options["transformer_layers_per_block"]
    up = options["reverse_transformer_layers_per_block"] or depths[::-1]
    middle = {MIDDLE: (_each(depths[-1], 1)[0], 0), RESIDUAL_MIDDLE: (0,), NO_MIDDLE: ()}
    return {
        **options,
        "transformer_layers_per_block": _depths(options["down_block_types"], depths, blocks),
        "reverse_transformer_layers_per_block": _depths(options["up_block_types"], up, blocks + 1),
        "mid_block_type": middle[options["mid_block_type"]],
    }


def levels(options):
    """Yields the `Level`s of a UNet with the options that `with_depths` returns."""
    down, up = options["transformer_layers_per_block"], options["reverse_transformer_layers_per_block"][::-1]
    for channels, heads, *both in zip(
        options["block_out_channels"], options["attention_head_dim"], down, up, strict=False
    ):
        depth, depth_up = (depths[0] if len(set(depths)) == 1 else depths for depths in both)
        yield Level(channels, heads, depth) if depth == depth_up else Level(channels, heads, depth, depth_up)


def _listed(depths):
    """The depths of the blocks of a level as diffusers writes them: one number if they are equal."""
    return depths[0] if len(set(depths)) == 1 else list(depths)


def _depths(kinds, depths, blocks):
    pairs = zip(kinds, depths, strict=False)
    return [_each(depth, blocks) if kind.startswith("CrossAttn") else (0,) * blocks for kind, depth in pairs]


def _each(depth, blocks):
    return tuple(depth) if isinstance(depth, list) else (depth,) * blocks
