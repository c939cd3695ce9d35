"""Writes into an image's file how the image was made, as the text `parameters` that A1111 and others read.

    a slice of pizza
    Negative prompt: blue
    Steps: 25, Sampler: Euler a, CFG scale: 3.0, Seed: 7, Size: 64x64, Version: keras-diffusion 0.1.0

A PNG holds it in a text chunk, a JPEG or WebP in the EXIF tag UserComment. Format: `create_infotext` and
`parse_generation_parameters` of AUTOMATIC1111's stable-diffusion-webui 1.10. A prompt that these lines cannot carry,
such as one with a line "Negative prompt:", stands in quotes in the last one too, where its readers look last.
"""

import io
import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from keras_diffusion.images import other_tools
from keras_diffusion.images.png import refuse_many_texts
from keras_diffusion.system import limits
from keras_diffusion.system.paths import existing_file

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
NAMED_TEXTS = (0x010E, 0x010F, 0x0110)  # ImageDescription, Make, Model: ComfyUI writes "workflow:{…}", "prompt:{…}"
PREFIXES = (b"ASCII\0\0\0", b"UNICODE\0", b"JIS\0\0\0\0\0", b"\0" * 8)  # of a comment, whatever follows
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
LAST_LINES = 100  # among which the settings are
SEEDS, RANDOM = ("seed", "variation_seed"), -1  # a seed that says nothing
VARIED = ("variation_seed", "variation_strength")  # which mean nothing where the strength is 0

PROMPTS = ("Prompt", "Negative prompt")
EMPHASIS = {"None": False, "Original": True}
MODELS_OWN = {"Sampler settings": "model"}  # the sampler was not chosen, so it came with the model's own schedule
_SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def _sides(text):
    """Reads "WIDTHxHEIGHT": (height, width)."""
    width, height = map(int, text.split("x"))
    return height, width


class Field(NamedTuple):
    """A setting that is an argument of `text_to_image`."""

    argument: str
    write: Callable = str
    read: Callable = str


FIELDS = {
    "Prompt": Field("prompt"),
    "Negative prompt": Field("negative_prompt"),
    "Steps": Field("num_steps", read=int),
    "Sampler": Field("sampler"),
    "CFG scale": Field("unconditional_guidance_scale", read=float),
    "Seed": Field("seed", read=int),
    "Variation seed": Field("variation_seed", read=int),
    "Variation seed strength": Field("variation_strength", lambda strength: f"{strength:g}", float),
    "Seed resize from": Field("seed_resize_from", lambda sides: "{1}x{0}".format(*sides), _sides),
    "Clip skip": Field("clip_skip", lambda blocks: str(blocks + 1), lambda text: int(text) - 1),
    "Emphasis": Field("prompt_weighting", list(EMPHASIS).__getitem__, EMPHASIS.__getitem__),
    "Long prompts": Field("long_prompts"),
    "Hires upscale": Field("hires", read=float),
}
KNOWN = {*FIELDS, "Size", "Schedule type", "Version", "Model", "Model hash"} - {*PROMPTS}
ABOUT_MODEL = {"Prediction type", "Precision", "Sampler settings", "VAE", "VAE hash"}  # which is chosen otherwise
LANCZOS = "Lanczos"  # the upscaler that is a filter, the only one that can be followed without a file
HIRES = {"Hires upscale", "Hires upscaler", "Denoising strength"}
MEANT = {"Clip skip": "1", "Emphasis": "Original", "Long prompts": "chunk"}  # by A1111's silence
OURS = {"negative_prompt": "", "clip_skip": 0, "prompt_weighting": False, "long_prompts": "error"}


