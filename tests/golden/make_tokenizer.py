"""Derives tokenizer.json from OpenAI's tokenizer, or checks ours against the originals.

    python tests/golden/make_tokenizer.py            # writes the fixture
    python tests/golden/make_tokenizer.py --table    # writes the table of merges
    python tests/golden/make_tokenizer.py --check    # compares 24,000 strings

Needs OpenAI's file as clip-anytorch carries it and, for --check, transformers' own
tokenizer, which is in Python up to version 4. In an environment of its own:

    pip install ftfy regex numpy "transformers<5"
    pip install --no-deps clip-anytorch
"""

import argparse
import gzip
import html
import importlib.util
import json
import pathlib
import random
import sys
import tempfile
import unicodedata

HERE = pathlib.Path(__file__).parent
PACKAGE = HERE.parents[1] / "src" / "keras_diffusion"
FIXTURE = HERE / "tokenizer.json"
TABLE = PACKAGE / "prompts" / "assets" / "bpe_simple_vocab_16e6.txt.gz"
NUM_MERGES = 48894


def read_table():
    return gzip.decompress(TABLE.read_bytes()).decode().splitlines()


# ---- The strings


def characters(*ranges):
    return [chr(code) for first, last in ranges for code in range(first, last + 1)]


LETTERS = characters((97, 122))
ACCENTED = characters((0xC0, 0x17F), (0x1E00, 0x1EFF), (0x370, 0x4FF))
CJK = characters((0x3041, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xFF01, 0xFFEE))
EMOJI = characters((0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x2600, 0x27BF))
PEOPLE = list("👨👩👧👦🧑")
SKIN = ["", "", *characters((0x1F3FB, 0x1F3FF))]
CONTROL = [
    *characters((0, 0x1F), (0x7F, 0x9F), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0xFFF9, 0xFFFD)),
    *characters((0xFE00, 0xFE0F)), "\ufeff", "\xad", "\x1b[31m", "\x1b[0m", "\r\n", "\u3000", "\u180e",
]  # fmt: skip
NUMBERS = list("0123456789") + list("²³¹¼½¾ⅣⅷⅫ①⑳٠١٢٣४५６７８〇三") + [".", ",", "-", "%", "x", "$", "°"]
ENTITIES = [
    "&amp;", "&lt;", "&gt;", "&quot;", "&#39;", "&#x27;", "&rsquo;", "&eacute;", "&EACUTE;", "&Atilde;&copy;", "&nbsp;",
    "&hellip;", "&amp;amp;", "&amp;amp;lt;", "&amp;eacute;", "&eacute", "&copy2", "&notit;", "&#0;", "&#128;", "&#x80;",
    "&#xD800;", "&#1114112;", "&#8364", "&#x1F600;", "&bogus;", "&;", "&#", "&#x;", "&", "<b>", "</b>", "<br/>", "<!--",
]  # fmt: skip
CONTRACTIONS = ["don't", "it's", "we're", "I've", "I'm", "she'll", "he'd", "DON'T", "IT'S", "'S", "'s's", "'d've"]
MARKERS = ["<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|endoftext|", "|>", "!", "</w>", "<|endofteXt|>s"]
MEDIUMS = ["a photo of", "an oil painting of", "trending on ArtStation", "8k", "f/1.8", "(masterpiece:1.3)"]
ENCODINGS = ["cp1252", "latin-1", "mac_roman", "cp437", "cp1251"]
SPACES = [" ", " ", "  ", "\t", "\n", "\n\n", "\xa0", "\u2009"]
BY_HAND = ["", " ", "\0", "\ud83d", "\ud83d\ude00", "a\udfff", "\u202eabc", "'ſ", "\u0345", "İstanbul", "ΣΑΣ", "ﬁne"]


