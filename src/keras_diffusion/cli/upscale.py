"""Enlarges the images of files."""

from pathlib import Path

from keras_diffusion.architectures import DTYPES
from keras_diffusion.cli.model import load_upscaler
from keras_diffusion.images import metadata
from keras_diffusion.images.metadata import FORMATS
from keras_diffusion.system.paths import existing_file, new_file
from keras_diffusion.terminal import show


def upscale(options):
    """Enlarge images by an upscaler, write them, and print their paths. What they say about themselves is kept."""
    from keras_diffusion import arguments
    from keras_diffusion.images.reading import read_images

    try:
        if options.output and len(options.images) > 1:
            raise ValueError("--output is for one image; several become NAME-upscaled")
        for path in (options.model, *options.images):
            existing_file(path)
        outputs = [options.output or path.with_stem(f"{path.stem}-upscaled") for path in options.images]
        for path in outputs:
            arguments.choice("suffix of the output", path.suffix.lower(), FORMATS)
        if options.scale is not None:
            arguments.number("--scale", options.scale, 1, 16)
    except (ValueError, OSError) as error:
        options.refuse(error)
    show(f"loading {options.model}")
    upscaler = load_upscaler(options.model, options.dtype)
    if options.tile is not None:
        upscaler.tile = options.tile
    for path, output in zip(options.images, outputs, strict=True):
        (image,) = read_images("image", path)
        image, settings = enlarge(image.astype("uint8"), upscaler, options.scale, metadata.read(path) or None)
        save(image, output, settings)
        print(output, flush=True)


def enlarge(image, upscaler, scale, settings):
    """Enlarges an image, and adds to its settings what A1111 does; None stays None."""
    (image,) = upscaler.upscale(image, scale, lambda tile, tiles: show(f"enlarging: tile {tile} of {tiles}"))
    show("")
    if settings is not None:
        scale = upscaler.scale if scale is None else scale
        settings = settings | {"Postprocess upscale by": f"{scale:g}", "Postprocess upscaler": upscaler.name}
    return image, settings


def save(image, path, settings):
    """Writes an image: at any moment, the file is the old one or the complete new one; a link stays a link."""
    with new_file(path, overwrite=True) as temporary:
        metadata.write(temporary, image, settings, FORMATS[path.suffix.lower()])


def add_arguments(command):
    add = command.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="a PNG, JPEG or WebP file")
    add("--model", type=Path, metavar="FILE", required=True, help="a .pth or .safetensors file, such as Real-ESRGAN's")
    add("--output", type=Path, metavar="FILE", help=".png, .jpg or .webp (default: NAME-upscaled, beside the image)")
    add("--scale", type=float, metavar="FACTOR", help="by how much, 1 to 16 (default: the upscaler's, such as 4)")
    add("--tile", type=int, metavar="N", help="largest side of a tile in pixels; fewer take less memory (default: 384)")
    add("--dtype", choices=DTYPES, metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: float32)")