def settings(img_width, img_height, version, **arguments):
    """Names the arguments of a call of `text_to_image` as A1111 does.

    Args:
        img_width: Width of the picture in pixels.
        img_height: Its height.
        version: That of this package.
        **arguments: The other arguments that one picture has: of image i in a batch, the seed is seed + i. None counts
            as not given.

    Returns:
        A dict of str.
    """
    given = OURS | {name: value for name, value in arguments.items() if value is not None}
    if not given.get("variation_strength"):
        given = {name: value for name, value in given.items() if name not in VARIED}
    named = {name: field.write(given[field.argument]) for name, field in FIELDS.items() if field.argument in given}
    if "hires" in given:
        upscaler = given.get("hires_upscaler")
        named["Hires upscaler"] = upscaler.name if upscaler else LANCZOS
        named["Denoising strength"] = str(given.get("hires_strength", 0.5))
    if given.get("tiny_vae"):
        named["VAE Decoder"] = "TAESD"
    return named | {"Size": f"{img_width}x{img_height}", "Version": f"keras-diffusion {version}"}


def image_prompt(adapter, scale):
    """Names an image prompt as A1111's extension sd-webui-controlnet does, in settings named "ControlNet 0" and so on.

    Args:
        adapter: The name of the IP-Adapter.
        scale: A number.

    Returns:
        A str.
    """
    return f"Module: ip-adapter-auto, Model: {adapter}, Weight: {scale:g}"


def control(network, scale, guess_mode=False):
    """Names a ControlNet as A1111's extension does, see `image_prompt`.

    Args:
        network: The name of its file.
        scale: A number.
        guess_mode: Whether it guesses.

    Returns:
        A str.
    """
    return f"Module: none, Model: {network}, Weight: {scale:g}" + ", Guess Mode: True" * guess_mode


def read_controls(settings):
    """Reads the ControlNets that `control` named: a dict from settings to (network, scale, guess_mode)."""
    units = {name: _settings(value) for name, value in settings.items() if name.startswith("ControlNet ")}
    return {
        name: (unit["Model"], float(unit["Weight"]), "Guess Mode" in unit)
        for name, unit in units.items()
        if unit == _settings(control(unit.get("Model"), _number(unit.get("Weight")), "Guess Mode" in unit))
    }


def _number(text):
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def call_arguments(settings):
    """The way back: what to call `text_to_image` with for the same picture.

    Args:
        settings: What `read` returns. What A1111 does not write is what A1111 does, such as weighting prompts.

    Returns:
        A dict of keyword arguments.

    Raises:
        ValueError: If a setting is not one that the library has.
    """
    from keras_diffusion.sampling.names import from_a1111  # imports NumPy, which --help does without

    settings = {name: value for name, value in (MEANT | settings).items() if name not in not_followed(settings)}
    found = {}
    try:
        for name, field in FIELDS.items():
            if name in settings:
                found[field.argument] = field.read(settings[name])
        if "Size" in settings:
            name = "Size"
            found["img_width"], found["img_height"] = map(int, settings[name].split("x"))
        if "Hires upscale" in settings and "Denoising strength" in settings:
            name = "Denoising strength"
            found["hires_strength"] = float(settings[name])
        if "Sampler" in settings:
            name = "Sampler"
            found["sampler"], spacing = from_a1111(settings[name])
            if "Schedule type" in settings:
                name = "Schedule type"
                _, spacing = from_a1111(settings["Sampler"], settings[name])
            found |= {"spacing": spacing} if spacing else {}
    except (KeyError, ValueError) as error:
        raise ValueError(f"The setting {name!r} cannot be followed. Received: {settings[name]!r:.200}") from error
    found = {name: value for name, value in found.items() if name not in SEEDS or value != RANDOM}
    if not found.get("variation_strength"):
        found = {name: value for name, value in found.items() if name not in VARIED}
    if MODELS_OWN.items() <= settings.items():
        found.pop("sampler", None)
        found.pop("spacing", None)
    return found


def not_followed(settings):
    """Lists the settings that `call_arguments` does not follow, by name."""
    twice = HIRES if settings.get("Hires upscaler") == LANCZOS and "Hires steps" not in settings else set()
    known = KNOWN - HIRES | ABOUT_MODEL | twice | {*PROMPTS, "Made by"}
    return sorted(settings.keys() - known)


