"""Names the colour of a thing and gives it another one."""

from typing import NamedTuple

import numpy as np

# Colour word: hue in degrees, saturation, value of the middle tone; no hue for shades of grey.
COLOURS = {
    "red": (357, 0.85, 0.86),
    "orange": (27, 0.88, 0.98),
    "yellow": (50, 0.80, 0.99),
    "green": (125, 0.68, 0.68),
    "blue": (214, 0.78, 0.90),
    "purple": (274, 0.62, 0.78),
    "pink": (332, 0.48, 0.99),
    "brown": (24, 0.62, 0.50),
    "black": (None, 0.0, 0.17),
    "white": (None, 0.0, 0.97),
    "grey": (None, 0.0, 0.58),
}
HUES = (
    ("red", 12),
    ("orange", 40),
    ("yellow", 66),
    ("green", 168),
    ("blue", 250),
    ("purple", 297),
    ("pink", 343),
    ("red", 361),
)


class Tone(NamedTuple):
    """The one colour that most of an image has."""

    hue: float | None  # in degrees; None for a grey
    saturation: float  # means of the pixels that have it
    value: float
    name: str | None  # None if too little of the image has it to be called by it


def hsv(rgb):
    """Returns hue in degrees, saturation and value of float (..., 3) in [0, 1]."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = high - low
    safe = np.where(chroma == 0, 1, chroma)
    others = np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    hue = np.where(high == red, (green - blue) / safe % 6, others)
    return hue * 60 % 360, chroma / np.maximum(high, 1e-6), high


def near(middle, hue, saturation, value):
    """Returns which pixels have a colour: hues around `middle`, or greys if it is None."""
    if middle is None:
        return (saturation < 0.22) & (value > 0.25) & (value < 0.93)
    return (saturation > 0.22) & (value > 0.2) & (np.abs((hue - middle + 180) % 360 - 180) < 32)


def hue_name(hue, saturation, value):
    """Returns the word for a colour, or None if it has no plain one."""
    if value < 0.22:
        return "black"
    if saturation < (0.12 if value > 0.55 else 0.3):
        return "white" if value > 0.88 else "grey"
    if (8 < hue < 45 and value < 0.72) or ((hue < 12 or hue > 350) and value < 0.42):
        return "brown"
    if 8 < hue < 66 and saturation < 0.48:
        return None  # the colours of skin, wood and paper
    name = next(name for name, end in HUES if hue < end)
    if name == "red" and saturation < 0.55 and value > 0.8:
        return "pink"
    return name


def tone(rgba):
    """Returns the `Tone` of an image if one colour makes up most of what it shows, else None.

    Args:
        rgba: uint8 (height, width, 4); every other row and column is looked at.
    """
    rgba = rgba[::2, ::2]
    rgb = rgba[rgba[..., 3] > 128][:, :3].astype("float32") / 255
    hue, saturation, value = hsv(rgb)
    coloured = (saturation > 0.22) & (value > 0.2)
    total, many = max(1, len(rgb)), coloured.sum()
    middle = None
    if many > 0.35 * total:
        counts = np.bincount((hue[coloured] // 10).astype(int) % 36, minlength=36)
        window = sum(np.roll(counts, shift) for shift in (-2, -1, 0, 1, 2))
        middle = window.argmax() * 10 + 5
    chosen = near(middle, hue, saturation, value)
    share = chosen.sum() / total
    if chosen.sum() < 0.85 * many or (middle is None and (many > 0.12 * total or share < 0.5)):
        return None
    angle = np.deg2rad(hue[chosen])
    mean = np.rad2deg(np.arctan2(np.sin(angle).mean(), np.cos(angle).mean())) % 360
    saturation, value = float(saturation[chosen].mean()), float(value[chosen].mean())
    return Tone(middle, saturation, value, hue_name(mean, saturation, value) if share > 0.6 else None)


def recolour(rgba, tone, word):
    """Returns an image whose tone has become the colour `word`; light and shade stay."""
    hue, target_saturation, target_value = COLOURS[word]
    rgb = rgba[..., :3].astype("float32") / 255
    own_hue, saturation, value = hsv(rgb)
    chosen = near(tone.hue, own_hue, saturation, value)
    saturation, value = saturation[chosen], value[chosen]
    spread = 0.55 if word in ("black", "white") else 0.9
    value = np.clip(target_value + spread * (value - tone.value), 0.03, 1)
    saturation = 0 if hue is None else np.clip(target_saturation + 0.6 * (saturation - tone.saturation), 0, 1)
    turn = (np.array([5, 3, 1], "float32") + (hue or 0) / 60) % 6
    strength = np.clip(np.minimum(turn, 4 - turn), 0, 1)
    out = rgba.copy()
    out[chosen, :3] = np.round(255 * value[:, None] * (1 - np.reshape(saturation, (-1, 1)) * strength))
    return out
