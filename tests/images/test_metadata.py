"""How a picture was made: what is written is read, by A1111's rules, and nothing that is read does harm."""

import io
import json
import re
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from keras_diffusion.images import metadata

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), "uint8")
FULL = metadata.settings(
    24,
    16,
    "0.1.0",
    prompt="a slice of pizza",
    negative_prompt="blue",
    num_steps=25,
    sampler="DPM++ 2M Karras",
    unconditional_guidance_scale=7.5,
    seed=2**63 - 1,
    prompt_weighting=True,
    long_prompts="chunk",
    clip_skip=1,
)
PROMPTS = [
    "",
    " ",
    "\n",
    "ünï 猫 🍕 👩‍👩‍👧",
    "two\nlines, and a: colon",
    ' "quoted" \\" ',
    "x\nNegative prompt: y",
    "Negative prompt: y",
    "Steps: 1, Sampler: x, Seed: 3",
    "x\nSteps: 1, Sampler: x, Seed: 3, Version: y",
    "nul\0 tab\t return\r bell\a end",
    "line\u2028separator \u202eleft",
    "a" * 10_000,
]


def a1111(text):
    """What A1111's reader makes of a text, by its documented format: later settings win."""
    setting = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    *lines, last = text.strip().split("\n")
    assert len(setting.findall(last)) >= 3
    start = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[start:]).removeprefix("Negative prompt:").strip()
    found = {"Prompt": "\n".join(lines[:start]), "Negative prompt": negative}
    for name, value in setting.findall(last):
        found[name] = json.loads(value) if value.startswith('"') else value
    return found


