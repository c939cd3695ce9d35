"""Chooses images of emoji and icon sets, and colours the icons that have one colour."""

import re
from pathlib import Path

from captions import Concept, popularity

FOLDER = Path(__file__).parent
SHADES = {  # light and dark
    "red": ("#f9b4ab", "#c2362b"),
    "orange": ("#fbd3a0", "#c9641a"),
    "green": ("#b5e3b8", "#2f7a45"),
    "blue": ("#bcd9fb", "#2359b0"),
    "purple": ("#d9c7f5", "#5f3aa8"),
    "teal": ("#b2e5e0", "#1f7a74"),
    "brown": ("#e2c5ab", "#6f4526"),
    "grey": ("#d5dae2", "#454f5e"),
}
SHADES_OF_KINDS = {
    "animal": ("brown", "grey", "orange", "grey"),
    "creature": ("purple", "green", "grey", "red"),
    "person": ("blue", "grey", "brown"),
    "building": ("grey", "brown", "red", "blue"),
    "scene": ("teal", "green", "grey"),
    "plant": ("green",),
    "food": ("red", "orange", "green", "brown"),
    "vehicle": ("blue", "grey", "red", "teal"),
    "object": ("grey", "brown", "teal", "red", "blue", "purple"),
}
HYPERNYMS = {"animal": ("animal",), "food": ("food",), "vehicle": ("vehicle",), "building": ("building",)}


def slug(label):
    return re.sub(r"[^a-z0-9]", "", label.lower().replace("ñ", "n").replace("o’clock", "oclock"))


def read_renamed():
    """Returns {slug of an icon's name: label} of renamed.txt."""
    lines = (line.rsplit(":", 1) for line in (FOLDER / "renamed.txt").read_text().splitlines())
    return {slug(name): label for label, names in lines for name in names.split()}


def choose_emoji(icons, concepts):
    """Returns [(label, body, view box)] of an emoji set: the images that a concept names, each once."""
    labels = read_renamed() | {slug(label): label for label in concepts}
    chosen, bodies = [], set()
    for name, (body, box) in icons.items():
        stems = (name, re.sub(r"-\d$", "", name), re.sub(r"-face(-\d)?$", "", name), re.sub(r"^person-", "", name))
        label = next((labels[slug(stem)] for stem in stems if slug(stem) in labels), None)
        if label in concepts and body not in bodies:
            chosen.append((label, body, box))
            bodies.add(body)
    return chosen


def paint(body, style, kind, icon):
    """Returns an icon's SVG body in colours that suit its kind."""
    names = SHADES_OF_KINDS[kind]
    light, dark = SHADES[names[sum(icon.encode()) % len(names)]]
    if style == "kameleon":
        return re.sub(r"<path [^>]*/>", "", body, count=1)  # without the coloured disc behind the icon
    if style == "duotone":
        body = re.sub(r'fill="currentColor"( d="[^"]*") opacity=".2"', r'\1 opacity=".2"', body)
        body = body.replace('opacity=".2"', f'fill="{light}"')
    return body.replace("currentColor", dark).replace("#8fbffa", light).replace("#2859c5", dark)


def choose_icons(icons, style, concepts):
    """Returns [(label, body, view box)] of the icons that icons.txt names; adds the concepts that are missing."""
    known = {concept.names[0]: label for label, concept in concepts.items()}
    chosen = []
    for kind, icon, names in read_icon_names(style):
        body, box = icons[icon]
        body = paint(body, style, kind, icon)
        if names[0] not in known:
            known[names[0]] = names[0]
            hypernyms = HYPERNYMS.get(kind, ())
            weight = (2.0 if kind in ("animal", "creature") else 1.3) * popularity(names)
            concepts[names[0]] = Concept(names, kind, weight, tuple(h for h in hypernyms if h not in names))
        chosen.append((known[names[0]], body, box))
    return chosen


def read_icon_names(style):
    """Yields (kind, icon, names) of a style's icons in icons.txt."""
    section = kind = None
    for line in (FOLDER / "icons.txt").read_text().splitlines():
        if line.startswith("["):
            section, _, kind = line.strip("[]").rpartition(" ")
        elif section == style and not line.startswith("#"):
            for item in line.split(";"):
                icon, _, names = item.partition("=")
                names = names or icon.replace("-", " ")
                yield kind, icon.strip(), tuple(name.strip() for name in names.split(","))
