"""Enlarges images with networks made for that."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np

from keras_diffusion import arguments
from keras_diffusion.architectures import DTYPES
from keras_diffusion.checkpoints.layouts.files import naming
from keras_diffusion.checkpoints.layouts.upscaler_files import UpscalerFile
from keras_diffusion.engines.engine import Engine
from keras_diffusion.errors import GenerationCancelled
from keras_diffusion.images import reading, tiles
from keras_diffusion.images.resizing import resize
from keras_diffusion.networks.keras_internals import no_leftovers
from keras_diffusion.networks.upscalers import NETWORKS

Callback = Callable[[int, int], Any] | None
LARGEST = 16  # scale
TILE = 384
REACH = 40  # pixels: networks that reach no further get all the context that they see, so that tiles change nothing
CONTEXT = 16  # for the others, whose far pixels matter little


class Upscaler:
    """Enlarges images with a network: Real-ESRGAN, ESRGAN or one of the compact Real-ESRGAN.

    Args:
        network: An `RRDBNet` or a `CompactNet`.
        name: What to call it in the settings of images.
        jit_compile: True compiles with XLA on TensorFlow and `torch.compile` on torch, which pays for many images.

    Attributes:
        network: The network; assign another one, or load weights into it, and the next call uses it.
        name: What it is called.
        tile: The largest side of a tile in pixels of the image, at least 128; smaller tiles take less memory.

    Example:
        upscaler = Upscaler.from_file("RealESRGAN_x4plus.pth")
        larger = upscaler.upscale("photo.png")
    """

    def __init__(self, network: keras.Model, name: str = "upscaler", jit_compile: bool = False) -> None:
        self.network, self.name, self.tile = network, name, TILE
        self._engine = Engine(arguments.boolean("jit_compile", jit_compile))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], dtype: str | None = None, jit_compile: bool = False) -> Self:
        """Loads the network of a file.

        Args:
            path: A .pth or .safetensors file of ESRGAN, Real-ESRGAN or a compact Real-ESRGAN. What it is, and how
                much it enlarges, is told by the shapes of its tensors.
            dtype: "float32", "mixed_float16" and so on, see `StableDiffusion`; None takes Keras' global policy.
            jit_compile: See the class.

        Returns:
            An `Upscaler`, called like the file.

        Raises:
            FileNotFoundError: If there is no file.
            CheckpointError: If it is damaged, or a network of another kind.
        """
        if dtype is not None:
            arguments.choice("dtype", dtype, DTYPES)
        file = UpscalerFile(path)
        with naming(path), no_leftovers():
            with keras.StatelessScope(initialize_variables=False):  # what does not fit takes no memory
                network = NETWORKS[type(file.architecture)](file.architecture, initialize=False, dtype=dtype)
            file.load(network)
        return cls(network, Path(path).stem, jit_compile)

    @property
    def scale(self) -> int:
        """The factor by which the network enlarges each side."""
        return self.network.architecture.scale

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, scale={self.scale})"

    def upscale(self, images: Any, scale: float | None = None, callback: Callback = None) -> np.ndarray:
        """Enlarges images.

        Args:
            images: A path to a PNG, JPEG or WebP file, a PIL image, an array (h, w, 3) or (b, h, w, 3), uint8 or floats
                in [0, 1], or a list of them.
            scale: By how much, 1 to 16; None takes the network's own. The network runs as often as needed, and what is
                then too large is scaled down.
            callback: Called as callback(tile, tiles) after every tile of an image, counted from 1. It cancels when it
                returns False.

        Returns:
            A uint8 array (b, height, width, 3).

        Raises:
            TypeError, ValueError: If an argument is wrong.
            NumericalError: If the network gives values that are not finite.
            GenerationCancelled: If the callback returned False.
        """
        pixels = reading.read_images("images", images)
        scale = self.scale if scale is None else arguments.number("scale", scale, 1, LARGEST)
        return self.enlarge_to(pixels, [round(scale * side) for side in pixels.shape[1:3]], callback)

    def enlarge_to(self, pixels: np.ndarray, size: Sequence[int], callback: Callback = None) -> np.ndarray:
        """Brings images to a size, see `upscale`.

        Args:
            pixels: (b, h, w, 3) in [0, 255].
            size: (height, width).
            callback: See `upscale`.

        Returns:
            A uint8 array (b, height, width, 3).
        """
        on_tile, larger = _cancelling(arguments.function("callback", callback)), []
        for image in pixels / np.float32(255):
            image = self._enlarge(image, on_tile)
            while self.scale > 1 and any(now < wanted for now, wanted in zip(image.shape[:2], size, strict=True)):
                image = self._enlarge(image, on_tile)
            image = 255 * image
            if image.shape[:2] != tuple(size):
                (image,) = resize(image[None], size)
            larger.append(image.round().clip(0, 255).astype("uint8"))
        return np.stack(larger)

    def _enlarge(self, image, on_tile):
        """Enlarges an image (h, w, 3) in [0, 1] once."""
        shape, tile = self.network.architecture, arguments.whole_number("tile", self.tile, 128, 2**16)
        context = shape.reach if shape.reach <= REACH else CONTEXT
        tile -= tile % shape.unshuffle

        def run(part):
            return self._engine.upscale(self.network, part[None])[0]

        return tiles.enlarge(image, run, shape.scale, tile, context, shape.unshuffle, on_tile).clip(0, 1)


def _cancelling(callback):
    """A function like `callback`, which raises an error where that returns False."""

    def on_tile(done, count):
        if callback and callback(done, count) is False:
            raise GenerationCancelled(f"The callback stopped the enlargement after tile {done} of {count}.")

    return on_tile


def read_upscale(value):
    """Reads the option `upscale`: an `Upscaler`, or a pair of one and a scale.

    Returns:
        A function of images, uint8 (b, h, w, 3), that returns them enlarged; or None.

    Raises:
        TypeError, ValueError: If it is anything else.
    """
    if value is None:
        return None
    upscaler, scale = value if isinstance(value, tuple | list) and len(value) == 2 else (value, None)
    if scale is not None:
        arguments.number("scale of upscale", scale, 1, LARGEST)
    return partial(require_upscaler("upscale", upscaler).upscale, scale=scale)


def require_upscaler(name, value):
    """Returns a value if it is an `Upscaler`."""
    if not isinstance(value, Upscaler):
        raise TypeError(
            f"`{name}` must be an Upscaler, such as Upscaler.from_file(path). Received: {name}={value!r:.200}"
        )
    return value
