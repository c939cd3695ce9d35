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
    "float32_from_int8": ("float32", "float32"),
    "float16_from_int8": ("float16", "float32"),
    "bfloat16_from_int8": ("bfloat16", "float32"),
}
INT8 = ("float32_from_int8", "float16_from_int8", "bfloat16_from_int8")  # those of them with kernels in int8
DTYPES = ("float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16", *STORED)  # policies to compute in

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
SIZE_IDS = {  # how many numbers describe the sizes of an image → what they are, each a pair but for the score
    6: ("original_size", "crop", "target_size"),
    5: ("original_size", "crop", "aesthetic_score"),
}


class Level(NamedTuple):
    """One resolution of the diffusion model.

    Args:
        channels: Width of the feature maps.
        heads: Attention heads of its spatial transformers.
        depth: Transformer blocks after each residual block; 0 for none. A tuple has one number for each block.
        depth_up: The same on the way up; None takes `depth`.
    """

    channels: int
    heads: int
    depth: int | tuple[int, ...]
    depth_up: int | tuple[int, ...] | None = None

    @property
    def attends(self):
        """Tells whether there are transformers on the way down."""
        return any(self.down(1))

    def down(self, blocks):
        """Returns the depth after each of the `blocks` residual blocks on the way down."""
        return (self.depth,) * blocks if isinstance(self.depth, int) else self.depth

    def up(self, blocks):
        """Returns the depth after each of the `blocks` residual blocks on the way up."""
        return Level(*self[:2], self.depth if self.depth_up is None else self.depth_up).down(blocks)


class Crossing(NamedTuple):
    """A cross-attention layer of the diffusion model.

    Args:
        transformer: The name of the spatial transformer it is in.
        block: The number of its transformer block.
        level: The number of its resolution, from the highest.
        channels: Its width.
    """

    transformer: str
    block: int
    level: int
    channels: int


@dataclass(frozen=True)
class VisionEncoderShape:
    """The CLIP vision model that reads image prompts: square images of `side` pixels in patches of `patch`."""

    width: int
    layers: int
    heads: int
    hidden: int
    projection: int
    activation: str = "gelu"
    patch: int = 14
    side: int = 224

    def get_config(self):
        """Returns the shape as JSON-serialisable data."""
        return asdict(self)


