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
HUES = (("red", 12), ("orange", 40), ("yellow", 66), ("green", 168), ("blue", 250), ("purple", 297), ("pink", 343), ("red", 361))


class Tone(NamedTuple):
    """The part of an image that has one colour."""

    mask: np.ndarray  # bool (height, width)
    name: str | None
    saturation: float  # mean of the part
    value: float


def hsv(rgb):
    """Returns hue in degrees, saturation and value of float (..., 3) in [0, 1]."""
    high, low = rgb.max(-1), rgb.min(-1)
    chroma = high - low
    safe = np.where(chroma == 0, 1, chroma)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(high == red, (green - blue) / safe % 6, np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4))
    return hue * 60 % 360, chroma / np.maximum(high, 1e-6), high


def hue_name(hue, saturation, value):
    """Returns the word for a colour."""
    if value < 0.22:
        return "black"
    if saturation < 0.12:
        return "white" if value > 0.88 else "grey"
    if (8 < hue < 45 and value < 0.72) or (hue < 12 or hue > 350) and value < 0.42:
        return "brown"
    name = next(name for name, end in HUES if hue < end)
    if name == "red" and saturation < 0.55 and value > 0.8:
        return "pink"
    return name


def tone(rgba):
    """Returns the `Tone` of an image if one colour makes up most of what it shows, else None.

    Args:
        rgba: uint8 (height, width, 4).
    """
    solid = rgba[..., 3] > 128
    total = max(1, solid.sum())
    hue, saturation, value = hsv(rgba[..., :3].astype("float32") / 255)
    coloured = solid & (saturation > 0.22) & (value > 0.2)
    if coloured.sum() > 0.35 * total:
        counts = np.bincount((hue[coloured] // 10).astype(int), minlength=36)[:36]
        window = sum(np.roll(counts, shift) for shift in (-2, -1, 0, 1, 2))
        middle = window.argmax() * 10 + 5
        mask = coloured & (np.abs((hue - middle + 180) % 360 - 180) < 32)
        if mask.sum() < 0.85 * coloured.sum():
            return None
        angle = np.deg2rad(hue[mask])
        mean = np.rad2deg(np.arctan2(np.sin(angle).mean(), np.cos(angle).mean())) % 360
    else:
        mask, mean = solid & (saturation < 0.22) & (value > 0.25) & (value < 0.93), 0
        if coloured.sum() > 0.12 * total or mask.sum() < 0.5 * total:
            return None
    saturation, value = float(saturation[mask].mean()), float(value[mask].mean())
    name = hue_name(mean, saturation, value) if mask.sum() > 0.6 * total else None
    return Tone(mask, name, saturation, value)


def recolour(rgba, tone, word):
    """Returns an image whose tone has become the colour `word`; light and shade stay."""
    hue, target_saturation, target_value = COLOURS[word]
    rgb = rgba[..., :3].astype("float32") / 255
    high, low = rgb.max(-1), rgb.min(-1)
    saturation = (high - low) / np.maximum(high, 1e-6)
    change = saturation - tone.saturation
    new_saturation = np.clip(target_saturation + 0.6 * change, 0, 1) if hue is not None else np.zeros_like(high)
    spread = 0.55 if word in ("black", "white") else 0.9
    new_value = np.clip(target_value + spread * (high - tone.value), 0.03, 1)
    turn = (np.array([5, 3, 1]) + (hue or 0) / 60) % 6
    strength = new_saturation[..., None] * np.clip(np.minimum(turn, 4 - turn), 0, 1)
    new = new_value[..., None] * (1 - strength)
    out = rgba.copy()
    out[..., :3] = np.where(tone.mask[..., None], np.round(new * 255), rgba[..., :3])
    return out
