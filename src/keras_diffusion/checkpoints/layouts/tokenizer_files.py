"""Reads and writes the words that a tokenizer's files add to CLIP's."""

import os
from pathlib import Path

from keras_diffusion.checkpoints.layouts.files import naming, read_json, write_json
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.prompts.tokenizer import SMALLEST, SimpleTokenizer, table
from keras_diffusion.system import limits

ADDED = "added_tokens.json"
VOCABULARY = "vocab.json"
WORDS_IN = {  # file → how to find in it the words, each with its token
    "tokenizer.json": lambda file: {token["content"]: token["id"] for token in file.get("added_tokens", ())},
    "tokenizer_config.json": lambda file: {
        token["content"]: int(place) for place, token in (file.get("added_tokens_decoder") or {}).items()
    },
    ADDED: lambda file: file,
}
LARGEST = 8 * limits.JSON  # bytes; CLIP's tokenizer.json has 2 MB


def read_tokenizer(source=None, rows=None):
    """Makes the tokenizer that files describe.

    Args:
        source: The folder of a tokenizer as transformers saves it, or that of a whole model; or one of its files; or a
            `SimpleTokenizer`. None is CLIP's without additions, as much of it as the text encoder knows.
        rows: How many tokens the text encoder knows, or None.

    Returns:
        A new `SimpleTokenizer`.

    Raises:
        TypeError: If `source` is anything else.
        CorruptCheckpointError: If there are no such files, or one is damaged.
        CheckpointMismatchError: If words have other tokens than those that follow CLIP's, or the text encoder knows
            more tokens or fewer.
    """
    if isinstance(source, SimpleTokenizer):
        size = source.end_of_text + 1
        words = [(word, len(tokens)) for word, tokens in source.added_tokens.items()]
    elif isinstance(source, str | os.PathLike):
        folder = _folder(Path(source))
        size = FIRST if rows is None or rows >= FIRST else _size_in(folder)
        words = _words(folder, size)
    elif source is None:
        size, words = base_size(rows or FIRST), []
    else:
        raise TypeError(f"`tokenizer` must be a SimpleTokenizer or where its files are. Received: {source!r:.200}")
    tokenizer = SimpleTokenizer(size)
    if words:
        with naming(source):
            tokenizer.add_tokens(*map(list, zip(*words, strict=True)))
    if rows is not None and rows != tokenizer.vocab_size:
        raise CheckpointMismatchError(
            f"The text encoder knows {rows} tokens and the tokenizer {tokenizer.vocab_size}. Give the tokenizer that "
            f"belongs to it by `tokenizer=`, a folder with {ADDED} or the like. Received: {source!r:.200}",
            mismatched=["tokenizer"],
        )
    return tokenizer


FIRST = SimpleTokenizer().vocab_size


def base_size(vocabulary):
    """Returns how many tokens of CLIP a text encoder of a vocabulary has."""
    # One that is too small to spell every byte belongs to no tokenizer of ours; a larger one has added words.
    return vocabulary if SMALLEST <= vocabulary < FIRST else FIRST


def _folder(path):
    """The folder that holds the files."""
    if not path.exists():
        raise CorruptCheckpointError(f"There is no such folder or file. Received: tokenizer={str(path)!r:.200}")
    folder = path.parent if path.is_file() else path
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def _size_in(folder):
    """Returns how many tokens of CLIP vocab.json lists; a table that does not begin as CLIP's counts as all."""
    if not (folder / VOCABULARY).is_file():
        return FIRST
    listed = read_json(folder / VOCABULARY, LARGEST)
    size = base_size(len(listed))
    return size if size < FIRST and listed == {word: token for token, word in enumerate(table(size)[0])} else FIRST


def _words(folder, size):
    """The added words with how many tokens each has: "<a>", "<a>_1" and so on are one, as diffusers takes them."""
    found = {}
    for name, words_in in WORDS_IN.items():
        if (folder / name).is_file():
            try:
                found |= dict(words_in(read_json(folder / name, LARGEST)).items())
                added = sorted((int(token), str(word)) for word, token in found.items() if int(token) >= size)
            except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
                if isinstance(error, CorruptCheckpointError):
                    raise
                raise CorruptCheckpointError(f"{folder / name} lists no words with their tokens") from error
    added = added if found else []
    if [token for token, _ in added] != list(range(size, size + len(added))):
        raise CheckpointMismatchError(
            f"Added words must have the tokens from {size} on, one after the other. "
            f"Received: {added!r:.200} in {folder}",
            mismatched=[word for _, word in added],
        )
    if len(added) > limits.WORDS:
        raise CheckpointMismatchError(f"A tokenizer may add {limits.WORDS} words. Received: {len(added)} in {folder}")
    words = []
    for _, word in added:
        if words and word == f"{words[-1][0]}_{words[-1][1]}":
            words[-1][1] += 1
        else:
            words.append([word, 1])
    return words


def write_words(folder, tokenizer):
    """Writes the words that a tokenizer has beyond CLIP's, if there are any."""
    words = {
        word if i == 0 else f"{word}_{i}": token
        for word, tokens in tokenizer.added_tokens.items()
        for i, token in enumerate(tokens)
    }
    if words:
        write_json(folder / ADDED, words)