@dataclass(frozen=True)
class TextEncoderShape:
    """The CLIP text model: `layers` blocks of `width`, read out after the last one.

    `activation` is "quick_gelu" (OpenAI's CLIP) or "gelu" (OpenCLIP); `pad_token` fills a prompt up
    to `length` tokens. With `penultimate`, as in SDXL, the context is read out before the last block, and there is a
    pooled vector of the whole prompt, projected to `projection` numbers (0: not projected).
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: str = "quick_gelu"
    pad_token: int = 49407
    length: int = 77
    vocabulary: int = 49408
    penultimate: bool = False
    projection: int = 0

    @property
    def hidden(self):
        return 4 * self.width


@dataclass(frozen=True)
class DiffusionModelShape:
    """The UNet: `blocks` residual blocks a level on the way down and one more on the way up.

    `middle` holds the transformer blocks after each residual block between the two. `added` is the width of the vector
    that is added to the timestep's embedding, 0 for none; in it, each number of `SIZE_IDS` takes `id_width` places.
    `guidance_width` is the width of the embedding of the guidance, for a model that was distilled to follow a guidance
    without negative prompts, as LCM; 0 for others.
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
    middle: tuple[int, ...] = (1, 0)
    added: int = 0
    id_width: int = 256
    guidance_width: int = 0

    @property
    def frequencies(self):
        """Width of the sinusoidal timestep embedding."""
        return self.levels[0].channels

    @property
    def time_width(self):
        """Width of the timestep embedding after its two dense layers."""
        return 4 * self.levels[0].channels

    @property
    def residuals(self):
        """The number of tensors that a ControlNet adds: one for each skip connection, and one in the middle."""
        return (self.blocks + 1) * len(self.levels) + 1

    @property
    def crossings(self):
        """The cross-attention layers in diffusers' order: those on the way down, on the way up, in the middle."""
        last = len(self.levels) - 1
        ways = [(f"down_blocks_{i}", i, level.down(self.blocks)) for i, level in enumerate(self.levels)]
        ways += [(f"up_blocks_{last - i}", i, self.levels[i].up(self.blocks + 1)) for i in range(last, -1, -1)]
        ways += [("mid_block", last, self.middle)]
        return tuple(
            Crossing(f"{name}_attentions_{j}", block, i, self.levels[i].channels)
            for name, i, depths in ways
            for j, depth in enumerate(depths)
            for block in range(depth)
        )


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
    """A complete Stable Diffusion model: its shapes, what the network predicts, and the size it was trained at.

    SDXL has two text encoders, its refiner the second one alone. With `zero_negative`, no negative prompt means a
    context of zeros instead of the empty prompt.
    """

    name: str
    text_encoder: TextEncoderShape | None = TextEncoderShape()
    diffusion_model: DiffusionModelShape = DiffusionModelShape()
    autoencoder: AutoencoderShape = AutoencoderShape()
    prediction_type: str = "epsilon"
    image_size: int = 512
    text_encoder_2: TextEncoderShape | None = None
    zero_negative: bool = False

    @property
    def text_encoders(self):
        """The shapes of the text encoders there are, by name."""
        shapes = {name: getattr(self, name) for name in TEXT_ENCODERS}
        return {name: shape for name, shape in shapes.items() if shape}

    @property
    def networks(self):
        """The names of the networks there are."""
        return (*self.text_encoders, "diffusion_model", "decoder", "image_encoder")

    @property
    def size_ids(self):
        """The names in `SIZE_IDS` of the numbers in the added vector; () if there are none."""
        if not self.diffusion_model.added:
            return ()
        pooled = self.text_encoder_2.projection if self.text_encoder_2 else 0
        return SIZE_IDS.get((self.diffusion_model.added - pooled) / self.diffusion_model.id_width, ())

    def get_config(self):
        """Returns the architecture as JSON-serialisable data, for `from_config`."""
        return asdict(self)

    @classmethod
    def from_config(cls, config):
        """Rebuilds an architecture from what `get_config` returned."""
        unet, autoencoder = dict(config["diffusion_model"]), dict(config["autoencoder"])
        unet["levels"] = tuple(Level(*map(_hashable, level)) for level in unet["levels"])
        unet["middle"] = tuple(unet.get("middle", (1, 0)))
        autoencoder["channels"] = tuple(autoencoder["channels"])
        return cls(
            **{
                **config,
                **{name: config[name] and TextEncoderShape(**config[name]) for name in TEXT_ENCODERS & config.keys()},
                "diffusion_model": DiffusionModelShape(**unet),
                "autoencoder": AutoencoderShape(**autoencoder),
            }
        )


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value


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
CLIP_L = replace(SD14.text_encoder, penultimate=True)
OPEN_CLIP_G = TextEncoderShape(
    width=1280, layers=32, heads=20, activation="gelu", pad_token=0, penultimate=True, projection=1280
)
SDXL = Architecture(
    "sdxl",
    CLIP_L,
    DiffusionModelShape(
        levels=(Level(320, 5, 0), Level(640, 10, 2), Level(1280, 20, 10)),
        middle=(10, 0),
        context=768 + 1280,
        linear_projection=True,
        added=1280 + 6 * 256,
    ),
    AutoencoderShape(scaling_factor=0.13025),
    image_size=1024,
    text_encoder_2=OPEN_CLIP_G,
    zero_negative=True,
)
SDXL_REFINER = replace(
    SDXL,
    name="sdxl_refiner",
    text_encoder=None,
    diffusion_model=replace(
        SDXL.diffusion_model,
        levels=(Level(384, 6, 0), Level(768, 12, 4), Level(1536, 24, 4), Level(1536, 24, 0)),
        middle=(4, 0),
        context=1280,
        added=1280 + 5 * 256,
    ),
    zero_negative=False,
)


def _smaller(name, *levels):
    """SDXL with other depths, and one residual block in the middle."""
    shape = replace(SDXL.diffusion_model, levels=levels, middle=(0,))
    return replace(SDXL, name=name, diffusion_model=shape)


SSD_1B = _smaller("ssd_1b", Level(320, 5, 0), Level(640, 10, 2, (2, 1, 1)), Level(1280, 20, 4, (4, 4, 10)))
VEGA = _smaller("vega", Level(320, 5, 0), Level(640, 10, 1), Level(1280, 20, 2))
SDXL_TURBO = replace(SDXL, name="sdxl_turbo", image_size=512)
SDXL_INPAINTING = replace(SDXL, name="sdxl_inpainting", diffusion_model=replace(SDXL.diffusion_model, in_channels=9))
TINY_SD = replace(
    SD15,
    name="tiny_sd",
    diffusion_model=DiffusionModelShape(levels=SD14.diffusion_model.levels[:3], blocks=1, middle=()),
)
ARCHITECTURES = {
    a.name: a
    for a in (
        SD14,
        SD15,
        replace(SD15, name="lcm", diffusion_model=DiffusionModelShape(guidance_width=256)),
        replace(SD21_BASE, name="sd20_base"),
        replace(SD21, name="sd20"),
        SD21_BASE,
        SD21,
        SDXL,
        SDXL_REFINER,
        SDXL_INPAINTING,
        SDXL_TURBO,
        SSD_1B,
        VEGA,
        TINY_SD,
        EMOJI,
        TINY,
    )
}
VISION_ENCODERS = {  # those of the published IP-Adapters
    "ViT-H": VisionEncoderShape(width=1280, layers=32, heads=16, hidden=5120, projection=1024),
    "ViT-bigG": VisionEncoderShape(width=1664, layers=48, heads=16, hidden=8192, projection=1280),
}