def to_text(settings):
    """Writes settings as A1111 does.

    Args:
        settings: A dict of str, the prompts under "Prompt" and "Negative prompt". Lone surrogates become U+FFFD, as
            they do in the tokenizer.

    Returns:
        A str, from which `from_text` reads the same.

    Raises:
        ValueError: If it is too long, or a name has characters that no reader takes.
    """
    settings = {name: _whole(value) for name, value in settings.items()}
    expected = dict.fromkeys(PROMPTS, "") | settings
    text = _compose(settings)
    read = from_text(text)
    if lost := [name for name in PROMPTS if read.get(name) != expected[name]]:
        text = _compose(settings, lost)
    if len(text.encode("utf-16-le")) // 2 > limits.IMAGE_TEXT:
        raise ValueError(
            f"A picture can hold {limits.IMAGE_TEXT} characters about how it was made. Shorten the prompt or save it "
            f"without. Received: {len(text)} characters"
        )
    if from_text(text) != expected:
        raise ValueError(f"These settings cannot be read back; see their names. Received: {settings!r:.200}")
    return text


def describe(settings):
    """Writes settings for people: as `to_text` does, but also those of other tools that it refuses."""
    try:
        return to_text(settings)
    except ValueError:
        return _compose({name: _whole(value) for name, value in settings.items()})


def from_text(text):
    """Reads what A1111, this library and many others write.

    Args:
        text: A str, whatever is in it.

    Returns:
        A dict of str: "Prompt", "Negative prompt" and all settings of the last line that holds three or more of
        those known, or else of the last line; also of lines behind it, such as a template.
    """
    lines, found = text.strip().split("\n"), {}
    read = [_settings(line) for line in lines[-LAST_LINES:]]
    places = [i - len(read) for i, settings in enumerate(read) if len(settings.keys() & KNOWN) >= 3]
    place = places[-1] if places else -1
    if places or len(read[-1]) >= 3 or "Version" in read[-1]:
        lines = lines[:place]
        for settings in read[place:]:
            found = settings | found
    prompts, name = {name: [] for name in PROMPTS}, "Prompt"
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            name = "Negative prompt"
            line = line.removeprefix("Negative prompt:").strip()
        prompts[name].append(line)
    return {name: "\n".join(lines).lstrip("\n") for name, lines in prompts.items()} | found


def _whole(value):
    return str(value).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _compose(settings, quoted=()):
    prompt, negative = (_CONTROL.sub(" ", settings.get(name, "")) for name in PROMPTS)
    last = [f"{name}: {_quote(value)}" for name, value in settings.items() if name not in PROMPTS]
    last += [f"{name}: {json.dumps(settings.get(name, ''), ensure_ascii=False)}" for name in quoted]
    return "\n".join(filter(None, [prompt, negative and f"Negative prompt: {negative}", ", ".join(last)]))


def _quote(value):
    plain = value.isprintable() and value == value.strip() and not set(value) & set(',:"')
    return value if plain else json.dumps(value, ensure_ascii=False)


def _settings(line):
    found, position = {}, 0
    while position < len(line):
        if match := _SETTING.match(line, position):
            name, value = match.groups()
            found[name] = _unquote(value)
            position = match.end()
        else:
            position = line.find(",", position) + 1 or len(line)
    return found


def _unquote(value):
    try:
        return json.loads(value) if value.startswith('"') else value
    except ValueError:
        return value


def write(path, image, settings=None, format=None, quality=95):
    """Saves an image, with how it was made if that is given.

    Args:
        path: Where to; a path or an open file.
        image: uint8 array (h, w, 3).
        settings: A dict of str, see `settings`; None writes nothing but the image.
        format: "PNG", "JPEG" or "WEBP"; None takes the one that the suffix of `path` says.
        quality: That of a JPEG or WebP, 0 to 100.

    Raises:
        ValueError: If the settings cannot be written, or there is no such format.
        OSError: If the file cannot be written.
    """
    from PIL import Image, PngImagePlugin

    format = format or FORMATS.get(Path(path).suffix.lower())
    if format not in FORMATS.values():
        raise ValueError(f"The file's suffix must be one of {', '.join(FORMATS)}. Received: path={str(path)!r:.200}")
    extras = {}
    if settings is not None and format == "PNG":
        extras["pnginfo"] = PngImagePlugin.PngInfo()
        extras["pnginfo"].add_text("parameters", to_text(settings))
    elif settings is not None:
        extras["exif"] = Image.Exif()
        extras["exif"].get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + to_text(settings).encode("utf-16-be")
    content = io.BytesIO()  # Pillow says nothing of a JPEG that it could not write to its end
    Image.fromarray(image).save(content, format, quality=quality, **extras)
    if hasattr(path, "write"):
        path.write(content.getvalue())
    else:
        Path(path).write_bytes(content.getvalue())


