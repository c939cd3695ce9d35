"""Holds the pictures as a process that composes scenes needs them."""

import hashlib

import numpy as np
from colours import recolour, tone
from PIL import Image

BEINGS = {"animal", "person", "creature"}
OBJECTS = BEINGS | {"food", "plant", "vehicle", "object", "building", "clothing", "sky", "symbol"}
PAINTED = OBJECTS - {"person", "sky"}  # kinds that are shown in other colours than their own
HELD_OUT = 0.1  # share of the combinations that no scene shows


def held_out(kind, *words):
    """Returns whether no scene shows a combination, such as ("colour", "blue", "apple")."""
    digest = hashlib.sha256("|".join((kind, *map(str, words))).encode()).digest()
    return digest[0] < 256 * HELD_OUT


def describe(pictures):
    """Returns what a `Stock` needs of `Pictures` besides the images, as plain lists."""
    area = (pictures.rgba[..., 3] > 128).mean((1, 2))
    objects = [kind in OBJECTS and 0.04 < share < 0.74 for kind, share in zip(pictures.kinds, area, strict=True)]
    return {
        "captions": pictures.captions,
        "names": pictures.names,
        "all_names": [list(concept.names) for concept in pictures.concepts],
        "styles": pictures.styles,
        "kinds": pictures.kinds,
        "weights": pictures.weights.tolist(),
        "objects": [bool(flag) for flag in objects],
    }


class Stock:
    """Chooses pictures by weight and cuts out what they show.

    Args:
        rgba: uint8 (n, 128, 128, 4).
        description: What `describe` returns.
    """

    def __init__(self, rgba, description):
        self.rgba = rgba
        self.captions, self.names = description["captions"], description["names"]
        self.all_names, self.styles = description["all_names"], description["styles"]
        self.kinds, self.objects = description["kinds"], description["objects"]
        self.weights = np.asarray(description["weights"])
        self.tones, self.tables = {}, {}

    def choose(self, rng, key="all", test=None, style=None):
        """Returns the index of a picture, chosen by weight among those that pass a test; None if there is none.

        Args:
            rng: `numpy.random.Generator`.
            key: The test's name; what passes it is worked out once.
            test: Function of an index, or None for every picture.
            style: Style of the picture, or None for any.
        """
        place = (key, style)
        if place not in self.tables:
            chosen = [i for i, own in enumerate(self.styles) if style in (None, own) and (test is None or test(i))]
            self.tables[place] = chosen, np.cumsum(self.weights[chosen])
        chosen, sums = self.tables[place]
        return chosen[int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))] if chosen else None

    def object(self, rng, style=None):
        return self.choose(rng, "objects", lambda i: self.objects[i], style)

    def being(self, rng, style=None):
        return self.choose(rng, "beings", lambda i: self.objects[i] and self.kinds[i] in BEINGS, style)

    def named(self, rng, names, style=None):
        """Returns an object whose main name is one of `names`."""
        return self.choose(rng, names, lambda i: self.objects[i] and self.names[i] in names, style)

    def called(self, rng, noun, style=None):
        """Returns an object one of whose names is `noun`, its face included."""
        chosen = set(self.all_called(noun))
        return self.choose(rng, ("called", noun), lambda i: i in chosen, style)

    def all_called(self, noun):
        """Returns the indices of all objects one of whose names is `noun`, their faces included."""
        names = {noun, f"{noun} face"}
        return [i for i, own in enumerate(self.all_names) if self.objects[i] and names & set(own)]

    def name(self, rng, i):
        """Returns one of the names of a picture, mostly the main one; an animal's face is called like the animal."""
        names = self.all_names[i]
        short = names[0].removesuffix(" face") if self.kinds[i] == "animal" else names[0]
        return short if len(names) == 1 or rng.random() < 0.75 else names[rng.integers(len(names))]

    def tone(self, i):
        if i not in self.tones:
            self.tones[i] = tone(self.rgba[i])
        return self.tones[i]

    def image(self, i, colour=None):
        """Returns what a picture shows, in its own colour or another, as an RGBA image."""
        rgba = self.rgba[i] if colour is None else recolour(self.rgba[i], self.tone(i), colour)
        image = Image.fromarray(rgba)
        return image.crop(image.getchannel("A").getbbox())