def make_words(pick):
    """Makers of strings; `pick` is a random.Random."""
    merges = read_table()[1:]
    endings = [merge.replace(" ", "")[:-4] for merge in merges if merge.endswith("</w>") and merge.isascii()]

    def join(alphabet, most=12, separator=""):
        return separator.join(pick.choices(alphabet, k=pick.randint(1, most)))

    def sentence():
        return join(endings, 12, " ")

    def family():
        people = [pick.choice(PEOPLE) + pick.choice(SKIN) for _ in range(pick.randint(2, 4))]
        return "\u200d".join(people) + pick.choice(["", "\ufe0f", "\u200d❤️\u200d🔥", "🇩🇪", "1️⃣"])

    def accents():
        form = pick.choice(["NFC", "NFD", "NFKC", "NFKD"])
        return unicodedata.normalize(form, join([join(ACCENTED + LETTERS, 8) for _ in range(3)], 5, " "))

    def mojibake():
        text = pick.choice([accents, family, cjk, curly])()
        for _ in range(pick.choice([1, 1, 2])):
            text = text.encode(errors="replace").decode(pick.choice(ENCODINGS), errors="replace")
        return text

    def cjk():
        return join(CJK, 10)

    def curly():
        return sentence().replace(" ", " “", 1).replace("e", "’s ", 1) + "” – … "

    def any_character():
        limit = pick.choice([0x250, 0x3000, 0x10000, 0x110000])
        return "".join(chr(pick.randrange(limit)) for _ in range(pick.randint(1, 16)))

    def title():
        return pick.choice([str.upper, str.title, str.swapcase])(sentence() + " " + accents())

    def repeated():
        return join(LETTERS + EMOJI, 3) * pick.randint(1, 40)

    def markup():
        return join(ENTITIES + endings[:20], 6, pick.choice(["", " "]))

    def prompt():
        return join(MEDIUMS + [sentence() for _ in range(3)], 6, ", ")

    simple = [
        lambda: join(EMOJI, 8), lambda: join(NUMBERS), lambda: join(CONTRACTIONS, 4, " "),
        lambda: join(CONTROL + LETTERS), lambda: join(MARKERS + endings[:9], 5, pick.choice(["", " "])),
        lambda: join(LETTERS, 40), lambda: join(characters((32, 126)), 40), lambda: join(SPACES + endings[:50]),
    ]  # fmt: skip
    made = [sentence, family, accents, mojibake, cjk, curly, any_character, title, repeated, markup, prompt]
    return simple + made


def make_strings(count, seed=0):
    """`count` strings, or some more: each maker in turn, and every second one joined to another."""
    pick = random.Random(seed)
    makers = make_words(pick)
    strings = BY_HAND + CONTRACTIONS + ENTITIES + MARKERS
    while len(strings) < count:
        for make in makers:
            strings.append(make())
            strings.append(pick.choice(["", " ", ", "]).join([make(), pick.choice(makers)()]))
    return strings


# ---- The originals


def load_original():
    folder = importlib.util.find_spec("clip").submodule_search_locations[0]
    sys.path.insert(0, folder)  # the package itself would import torch
    import simple_tokenizer

    return simple_tokenizer.SimpleTokenizer()


def load_transformers(original):
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = pathlib.Path(folder) / "vocab.json", pathlib.Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps(original.encoder))
        merges.write_text("\n".join(["#version: 0.2", *map(" ".join, original.bpe_ranks)]), "utf-8")
        tokenizer = CLIPTokenizer(str(vocabulary), str(merges))
    if not hasattr(tokenizer, "bpe_ranks"):
        sys.exit('The comparison is with the tokenizer in Python: pip install "transformers<5"')
    return tokenizer


def why(text):
    """Why transformers' tokens may differ from OpenAI's."""
    import ftfy

    fixed = ftfy.fix_text(text)
    if html.unescape(html.unescape(fixed)) != fixed:
        return "HTML that ftfy leaves"
    return "start or end of text in punctuation" if "<|" in fixed else "unexplained"


# ---- Commands


def write_table():
    folder = importlib.util.find_spec("clip").submodule_search_locations[0]
    table = gzip.decompress((pathlib.Path(folder) / TABLE.name).read_bytes())
    lines = table.split(b"\n")[: 1 + NUM_MERGES]
    TABLE.write_bytes(gzip.compress(b"\n".join(lines) + b"\n", 9, mtime=0))


def write_fixture():
    original = load_original()
    # What is not assigned yet may become a letter.
    strings = [text for text in make_strings(440, seed=1) if "Cn" not in map(unicodedata.category, text)]
    pairs = [(text, [49406, *original.encode(text), 49407]) for text in strings]
    lines = ",\n".join(json.dumps(pair, separators=(",", ":")) for pair in pairs)
    FIXTURE.write_text(f"[\n{lines}\n]\n")


def check():
    sys.path.insert(0, str(PACKAGE))  # the package itself would import Keras
    from tokenizer import SimpleTokenizer

    ours, original = SimpleTokenizer(), load_original()
    transformers = load_transformers(original)
    if read_table()[1:] != [" ".join(pair) for pair in original.bpe_ranks]:
        sys.exit("The table differs from OpenAI's: write it again with --table")
    strings = make_strings(24000)
    wrong, differing = 0, {}
    for text in strings:
        tokens = ours.encode(text)
        expected = [49406, *original.encode(text), 49407]
        if tokens != expected or ours.decode(tokens) != original.decode(expected):
            wrong += 1
            print(f"differs from OpenAI's: {text!r}\n  {tokens}\n  {expected}")
        if transformers.encode(text) != expected:
            differing.setdefault(why(text), []).append(text)
    print(f"{len(strings)} strings, {len(set(strings))} different; {wrong} differ from OpenAI's tokenizer")
    for reason, texts in differing.items():
        print(f"transformers' differs from both on {len(texts)}: {reason}, such as {texts[:3]}")
    return wrong or len(differing.get("unexplained", []))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    sys.exit(bool(check()) if options.check else write_table() if options.table else write_fixture())
