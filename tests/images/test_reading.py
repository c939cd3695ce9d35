"""Pictures that people pass in: every kind becomes the same numbers, every wrong one a clear error."""

import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from keras_diffusion.images import reading as images
from keras_diffusion.images import resizing

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), "uint8")


@pytest.mark.parametrize(
    "value",
    [
        PIXELS,
        PIXELS[None],
        PIXELS / np.float32(255),
        PIXELS / 255.0,
        Image.fromarray(PIXELS),
        [PIXELS],
        [Image.fromarray(PIXELS)],
    ],
    ids=["uint8", "batch", "float32", "float64", "PIL", "list", "list of PIL"],
)
def test_every_kind_of_picture_becomes_the_same_numbers(value):
    read = images.read_images("image", value)

    assert read.dtype == "float32"
    np.testing.assert_allclose(read, PIXELS[None].astype("float32"), rtol=0, atol=1e-4)


def test_bytes_stay_exact():
    np.testing.assert_array_equal(images.read_images("image", PIXELS), PIXELS[None])


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_reads_files(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(PIXELS).save(path, lossless=True)

    np.testing.assert_array_equal(images.read_images("image", path), PIXELS[None])
    np.testing.assert_array_equal(images.read_images("image", [str(path), PIXELS]), np.stack([PIXELS, PIXELS]))


def test_turns_a_photograph_as_its_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)

    np.testing.assert_array_equal(images.read_images("image", tmp_path / "a.png")[0], np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 255, (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("LA", (0, 128), (127, 127, 127)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I", 65535, (255, 255, 255)),
        ("I", 252, (252, 252, 252)),
        ("I;16", 252, (1, 1, 1)),
    ],
)
def test_other_modes_become_rgb(mode, pixel, expected):
    read = images.read_images("image", Image.new(mode, (2, 2), pixel))
    np.testing.assert_array_equal(read, np.broadcast_to(expected, (1, 2, 2, 3)))


def test_a_palette_with_a_transparent_colour_lies_on_white():
    palette = Image.fromarray(PIXELS).convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    np.testing.assert_array_equal(images.read_images("image", palette)[0, 0, 0], (255, 255, 255))


def test_resize_keeps_a_flat_colour_and_the_range():
    flat = np.full((1, 7, 5, 3), (10.0, 99.5, 250.0), "float32")
    np.testing.assert_allclose(
        images.read_images("image", flat / 255, (14, 3)), np.resize(flat, (1, 14, 3, 3)), rtol=1e-5
    )
    assert resizing.resize(PIXELS[None], (12, 8)).shape == (1, 12, 8, 3)


def bomb(path):
    header = np.array([70000, 70000], ">u4").tobytes()
    good = path.with_name("good.png")
    Image.fromarray(PIXELS).save(good)
    data = bytearray(good.read_bytes())
    data[16:24] = header
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


def hidden_bomb(kind, start):
    """A picture with 64 MiB of zeros in a chunk that is no pixels."""

    def write(path):
        chunk = kind + start + zlib.compress(bytes(2**26))
        Image.fromarray(PIXELS).save(path)
        data = path.read_bytes()
        size, check = len(chunk) - 4, zlib.crc32(chunk)
        path.write_bytes(data[:33] + size.to_bytes(4, "big") + chunk + check.to_bytes(4, "big") + data[33:])

    return write


def cut(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")).save(path)
    path.write_bytes(path.read_bytes()[:900])


FILES = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "must be a PNG"),
    "empty": (lambda path: path.write_bytes(b""), "must be a PNG"),
    "text": (lambda path: path.write_text("<html>not found</html>"), "must be a PNG"),
    "a GIF": (lambda path: Image.fromarray(PIXELS).save(path, "GIF"), "must be a PNG"),
    "a TIFF": (lambda path: Image.fromarray(PIXELS).save(path, "TIFF"), "must be a PNG"),
    "cut short": (cut, "must be a PNG"),
    "a bomb": (bomb, "must be a"),
    "a bomb of text": (hidden_bomb(b"zTXt", b"parameters\0\0"), "must be a"),
    "a bomb of Unicode": (hidden_bomb(b"iTXt", b"parameters\0\1\0\0\0"), "must be a"),
    "a bomb of a profile": (hidden_bomb(b"iCCP", b"colours\0\0"), "must be a"),
    "huge": (lambda path: Image.new("1", (5000, 2)).save(path, "PNG"), "at most 4096 pixels"),
}


