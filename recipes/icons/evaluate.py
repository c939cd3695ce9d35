"""Measures a model that was trained on icons, and draws contact sheets of it.

    python recipes/icons/evaluate.py --preset FOLDER --pack icons.pack --counter counter.weights.h5 --output evaluation/

Writes `measure.json`, contact sheets, and the questions for a reader who does not know the prompts: `questions/` holds
sheets of numbered images and five prompts to choose from for each. The reader's answers, a JSON list of letters, are
counted with `--answers answers.json`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from judge import Judge, colour_share, counter
from PIL import Image, ImageDraw, ImageFont
from stock import Stock, describe
from unseen import prompts

FOLDER = Path(__file__).parent
NUM_STEPS = 25
GUIDANCE_SCALE = 4
BATCH_SIZE = 20
PER_SHEET = 20
COLOUR_SHARE = 0.4  # of the pixels of an object that has the colour asked for
THUMBNAIL = 32
LETTERS = "ABCDE"


def generate(model, texts, seed=0):
    """Returns uint8 (n, height, width, 3): one image per prompt."""
    batches = [
        model.text_to_image(
            list(texts[start : start + BATCH_SIZE]),
            num_steps=NUM_STEPS,
            unconditional_guidance_scale=GUIDANCE_SCALE,
            seed=seed + start,
        )
        for start in range(0, len(texts), BATCH_SIZE)
    ]
    return np.concatenate(batches)


def contact_sheet(images, captions, columns=10):
    """Returns a PIL image: rows of images with captions underneath, broken into two lines where they are long."""
    font = ImageFont.load_default(12)
    height, width = images.shape[1:3]
    sheet = Image.new("RGB", (columns * (width + 16), -(-len(images) // columns) * (height + 34)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = i % columns * (width + 16) + 8, i // columns * (height + 34)
        sheet.paste(Image.fromarray(image), (left, top))
        cut = caption.rfind(" ", 0, 24) if len(caption) > 24 else len(caption)
        lines = f"{caption[:cut]}\n{caption[cut + 1 :]}"
        draw.text((left + width / 2, top + height + 3), lines, fill="black", font=font, anchor="ma", align="center")
    return sheet


# The first prompts of strangers, judged by a reader


def questions(texts, seed=0):
    """Returns five prompts for each prompt, the right one at a random place, and the letters of the right ones."""
    rng = np.random.default_rng(seed)
    choices, answers = [], []
    for i, text in enumerate(texts):
        others = rng.choice(np.delete(np.arange(len(texts)), i), 4, replace=False)
        place = int(rng.integers(5))
        five = [texts[other] for other in others]
        five.insert(place, text)
        choices.append(five)
        answers.append(LETTERS[place])
    return choices, answers


def write_questions(images, texts, folder):
    """Writes sheets of numbered images, the five choices for each, and (in the folder above) the right letters."""
    folder.mkdir(parents=True, exist_ok=True)
    choices, answers = questions(texts)
    for start in range(0, len(images), PER_SHEET):
        part = slice(start, start + PER_SHEET)
        numbers = [str(start + i + 1) for i in range(len(images[part]))]
        contact_sheet(images[part], numbers, columns=5).save(folder / f"sheet-{start // PER_SHEET + 1:02}.png")
        lines = [
            f"{number}. " + "  ".join(f"{letter}: {text}" for letter, text in zip(LETTERS, five, strict=True))
            for number, five in zip(numbers, choices[part], strict=True)
        ]
        (folder / f"choices-{start // PER_SHEET + 1:02}.txt").write_text("\n".join(lines) + "\n")
    (folder.parent / "right_answers.json").write_text(json.dumps(answers))


def count_answers(path, folder):
    """Returns the percentage of right letters in a reader's answers, and the numbers of the wrong ones."""
    given, right = json.loads(Path(path).read_text()), json.loads((folder / "right_answers.json").read_text())
    wrong = [i + 1 for i, (a, b) in enumerate(zip(given, right, strict=True)) if a.strip().upper() != b]
    return {"right": 100 * (1 - len(wrong) / len(right)), "wrong": wrong}


# What the computer measures