def read(path):
    """Reads how a picture was made; its pixels are not decoded.

    Args:
        path: A PNG, JPEG or WebP file, from anyone; or its bytes.

    Returns:
        A dict of str, see `from_text`; empty if the picture does not say. If a tool wrote it that does not write as
        A1111 does (ComfyUI, InvokeAI, NovelAI, Fooocus, SwarmUI), the tool stands under "Made by", and what cannot be
        followed under names of its own.

    Raises:
        ValueError: If the file is no such picture, is damaged, or holds absurdly much.
        OSError: If there is no such file.
    """
    from PIL import Image

    if isinstance(path, bytes):
        file, size, path = io.BytesIO(path), len(path), f"{len(path)} bytes"
    else:
        path = existing_file(path)
        file, size = path.open("rb"), path.stat().st_size
    with file, warnings.catch_warnings():
        if size > limits.IMAGE_FILE:
            raise ValueError(f"An image has at most {limits.IMAGE_FILE} bytes. Received: path={str(path)!r:.200}")
        warnings.simplefilter("ignore")
        try:
            refuse_many_texts(file)
            with Image.open(file, formats=sorted(set(FORMATS.values()))) as image:
                texts = _texts(image)
        except Exception as error:  # whatever a damaged file leads Pillow to
            raise ValueError(
                f"This is no PNG, JPEG or WebP, or a damaged one. Received: path={str(path)!r:.200}"
            ) from error
    if any(len(text) > limits.JSON and text.lstrip().startswith("{") for text in texts.values()):
        raise ValueError(f"The image's texts are longer than any recipe. Received: path={str(path)!r:.200}")
    if found := other_tools.settings(texts):
        return found
    text = texts.get("parameters", "")
    if len(text) > 2 * limits.IMAGE_TEXT:
        raise ValueError(f"The picture's parameters are too long. Received: {len(text)} characters")
    return from_text(text) if text else {}


def _texts(image):
    """The texts of an open image, by name: a PNG's, and of EXIF what A1111, ComfyUI and Fooocus write."""
    texts = {name: text for name, text in image.info.items() if isinstance(text, str)}
    exif = image.getexif()
    comment = _decode(exif.get_ifd(EXIF_IFD).get(USER_COMMENT))
    if isinstance(comment, str) and comment:
        texts.setdefault("parameters", comment)
    for tag in NAMED_TEXTS:
        name, colon, text = str(exif.get(tag, "")).partition(":")
        if colon:
            texts.setdefault(name.lower(), text.rstrip("\0"))
    return texts


def _decode(comment):
    """The text of an EXIF UserComment. Eight bytes are to name its encoding, but writers differ: the text decides."""
    if not isinstance(comment, bytes):
        return comment
    content = comment[8:] if comment.startswith(PREFIXES) else comment
    mark = next(filter(content.startswith, BYTE_ORDER_MARKS), None)
    if mark:
        encoding = BYTE_ORDER_MARKS[mark]
    elif _is_utf8(content):
        encoding = "utf-8"
    elif comment.startswith(b"UNICODE\0") or b"\0" in content.strip(b"\0"):
        encoding = "utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be"
    else:
        encoding = "latin-1"
    return content.decode(encoding, "replace").strip("\ufeff\0")


def _is_utf8(content):
    """Tells whether bytes are UTF-8 text; NULs are allowed only at the ends."""
    try:
        return "\0" not in content.decode().strip("\0")
    except UnicodeDecodeError:
        return False
