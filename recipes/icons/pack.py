"""Packs the images of the model "icons" with their captions into one file, and loads it.

    python recipes/icons/pack.py --packages packages/ --output icons.pack

Packages that are not in the folder yet are fetched with `npm pack`.
"""

import argparse
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from captions import Concept, captions, emoji_concepts
from choose import choose_emoji, choose_icons
from packages import EMOJI, ICONS, LABELS, RASTERS, fetch, read_icons, read_json
from PIL import Image
from workers import run

SIZE = 128
MARGIN = 6  # between the image's edge and what it shows, in pixels of 128
RASTER_WEIGHT = 0.25  # concepts that weigh less have no raster image
VISIBLE = 24  # least alpha of a pixel that counts as part of the object


class Pictures(NamedTuple):
    """n images with transparent ground; what they show touches the margin on its longer side and is centred."""

    rgba: np.ndarray  # uint8 (n, size, size, 4)
    captions: list  # of lists of (str, weight)
    names: list  # of str
    styles: list  # of str
    kinds: list  # of str
    weights: np.ndarray  # float (n,), how often an image is to be shown
    concepts: list  # of Concept


def render(body, box, size=SIZE, margin=MARGIN):
    """Returns an SVG body as uint8 (size, size, 4): the view box in the middle, inside the margin."""
    import resvg_py

    left, top, width, height = box
    pad = max(width, height) * margin / (SIZE - 2 * margin)
    side = max(width, height) + 2 * pad
    view = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view}" width="{size}" height="{size}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def visible_box(rgba):
    """Returns (left, top, right, bottom) of what an image shows, in pixels, or None."""
    visible = rgba[..., 3] > VISIBLE
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows.size else None


def tight_box(body, box):
    """Returns the view box that holds what an SVG body shows, or None if it shows nothing."""
    found = visible_box(render(body, box, margin=0))
    if found is None:
        return None
    left, top, width, height = box
    side = max(width, height)
    left, top = left - (side - width) / 2, top - (side - height) / 2
    x0, y0, x1, y1 = (edge * side / SIZE for edge in found)
    return [round(float(value), 3) for value in (left + x0, top + y0, x1 - x0, y1 - y0)]


def pack_raster(data, quality=86):
    """Returns an encoded image as WebP of 128×128, its visible part fitted inside the margin."""
    picture = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data).convert("RGBA")
    picture = picture.crop(visible_box(np.asarray(picture)))
    scale = (SIZE - 2 * MARGIN) / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    file = io.BytesIO()
    canvas.save(file, "webp", quality=quality, alpha_quality=80, method=6)
    return file.getvalue()


def draw(task):
    """Returns uint8 (n, size, size, 4) of n (SVG body, view box) or WebP files."""
    size, items = task
    return np.stack([decode(item, size) if isinstance(item, bytes) else render(*item, size) for item in items])


def decode(data, size):
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    return np.asarray(picture if size == SIZE else picture.resize((size, size), Image.Resampling.LANCZOS))


def tight_boxes(items):
    return [tight_box(body, box) for body, box in items]


# Building the pack


def build(folder):
    """Returns ({key: Concept}, images), each image (key, style, SVG body, view box) or (key, style, WebP)."""
    labels = fetch(LABELS, folder)
    data, messages = read_json(labels, "en/data.json"), read_json(labels, "en/messages.json")
    concepts = emoji_concepts(data, messages)
    images = []
    for package in (*EMOJI, *ICONS):
        icons = read_icons(fetch(package, folder))
        chosen = choose_emoji(icons, concepts) if package in EMOJI else choose_icons(icons, package.style, concepts)
        boxes = run(tight_boxes, [[item[1:] for item in chosen[i::8]] for i in range(8)], workers=2)
        for start, part in enumerate(boxes):
            for (label, body, _), box in zip(chosen[start::8], part, strict=True):
                if box is not None:
                    images.append((label, package.style, body, box))
        print(package.name, len(chosen), flush=True)
    codes = {emoji["hexcode"].lower().replace("-fe0f", ""): emoji["label"] for emoji in data}
    with tarfile.open(fetch(RASTERS, folder)) as archive:
        for member in archive.getmembers():
            label = codes.get(Path(member.name).stem.replace("-fe0f", ""))
            if label in concepts and concepts[label].weight >= RASTER_WEIGHT:
                images.append((label, RASTERS.style, pack_raster(archive.extractfile(member))))
    return concepts, images


def save(concepts, images, path):
    """Writes concepts and images as a tar.xz."""
    used = {image[0] for image in images}
    content = {
        "concepts": {key: concept for key, concept in concepts.items() if key in used},
        "images": [image if len(image) == 4 else (*image[:2], len(image[2])) for image in images],
    }
    files = {
        "images.json": json.dumps(content, separators=(",", ":")).encode(),
        "rasters.bin": b"".join(image[2] for image in images if len(image) == 3),
    }
    with tarfile.open(path, "w:xz", preset=9) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def read(path):
    """Returns (concepts, images) that `save` wrote."""
    with tarfile.open(path) as archive:
        content = json.load(archive.extractfile("images.json"))
        rasters = archive.extractfile("rasters.bin").read()
    images, start = [], 0
    for image in content["images"]:
        if len(image) == 3:
            start, end = start + image[2], start
            image = (*image[:2], rasters[end:start])
        images.append(tuple(image))
    return {key: Concept(*concept) for key, concept in content["concepts"].items()}, images


def load(path, size=SIZE, workers=16):
    """Returns the `Pictures` of a pack, drawn by `workers` processes."""
    concepts, images = read(path)
    share = 2 * workers  # each task takes every share-th image, so that all take about as long
    items = [image[2:] if len(image) == 4 else image[2] for image in images]
    rgba = np.empty((len(images), size, size, 4), np.uint8)
    for start, part in enumerate(
        run(draw, [(size, items[start::share]) for start in range(min(share, len(items)))], workers)
    ):
        rgba[start::share] = part
    chosen = [concepts[image[0]] for image in images]
    count = Counter(image[0] for image in images)
    texts = {key: captions(concept) for key, concept in concepts.items()}
    return Pictures(
        rgba,
        captions=[texts[image[0]] for image in images],
        names=[concept.names[0] for concept in chosen],
        styles=[image[1] for image in images],
        kinds=[concept.kind for concept in chosen],
        weights=np.array(
            [concept.weight * max(1, 3 / count[image[0]]) for concept, image in zip(chosen, images, strict=True)]
        ),
        concepts=chosen,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", required=True, help="folder of the packages' archives")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    arguments = parser.parse_args()
    concepts, images = build(arguments.packages)
    save(concepts, images, arguments.output)
    print(f"{len(images)} images of {len({image[0] for image in images})} concepts")
    print(f"{arguments.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
