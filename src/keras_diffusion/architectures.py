"""The shapes of the supported models, as data.

One frozen dataclass per network and one table. The configuration files of a diffusers folder describe the same shapes;
`checkpoints/layouts/diffusers_configs.py` translates in both directions.
"""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
STORED = {  # policies beside those of Keras → (what is computed in, what weights are stored in)
    "float32_from_float16": ("float32", "float16"),
    "float32_from_bfloat16": ("float32", "bfloat16"),
}
DTYPES = ("float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16", *STORED)  # policies to compute in


class Level(NamedTuple):
    """One resolution of the diffusion model.

    Args:
        channels: Width of the feature maps.
        heads: Attention heads of its spatial transformers.
        depth: Transformer blocks after each residual block; 0 for none.
    """

    channels: int
    heads: int
    depth: int


@dataclass(frozen=True)
class TextEncoderShape:
    """The CLIP text model: `layers` blocks of `width`, read out after the last one.

    `activation` is "quick_gelu" (OpenAI's CLIP) or "gelu" (OpenCLIP); `pad_token` fills a prompt up
    to `length` tokens.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: str = "quick_gelu"
    pad_token: int = 49407
    length: int = 77
    vocabulary: int = 49408

    @property
    def hidden(self):
        return 4 * self.width


@dataclass(frozen=True)
class DiffusionModelShape:
    """The UNet: `blocks` residual blocks a level on the way down and one more on the way up.

    `linear_projection` says only how checkpoint files store the transformers' projections
    (SD 2: matrices, SD 1: 1×1 convolutions); the computation is the same.
    """

    levels: tuple[Level, ...] = (Level(320, 8, 1), Level(640, 8, 1), Level(1280, 8, 1), Level(1280, 8, 0))
    blocks: int = 2
    context: int = 768
    groups: int = 32
    in_channels: int = 4
    out_channels: int = 4
    linear_projection: bool = False

    @property
    def middle_depth(self):
        """Transformer blocks between the way down and the way up."""
        return max(level.depth for level in self.levels)

    @property
    def frequencies(self):
        """Width of the sinusoidal timestep embedding."""
        return self.levels[0].channels

    @property
    def time_width(self):
        """Width of the timestep embedding after its two dense layers."""
        return 4 * self.levels[0].channels


@dataclass(frozen=True)
class AutoencoderShape:
    """The variational autoencoder: image encoder and decoder, one width per resolution."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    groups: int = 32
    latent_channels: int = 4
    scaling_factor: float = 0.18215

    @property
    def factor(self):
        """Pixels per latent position, along each side."""
        return 2 ** (len(self.channels) - 1)

    def latent_size(self, height, width):
        """Latent rows and columns of an image of `height` and `width` pixels; None stays None."""
        if any(side and side % self.factor for side in (height, width)):
            raise ValueError(f"Image sizes must be multiples of {self.factor}. Received: {height!r} × {width!r}")
        return tuple(side and side // self.factor for side in (height, width))


@dataclass(frozen=True)
class Architecture:
    """A complete Stable Diffusion model: three shapes, what the network predicts, and the size it was trained at."""

    name: str
    text_encoder: TextEncoderShape = TextEncoderShape()
    diffusion_model: DiffusionModelShape = DiffusionModelShape()
    autoencoder: AutoencoderShape = AutoencoderShape()
    prediction_type: str = "epsilon"
    image_size: int = 512

    def get_config(self):
        """Returns the architecture as JSON-serialisable data, for `from_config`."""
        return asdict(self)

    @classmethod
    def from_config(cls, config):
        """Rebuilds an architecture from what `get_config` returned."""
        unet, autoencoder = dict(config["diffusion_model"]), dict(config["autoencoder"])
        unet["levels"] = tuple(Level(*level) for level in unet["levels"])
        autoencoder["channels"] = tuple(autoencoder["channels"])
        return cls(
            **{
                **config,
                "text_encoder": TextEncoderShape(**config["text_encoder"]),
                "diffusion_model": DiffusionModelShape(**unet),
                "autoencoder": AutoencoderShape(**autoencoder),
            }
        )


SD14 = Architecture("sd14")
SD15 = replace(SD14, name="sd15")
SD21_BASE = Architecture(
    "sd21_base",
    TextEncoderShape(width=1024, layers=23, heads=16, activation="gelu", pad_token=0),
    DiffusionModelShape(
        levels=(Level(320, 5, 1), Level(640, 10, 1), Level(1280, 20, 1), Level(1280, 20, 0)),
        context=1024,
        linear_projection=True,
    ),
)
SD21 = replace(SD21_BASE, name="sd21", prediction_type="v_prediction", image_size=768)
EMOJI = Architecture(
    "emoji",
    TextEncoderShape(width=128, layers=2, heads=4),
    DiffusionModelShape(levels=(Level(64, 4, 0), Level(128, 4, 1), Level(128, 4, 1)), blocks=1, context=128),
    AutoencoderShape(channels=(24, 48, 96), blocks=1, groups=8, scaling_factor=1.0),
    prediction_type="v_prediction",
    image_size=64,
)
TINY = Architecture(
    "tiny",
    TextEncoderShape(width=16, layers=2, heads=2, vocabulary=49408),
    DiffusionModelShape(levels=(Level(16, 2, 1), Level(32, 2, 0)), blocks=1, context=16, groups=8),
    AutoencoderShape(channels=(8, 16, 16, 16), blocks=1, groups=4),
    image_size=64,
)
ARCHITECTURES = {
    a.name: a
    for a in (
        SD14,
        SD15,
        replace(SD21_BASE, name="sd20_base"),
        replace(SD21, name="sd20"),
        SD21_BASE,
        SD21,
        EMOJI,
        TINY,
    )
}
