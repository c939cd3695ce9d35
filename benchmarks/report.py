"""Makes Markdown tables of what `run.py` and `gpu.py` measured, and a plot of what raced; the last of repeats counts.

python benchmarks/report.py measured.jsonl                      # the table
python benchmarks/report.py measured.jsonl --plot measured.svg  # and the plot
"""

import argparse
import json
from html import escape
from pathlib import Path

RACE = ("stage", "size", "batch", "steps", "dtype")
COLUMNS = {  # heading → (key, digits)
    "seconds": ("seconds", 2),
    "against, s": ("seconds_against", 2),
    "ratio": ("seconds_ratio", 2),
    "ratio of CPU time": ("cpu_ratio", 2),
    "peak, MB": ("peak_mb", 0),
    "against, MB": ("peak_mb_against", 0),
    "built and first, s": ("cold", 1),
    "against, built and first, s": ("cold_against", 1),
}
WIDTH, LABELS, BAR = 800, 340, 22  # of the plot, in pixels


def last_races(rows):
    """The last row of every race and pair of contenders, in the order in which they came first."""
    for row in rows:
        for of in ("", "_against"):
            row[f"cold{of}"] = row[f"built_seconds{of}"] + row[f"first_seconds{of}"]
    return list({(*(row.get(key) for key in RACE), row["contender"], row["against"]): row for row in rows}.values())


def described(row):
    """What was raced, with the options that matter to the question."""
    steps = f", {row['steps']} steps" if row["stage"] in ("image", "cold") else ""
    size = "" if row["stage"] in ("cold", "encode") else f", {row['size']} × {row['size']}"
    return f"{row['stage']}{size}, batch {row['batch']}{steps}, {row.get('dtype', 'float32')}"


def table(rows):
    lines = [["question", "contender", "against", *COLUMNS], ["---"] * (3 + len(COLUMNS))]
    for row in rows:
        figures = [f"{row[key]:.{digits}f}" if key in row else "" for key, digits in COLUMNS.values()]
        lines.append([described(row), row["contender"], row["against"], *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gpu_table(rows):
    """One line for each contender and question of gpu.py that has an answer: seconds, rate, and ratio to diffusers."""
    answers = {
        (row["stage"], row["batch"], row["contender"]): row
        for row in rows
        if "seconds_all" in row and not row.keys() & {"error", "failed"}
    }
    headings = "question, batch, contender, seconds, steps/s, / diffusers, / compiled, first (s), peak (MB)".split(", ")
    lines = [headings, ["---"] * len(headings)]
    for (stage, batch, contender), row in answers.items():
        rate = f"{batch * row['steps'] / row['seconds']:.1f}" if stage == "latents" else ""
        peers = [answers.get((stage, batch, peer)) for peer in ("diffusers", "diffusers-compiled")]
        ratios = [f"{row['seconds'] / peer['seconds']:.2f}" if peer else "" for peer in peers]
        figures = [f"{row['seconds']:.3f}", rate, *ratios, f"{row['first_seconds']:.1f}", row.get("peak_gpu_mb", "")]
        lines.append([stage, batch, contender, *figures])
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def plot(rows):
    """An SVG of bars: the time of each contender over that of the one it raced, which is the line at 1."""
    scale = (WIDTH - LABELS - 60) / max(1.0, *(row["seconds_ratio"] for row in rows))
    height = BAR * (len(rows) + 2)
    shapes = [f'<line x1="{LABELS + scale}" x2="{LABELS + scale}" y1="{BAR}" y2="{height}" stroke="black"/>']
    shapes += [f'<text x="{LABELS + scale}" y="{BAR - 6}" text-anchor="middle">as long as the other</text>']
    for i, row in enumerate(rows, 1):
        y, length = i * BAR + 4, row["seconds_ratio"] * scale
        name = escape(f"{row['contender']} against {row['against']}")
        shapes += [
            f"<g><title>{escape(described(row))}: {row['seconds']} s against {row['seconds_against']} s</title>",
            f'<rect x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR - 6}" fill="#4878a8"/>',
            f'<text x="{LABELS - 6}" y="{y + 12}" text-anchor="end">{row["stage"]}: {name}</text>',
            f'<text x="{LABELS + length + 6:.1f}" y="{y + 12}">{row["seconds_ratio"]:.2f}</text></g>',
        ]
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    style = 'font-family="sans-serif" font-size="12"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', background, *shapes, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, help="JSON lines of `run.py --json` or of `gpu.py --json`")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.measured.read_text().splitlines() if line.strip()]
    if not rows:
        raise SystemExit(f"No measurements in {options.measured}.")
    for machine in dict.fromkeys(f"{row['machine']}; {json.dumps(row['packages'])}" for row in rows):
        print(machine, end="\n\n")
    races = last_races([row for row in rows if "against" in row])
    on_gpu = [row for row in rows if "against" not in row]
    print(*([table(races)] if races else []), *([gpu_table(on_gpu)] if on_gpu else []), sep="\n\n")
    if options.plot and races:
        options.plot.write_text(plot(races), encoding="utf-8")


if __name__ == "__main__":
    main()