def on_white(rgba):
    """Returns uint8 (n, height, width, 3) of images with transparent ground."""
    alpha = rgba[..., 3:].astype("float32") / 255
    return np.round(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def thumbnails(images):
    """Returns float32 (n, THUMBNAIL**2 * 3) in [0, 1]: averages over equal squares."""
    side = images.shape[1] // THUMBNAIL
    blocks = images.reshape(len(images), THUMBNAIL, side, THUMBNAIL, side, 3)
    return blocks.mean((2, 4), dtype="float32").reshape(len(images), -1) / 255


def nearest(images, known):
    """Returns, for each image, the index of the nearest thumbnail of `known`."""
    own = thumbnails(images)
    distances = (known**2).sum(1) - 2 * own @ known.T
    return distances.argmin(1)


def measure_labels(model, pictures, known, count=300, seed=0):
    """Returns the percentage of labels whose image is nearest to a picture that carries the label."""
    rng = np.random.default_rng(seed)
    labels = sorted({concept.names[0] for concept in pictures.concepts if concept.weight >= 1})
    labels = [labels[i] for i in rng.permutation(len(labels))[:count]]
    found = nearest(generate(model, labels, seed), known)
    right = [label in pictures.concepts[i].names for label, i in zip(labels, found, strict=True)]
    misses = [(a, pictures.names[i]) for a, i, good in zip(labels, found, right, strict=True) if not good]
    return {"labels": 100 * float(np.mean(right)), "misses": misses}


def measure_colours(model, count, folder):
    items = prompts("colour", count)
    texts = [item["prompt"] for item in items]
    images = generate(model, texts)
    shares = [colour_share(image, item["colour"]) for image, item in zip(images, items, strict=True)]
    contact_sheet(images, [f"{text} {share:.2f}" for text, share in zip(texts, shares, strict=True)]).save(
        folder / "colour.png"
    )
    return {"colour": 100 * float(np.mean(np.array(shares) > COLOUR_SHARE))}


def measure_unseen(model, judge, kind, count, folder):
    items = prompts(kind, count)
    texts = [item["prompt"] for item in items]
    images = generate(model, texts)
    contact_sheet(images, texts).save(folder / f"{kind}.png")
    return judge.measure(images, items)


def draw_neighbours(model, pictures, known, folder, count=25):
    """Draws images of unseen combinations beside the pictures nearest to them: is any a copy?"""
    items = prompts("colour", count, seed=2) + prompts("beside", count, seed=2)
    texts = [item["prompt"] for item in items]
    images = generate(model, texts)
    twins = on_white(pictures.rgba[nearest(images, known)])
    both = np.stack([images, twins], 1).reshape(-1, *images.shape[1:])
    names = [name for text in texts for name in (text, "nearest")]
    contact_sheet(both, names).save(folder / "neighbours.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", help="name or folder of the model")
    parser.add_argument("--pack", help="the pack it was trained on")
    parser.add_argument("--counter", help="the weights that judge.py wrote")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--answers", help="a reader's answers to the questions; nothing else is measured then")
    parser.add_argument("--count", type=int, default=100, help="number of prompts of each kind of unseen combination")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw the pack")
    arguments = parser.parse_args()
    if arguments.answers:
        print(count_answers(arguments.answers, arguments.output))
        return

    import pack

    from keras_diffusion import StableDiffusion

    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    model = StableDiffusion.from_preset(arguments.preset)
    texts = (FOLDER / "prompts.txt").read_text().splitlines()
    start = time.perf_counter()
    images = generate(model, texts)
    result = {"num_steps": NUM_STEPS, "unconditional_guidance_scale": GUIDANCE_SCALE}
    result["seconds_per_image"] = (time.perf_counter() - start) / len(images)
    write_questions(images, texts, folder / "questions")
    for start in range(0, len(images), 100):
        part = slice(start, start + 100)
        contact_sheet(images[part], texts[part]).save(folder / f"prompts-{start // 100 + 1}.png")

    result |= measure_colours(model, arguments.count, folder)
    pictures = pack.load(arguments.pack, workers=arguments.workers)
    trained = counter()
    trained.load_weights(arguments.counter)
    judge = Judge(Stock(pictures.rgba, describe(pictures)), trained)
    for kind in ("count", "beside", "above"):
        result[kind] = measure_unseen(model, judge, kind, arguments.count, folder)
    known = thumbnails(on_white(pictures.rgba))
    result |= measure_labels(model, pictures, known)
    draw_neighbours(model, pictures, known, folder)
    (folder / "measure.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "misses"}, indent=2))


if __name__ == "__main__":
    main()