def test_the_text_is_a1111s():
    assert metadata.to_text(FULL) == (
        "a slice of pizza\n"
        "Negative prompt: blue\n"
        "Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 9223372036854775807, Clip skip: 2, "
        "Emphasis: Original, Long prompts: chunk, Size: 24x16, " + f"Version: {FULL['Version']}"
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_what_is_written_is_read(tmp_path, suffix, prompt):
    path = tmp_path / f"x.{suffix}"
    for settings in (FULL | {"Prompt": prompt}, FULL | {"Negative prompt": prompt, "Model": 'a, "b": c\nd '}):
        metadata.write(path, IMAGE, settings)
        assert metadata.read(path) == settings
        assert a1111(metadata.to_text(settings)) == settings


def test_pixels_stay():
    file = io.BytesIO()
    metadata.write(file, IMAGE, FULL, "PNG")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), IMAGE)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_nothing_is_written_unasked(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    metadata.write(path, IMAGE)
    assert metadata.read(path) == {}


def test_lone_surrogates_are_replaced():
    assert metadata.from_text(metadata.to_text(FULL | {"Prompt": "a\ud800b"}))["Prompt"] == "a\ufffdb"


def test_a_schedule_type_is_a_spacing_and_what_is_not_followed_is_listed():
    found = metadata.from_text(
        "a cat\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Hires upscale: 2, VAE: a.pt"
    )
    call = metadata.call_arguments(found)
    assert (call["sampler"], call["spacing"]) == ("dpmpp_2m", "karras")
    assert metadata.not_followed(found) == ["Hires upscale"]
    assert not metadata.not_followed(FULL | metadata.MODELS_OWN)
    with pytest.raises(ValueError, match=r"'Schedule type' cannot be followed. Received: 'Curly'"):
        metadata.call_arguments(found | {"Schedule type": "Curly"})


def test_arguments_are_those_that_were_given():
    assert metadata.call_arguments(FULL) == {
        "prompt": "a slice of pizza",
        "negative_prompt": "blue",
        "num_steps": 25,
        "sampler": "dpmpp_2m",
        "spacing": "karras",
        "unconditional_guidance_scale": 7.5,
        "seed": 2**63 - 1,
        "clip_skip": 1,
        "prompt_weighting": True,
        "long_prompts": "chunk",
        "img_width": 24,
        "img_height": 16,
    }
    plain = metadata.call_arguments(metadata.settings(8, 8, "0.1.0", prompt="x", seed=1, sampler=None))
    assert plain == {
        "prompt": "x",
        "negative_prompt": "",
        "seed": 1,
        "clip_skip": 0,
        "prompt_weighting": False,
        "long_prompts": "error",
        "img_width": 8,
        "img_height": 8,
    }


def test_the_models_own_sampler_is_not_chosen_again():
    assert "sampler" not in metadata.call_arguments(FULL | metadata.MODELS_OWN)


def test_what_a1111_writes_is_read_and_can_be_followed():
    text = (
        "girl with a (beret:1.2), ((eyes))\nsecond line\nNegative prompt: ugly, [blurry]\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, "
        'Lora hashes: "a: 1, b: 2", Version: v1.6.0'
    )
    found = metadata.from_text(text)
    assert found["Prompt"] == "girl with a (beret:1.2), ((eyes))\nsecond line"
    assert found["Negative prompt"] == "ugly, [blurry]"
    assert found["Lora hashes"] == "a: 1, b: 2"
    call = metadata.call_arguments(found)
    assert (call["img_width"], call["img_height"], call["num_steps"]) == (512, 768, 20)
    assert (call["prompt_weighting"], call["long_prompts"], call["clip_skip"]) == (True, "chunk", 0)


def test_a_prompt_alone_is_a_prompt():
    assert metadata.from_text("a cat, note: red\nand a dog") == {
        "Prompt": "a cat, note: red\nand a dog",
        "Negative prompt": "",
    }


@pytest.mark.parametrize(
    ("prefix", "encoding"),
    [(b"ASCII\0\0\0", "latin-1"), (b"UNICODE\0", "utf-16-be"), (b"UNICODE\0", "utf-16-le"), (b"\0" * 8, "utf-8")],
)
def test_comments_are_read_in_every_encoding(tmp_path, prefix, encoding):
    exif = Image.Exif()
    exif.get_ifd(metadata.EXIF_IFD)[metadata.USER_COMMENT] = prefix + metadata.to_text(FULL).encode(encoding)
    Image.fromarray(IMAGE).save(tmp_path / "x.jpg", exif=exif)
    assert metadata.read(tmp_path / "x.jpg") == FULL


TEXT = "a café, 猫\nSteps: 2, Sampler: Euler, CFG scale: 3, Seed: 1, Size: 64x64, Version: v1"
COMMENTS = {
    "BOM, little": b"UNICODE\0" + ("\ufeff" + TEXT).encode("utf-16-le"),
    "BOM, big": b"UNICODE\0" + ("\ufeff" + TEXT).encode("utf-16-be"),
    "Unicode, but UTF-8": b"UNICODE\0" + TEXT.encode(),
    "no prefix": TEXT.encode(),
    "no prefix, UTF-8's BOM": TEXT.encode("utf-8-sig"),
    "no prefix, UTF-16": TEXT.encode("utf-16-le"),
    "NULs behind": b"\0" * 8 + TEXT.encode() + b"\0\0\0",
    "NULs behind UTF-16": b"UNICODE\0" + TEXT.encode("utf-16-be") + b"\0\0",
    "ASCII, but UTF-8": b"ASCII\0\0\0" + TEXT.encode(),
}


@pytest.mark.parametrize("form", COMMENTS)
def test_the_text_decides_how_a_comment_is_read(tmp_path, form):
    exif = Image.Exif()
    exif.get_ifd(metadata.EXIF_IFD)[metadata.USER_COMMENT] = COMMENTS[form]
    Image.fromarray(IMAGE).save(tmp_path / "x.jpg", exif=exif)
    found = metadata.read(tmp_path / "x.jpg")
    assert (found["Prompt"], found["Seed"], found["Version"]) == ("a café, 猫", "1", "v1")


@pytest.mark.parametrize(
    "behind", ["Template: a", "Template: a\nNegative Template: b, c", "x: 1, y: 2, z: 3", "words, and more\nwords"]
)
def test_settings_are_the_last_line_that_holds_three_of_them(behind):
    text = f"a\nNegative prompt: dog\nSteps: 2, Sampler: Euler, CFG scale: 3, Seed: 1\n{behind}"
    found = metadata.from_text(text)
    assert (found["Prompt"], found["Negative prompt"], found["Seed"]) == ("a", "dog", "1")
    assert found.get("Template", "a") == "a"
    assert "Template" not in behind or "Template" in found


def test_settings_behind_the_settings_do_not_replace_them():
    text = "a\nSteps: 2, Sampler: Euler, CFG scale: 3, Seed: 1\nTemplate: x, Seed: 7"
    assert metadata.from_text(text)["Seed"] == "1"


def test_words_with_colons_are_a_prompt():
    text = "style: red, mood: dark, light: low\nand a dog"
    assert metadata.from_text(text)["Prompt"] == text


def test_a_seed_of_minus_one_is_none():
    assert "seed" not in metadata.call_arguments(FULL | {"Seed": "-1"})
    assert metadata.call_arguments(FULL | {"Seed": "0"})["seed"] == 0


@pytest.mark.parametrize("setting", ["Steps", "CFG scale", "Seed", "Size", "Clip skip", "Emphasis"])
@pytest.mark.parametrize("value", ["", "x", "1x", "9" * 5000, "\0"])
def test_settings_that_make_no_sense_are_named(setting, value):
    if setting == "CFG scale" and value.startswith("9"):
        pytest.skip("is infinite, which text_to_image refuses")
    with pytest.raises(ValueError, match=f"'{setting}' cannot be followed") as caught:
        metadata.call_arguments(FULL | {setting: value})
    assert len(str(caught.value)) < 400


def test_what_cannot_be_read_back_is_refused(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match="32000 characters"):
        metadata.write(path, IMAGE, FULL | {"Prompt": "🍕" * 16_000})
    for settings in (FULL | {"a:b": "c"}, {"Prompt": "x", "Seed": "1"}):
        with pytest.raises(ValueError, match="cannot be read back"):
            metadata.write(path, IMAGE, settings)
    with pytest.raises(ValueError, match="suffix"):
        metadata.write(tmp_path / "x.gif", IMAGE, FULL)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_the_longest_text_fits_every_format(tmp_path, suffix):
    room = metadata.limits.IMAGE_TEXT - len(metadata.to_text(FULL | {"Prompt": ""})) - 1
    settings = FULL | {"Prompt": "x" * room}
    metadata.write(tmp_path / f"x.{suffix}", IMAGE, settings)
    assert metadata.read(tmp_path / f"x.{suffix}") == settings


def png(text):
    file, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.fromarray(IMAGE).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def bomb():
    """A picture whose 20 KB of compressed text are 20 MB."""
    data = zlib.compress(b"a" * 20_000_000, 9)
    chunk = b"zTXt" + b"parameters\0\0" + data
    chunk = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    plain = png("x")
    return plain[:33] + chunk + plain[33:]


HOSTILE = {
    "empty": b"",
    "text": b"not a picture",
    "signature": b"\x89PNG\r\n\x1a\n",
    "long": png("a" * 70_000),
    "bomb": bomb(),
    "enormous": png("x").replace(IMAGE.shape[1].to_bytes(4, "big"), (2**31 - 1).to_bytes(4, "big"), 1),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(tmp_path, kind):
    path = tmp_path / "x.png"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(ValueError, match="Received: "):
        metadata.read(path)


@pytest.mark.parametrize("tiff", [b"", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_a_damaged_comment_says_nothing_or_is_refused(tmp_path, tiff):
    Image.fromarray(IMAGE).save(tmp_path / "x.jpg", exif=b"Exif\0\0" + tiff)
    try:
        assert metadata.read(tmp_path / "x.jpg") == {}
    except ValueError as error:
        assert "damaged" in str(error)  # noqa: PT017


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_no_damage_is_an_unexpected_error(tmp_path, suffix):
    path, random = tmp_path / f"x.{suffix}", np.random.default_rng(0)
    metadata.write(path, IMAGE, FULL)
    whole = path.read_bytes()
    for trial in range(300):
        data = bytearray(whole)
        if trial % 2:
            del data[random.integers(len(data)) :]
        for place in random.integers(len(data), size=trial % 7) if data else ():
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            assert all(isinstance(value, str) for value in metadata.read(path).values())
        except ValueError as error:
            assert "Received: " in str(error)  # noqa: PT017


def test_a_folder_or_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder and no file"):
        metadata.read(tmp_path)
    with pytest.raises(FileNotFoundError):
        metadata.read(tmp_path / "x.png")


ABSURD = ["a: ,", "a", 'a: "', 'ab:"\\",', ",", "\n", ": ", 'ab: "\\ud800", ']


@pytest.mark.parametrize("text", ABSURD)
def test_absurd_texts_are_read(text):
    assert isinstance(metadata.from_text(text * 16_000), dict)
