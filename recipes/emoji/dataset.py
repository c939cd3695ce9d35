"""Builds the data set of the bundled model: 64×64 pictures on white, with their labels and tags.

    python recipes/emoji/dataset.py --packages packages/ --output emoji.npz

Packages that are not in the folder yet are fetched with `npm pack`.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SIZE = 64
GROUP_OF_FLAGS = 9


class Package(NamedTuple):
    name: str
    version: str
    licence: str  # of the part that is used, which may differ from that of the package's code
    sha256: str
    folder: str  # of the part that is used
    style: str | None = None

    @property
    def archive(self):
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


LABELS = Package(
    "emojibase-data",
    "17.0.0",
    "MIT",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "package/en/data.json",
)
PICTURES = (
    Package(
        "emoji-datasource-google",
        "16.0.0",
        "Apache-2.0 (Noto Emoji, Google)",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "package/img/google/64/",
        "noto",
    ),
    Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "CC-BY-4.0 (Twemoji, Twitter and other contributors)",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "package/img/twitter/64/",
        "twemoji",
    ),
    Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "MIT (Fluent Emoji, Microsoft)",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "package/assets/",
        "fluent 3d",
    ),
)


class Dataset(NamedTuple):
    """n pictures of m labels; the labels of base pictures come first."""

    images: np.ndarray  # uint8 (n, 64, 64, 3)
    styles: np.ndarray  # (n,) index into style_names
    labels: np.ndarray  # (n,) index into label_names
    base: np.ndarray  # bool (n,): no flag, no skin-tone variant
    style_names: list  # of str
    label_names: list  # of str, m
    tags: list  # of lists of str, m


class Entry(NamedTuple):
    code: str
    label: str
    tags: list
    base: bool


def captions(label, tags, style, style_weight=0.2):
    """Returns every caption of a picture as (text, weight); weights sum to one.

    The empty caption (a tenth) is what classifier-free guidance learns from. A tenth of the captions are phrases, a
    tenth tags, alone and in neighbouring pairs, and a tenth a tag and the label ("a slice of pizza"); the label alone
    takes what is left.
    """
    phrases = [f"a {label}", f"a picture of a {label}"]
    alone = [*tags, *(f"{a}, {b}" for a, b in pairwise(tags))]
    joined = [text for tag in tags for text in (f"{tag} {label}", f"a {tag} of {label}")]
    tenths = [texts for texts in ([""], phrases, alone, joined) if texts]
    return [
        (label, 1.0 - style_weight - 0.1 * len(tenths)),
        (f"{label}, {style} style", style_weight),
        *((text, 0.1 / len(texts)) for texts in tenths for text in texts),
    ]


def fetch(package, folder):
    """Returns the path of the package's archive, fetched if missing, its checksum verified."""
    path = Path(folder) / package.archive
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        specifier = f"{package.name}@{package.version}"
        subprocess.run(["npm", "pack", specifier, "--pack-destination", folder], check=True)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != package.sha256:
        raise ValueError(
            f"{path.name} is not the archive this recipe was written for. Expected sha256 "
            f"{package.sha256}; remove the file to fetch it again. Received: sha256={sha256}"
        )
    return path


def code_point(text):
    """Returns one spelling of a sequence of code points: no FE0F, no leading zeros, upper case."""
    parts = text.upper().replace("_", "-").split("-")
    return "-".join(part.lstrip("0") for part in parts if part != "FE0F")


def read_entries(path, member):
    """Returns one `Entry` per emoji and skin-tone variant, those of the base vocabulary first."""
    with tarfile.open(path) as archive:
        data = json.load(archive.extractfile(member))
    entries = []
    for emoji in data:
        tags = [tag.lower() for tag in emoji.get("tags", [])]
        for variant in (emoji, *emoji.get("skins", [])):
            base = variant is emoji and emoji.get("group") != GROUP_OF_FLAGS
            label = variant["label"].lower()
            entries.append(Entry(code_point(variant["hexcode"]), label, tags, base))
    return sorted(entries, key=lambda entry: not entry.base)


def read_pictures(path, folder):
    """Returns {code point: uint8 (64, 64, 3)}; of two spellings of one code point, the first."""
    pictures = {}
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            code = code_point(Path(member.name).stem)
            if member.isfile() and member.name.startswith(folder) and code not in pictures:
                pictures[code] = on_white(archive.extractfile(member).read())
    return pictures


def on_white(data):
    """Returns an encoded picture with transparency as uint8 (64, 64, 3) on white ground."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def build(packages_folder, labels, pictures):
    """Returns the `Dataset` of all pictures that have a label, ordered by style, then by label."""
    entries = read_entries(fetch(labels, packages_folder), labels.folder)
    found = [read_pictures(fetch(package, packages_folder), package.folder) for package in pictures]
    entries = [entry for entry in entries if any(entry.code in style for style in found)]
    rows = [
        (style[entry.code], style_index, label_index, entry.base)
        for style_index, style in enumerate(found)
        for label_index, entry in enumerate(entries)
        if entry.code in style
    ]
    return Dataset(
        *(np.stack(column) for column in zip(*rows, strict=True)),
        style_names=[package.style for package in pictures],
        label_names=[entry.label for entry in entries],
        tags=[entry.tags for entry in entries],
    )


def save(dataset, path):
    """Writes the data set so that an interrupted run leaves no half file."""
    unfinished = Path(f"{path}.unfinished")
    with open(unfinished, "wb") as file:
        tags = [json.dumps(tags) for tags in dataset.tags]
        np.savez_compressed(file, **dataset._replace(tags=tags)._asdict())
    os.replace(unfinished, path)


def load(path):
    """Returns the `Dataset` that `save` wrote."""
    with np.load(path) as arrays:
        dataset = Dataset(**arrays)
    return dataset._replace(
        style_names=dataset.style_names.tolist(),
        label_names=dataset.label_names.tolist(),
        tags=[json.loads(tags) for tags in dataset.tags],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", required=True, help="folder of the packages' archives")
    parser.add_argument("--output", required=True, type=Path, help="the .npz to write")
    arguments = parser.parse_args()

    dataset = build(arguments.packages, LABELS, PICTURES)
    save(dataset, arguments.output)
    sources = [
        {key: getattr(package, key) for key in ("name", "version", "licence", "sha256")}
        for package in (LABELS, *PICTURES)
    ]
    text = json.dumps(sources, indent=2)
    arguments.output.with_suffix(".sources.json").write_text(text + "\n")
    print(text)
    in_base = np.unique(dataset.labels[dataset.base]).size
    print(f"{len(dataset.images)} pictures of {len(dataset.label_names)} labels;")
    print(f"base: {dataset.base.sum()} pictures of {in_base} labels")


if __name__ == "__main__":
    main()