@pytest.mark.parametrize("kind", FILES)
def test_refuses_bad_files(tmp_path, kind):
    write, message = FILES[kind]
    write(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message) as error:
        images.read_images("image", tmp_path / "a.png")
    assert "`image`" in str(error.value)


VALUES = {
    "a channel first": (PIXELS.transpose(2, 0, 1), ValueError, r"shape \(3, 6, 4\)"),
    "four channels": (np.zeros((4, 4, 4), "uint8"), ValueError, r"\(h, w, 3\)"),
    "no pixels": (np.zeros((0, 4, 3), "uint8"), ValueError, "shape"),
    "five axes": (np.zeros((1, 1, 4, 4, 3), "uint8"), ValueError, "shape"),
    "floats to 255": (PIXELS.astype("float32"), ValueError, "floats from 0 to 1"),
    "floats from -1": (PIXELS / 127.5 - 1, ValueError, "an array from -0.99"),
    "NaN": (np.full((4, 4, 3), np.nan), ValueError, "floats from 0 to 1"),
    "int64": (PIXELS.astype("int64"), ValueError, "dtype int64"),
    "16 bits": (PIXELS.astype("uint16"), ValueError, "dtype uint16"),
    "bool": (PIXELS > 9, ValueError, "dtype bool"),
    "text array": (np.full((4, 4, 3), "a"), ValueError, "dtype"),
    "None": (None, TypeError, "Received: image=None"),
    "a number": (3, TypeError, "Received: image=3"),
    "bytes": (b"\x89PNG", TypeError, "path to a PNG"),
    "an empty list": ([], ValueError, "Received"),
    "a list with None": ([PIXELS, None], TypeError, "None"),
    "two sizes": ([PIXELS, PIXELS[:4]], ValueError, "6×4, 4×4"),
    "PIL negative": (Image.new("I", (4, 4), -3), ValueError, "from 0 to 255.*-3 to -3"),
    "PIL 32 bits": (Image.new("I", (4, 4), 70000), ValueError, "70000"),
    "PIL floats": (Image.new("F", (4, 4)), ValueError, "pass floats as an array"),
    "too wide": (np.zeros((1, 4097, 3), "uint8"), ValueError, "1×4097"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_refuses_bad_values(kind):
    value, error, message = VALUES[kind]
    with pytest.raises(error, match=message):
        images.read_images("image", value)


CHOSEN = np.zeros((6, 4), bool)
CHOSEN[2:4, 1] = True


@pytest.mark.parametrize(
    "value",
    [
        CHOSEN,
        CHOSEN[None],
        CHOSEN.astype("uint8"),
        CHOSEN.astype("uint8") * 255,
        CHOSEN.astype("int64"),
        CHOSEN.astype("float64"),
        np.where(CHOSEN, 0.5, 0.49),
        CHOSEN[..., None],
        CHOSEN[None, ..., None].astype("uint8") * 255,
        CHOSEN.astype("int64") * 255,
        CHOSEN.astype("uint16") * 200,
        CHOSEN.tolist(),
        [CHOSEN],
        [Image.fromarray(CHOSEN)],
        Image.fromarray(CHOSEN.astype("int32") * 255),
        Image.fromarray(np.dstack([np.full((6, 4, 3), 255, "uint8"), CHOSEN.astype("uint8") * 255])),
        Image.fromarray(np.dstack([np.zeros((6, 4, 3), "uint8"), CHOSEN.astype("uint8") * 254])),
        [Image.fromarray(np.dstack([np.zeros((6, 4, 3), "uint8"), CHOSEN.astype("uint8") * 129]))],
        np.dstack([np.full((6, 4, 3), 255, "uint8"), CHOSEN.astype("uint8") * 255]),
        Image.fromarray(CHOSEN).convert("RGBA"),
        Image.fromarray(CHOSEN),
        Image.fromarray(CHOSEN.astype("uint8") * 255).convert("RGB"),
        np.repeat(CHOSEN[..., None], 3, -1).astype("uint8") * 255,
    ],
)
def test_every_kind_of_mask_says_the_same(value):
    read = images.read_mask("mask", value, (6, 4))

    assert read.dtype == bool
    np.testing.assert_array_equal(read, CHOSEN[None])
    np.testing.assert_array_equal(images.read_mask("mask", ~np.array(read), (6, 4), "keep"), CHOSEN[None])


@pytest.mark.parametrize(
    ("value", "white", "message"),
    [
        (CHOSEN.T, "repaint", "size of the image, 6×4"),
        (CHOSEN & False, "repaint", "must be white somewhere"),
        (CHOSEN | True, "keep", "must be black somewhere"),
        (np.stack([CHOSEN, CHOSEN & False]), "repaint", "must be white somewhere"),
        (np.full((6, 4), np.nan), "repaint", "floats from 0 to 1"),
        (np.full((6, 4), -1), "repaint", "dtype|from 0 to 1"),
        (np.full((6, 4), 300), "repaint", "dtype"),
        (np.ones((7, 4, 1)), "repaint", "6×4.*Received: mask of 7×4$"),
        ([CHOSEN, CHOSEN.T], "repaint", "Received: mask of 4×6 and 6×4"),
    ],
)
def test_refuses_bad_masks(value, white, message):
    with pytest.raises((ValueError, TypeError), match=message):
        images.read_mask("mask", value, (6, 4), white)


def test_pad_says_what_is_new():
    extended, mask = resizing.pad(PIXELS[None].astype("float32"), 1, 0, 2, 3)

    assert extended.shape == (1, 7, 9, 3)
    np.testing.assert_array_equal(extended[0, 1:, 2:6], PIXELS)
    np.testing.assert_array_equal(extended[0, 0, 0], PIXELS[0, 0])
    assert mask.shape == (1, 7, 9)
    assert not mask[0, 1:, 2:6].any()
    assert mask.sum() == 7 * 9 - 6 * 4


def test_pad_takes_one_image_and_refuses_other_shapes():
    np.testing.assert_array_equal(resizing.pad(PIXELS, 1, 2, 3, 4)[0], resizing.pad(PIXELS[None], 1, 2, 3, 4)[0])
    for image, top in ((PIXELS[..., 0], 1), (PIXELS, -1)):
        with pytest.raises(ValueError, match="at least 0 pixels"):
            resizing.pad(image, top, 0, 0, 0)


def test_reading_a_file_says_nothing_else(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.read_images("image", tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_path_opened_file_and_list_of_one_photograph_are_the_same(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path, exif=exif)

    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))[None]
        for value in (path, opened, [opened], opened.convert("RGBA"), expected):
            np.testing.assert_array_equal(images.read_images("image", value), expected)
        red = images.read_mask("mask", opened, expected.shape[1:3])
    np.testing.assert_array_equal(red, images.read_mask("mask", path, expected.shape[1:3]))


def test_a_mask_of_the_pictures_own_size_is_scaled_with_it():
    twice = CHOSEN.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(images.read_mask("mask", CHOSEN, (12, 8), given_size=(6, 4)), twice[None])
    np.testing.assert_array_equal(images.read_mask("mask", twice, (6, 4), given_size=(12, 8)), CHOSEN[None])
    np.testing.assert_array_equal(images.read_mask("mask", twice, (12, 8), given_size=(6, 4)), twice[None])
    with pytest.raises(ValueError, match=r"12×8.*or 6×4 as it was before. Received: mask of 3×2"):
        images.read_mask("mask", CHOSEN[:3, :2], (12, 8), given_size=(6, 4))


def test_what_pillow_warns_of_is_logged_and_no_damage(tmp_path, caplog):
    """A palette picture with transparency in bytes is one that Pillow warns of when it is converted."""
    picture = Image.fromarray(PIXELS).convert("P")
    picture.save(tmp_path / "a.png", transparency=bytes([0] + [255] * 255))

    def warned(*args, **kwargs):
        warnings.warn("Palette images with Transparency expressed in bytes", UserWarning, stacklevel=2)
        return Image.Image.getexif(*args, **kwargs)

    with Image.open(tmp_path / "a.png") as opened, pytest.MonkeyPatch.context() as patch:
        expected = images.read_images("image", tmp_path / "a.png")
        patch.setattr(type(opened), "getexif", warned)
        np.testing.assert_array_equal(images.read_images("image", tmp_path / "a.png"), expected)
    assert "`image`: Palette images with Transparency" in caplog.text


DAMAGED_EXIF = [b"MM\0*\0\0\0\x08\0\x09\1", b"nonsense", b"II*\0\xff\xff\xff\xff"]


@pytest.mark.parametrize("exif", DAMAGED_EXIF)
def test_damaged_exif_is_logged_and_the_pixels_taken(tmp_path, caplog, exif):
    Image.fromarray(PIXELS).save(tmp_path / "a.webp", lossless=True, exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(images.read_images("image", tmp_path / "a.webp"), PIXELS[None])
    assert "`image`" in caplog.text


def test_a_damaged_opened_file_is_an_error_of_ours(tmp_path):
    cut(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(ValueError, match="`image` must be a PNG"):
        images.read_images("image", opened)
