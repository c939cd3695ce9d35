"""CLIP's tokenizer: prompts to tokens by byte-pair encoding, and back.

Equal to `clip/simple_tokenizer.py` of OpenAI's CLIP (Radford et al. 2021,
https://github.com/openai/CLIP), whose table of merges it reads; byte-pair
encoding is Sennrich et al. 2016. Where transformers' `CLIPTokenizer` differs
from OpenAI's, this module follows OpenAI's:

- HTML is unescaped twice in every text; transformers leaves that to ftfy, which
  does not touch a text with a "<".
- "<|startoftext|>" and "<|endoftext|>" written in a prompt become the two last
  tokens, in both; but where other punctuation touches their left side, as in
  "!<|endoftext|>", they are plain text here and special in transformers.
"""

import collections
import functools
import gzip
import heapq
import html
import itertools
import pathlib

import numpy as np
import regex

from keras_diffusion import arguments

_TABLE = pathlib.Path(__file__).parent / "assets" / "bpe_simple_vocab_16e6.txt.gz"
_SPECIAL_WORDS = ("<|startoftext|>", "<|endoftext|>")
_VOCAB_SIZE = 49408
SMALLEST = 514  # tokens: one for each byte, alone and at the end of a word, and the two special ones
_END_OF_WORD = "</w>"

# A byte's token is its place here: the printable bytes of Latin-1, then the rest.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = bytes(_PRINTABLE + sorted(set(range(256)) - set(_PRINTABLE)))
_TOKEN_OF_BYTE = bytes(_BYTES.index(byte) for byte in range(256))
# The table writes a printable byte as itself and the n-th other one as chr(256 + n).
_LETTERS = [chr(code) for code in [*_PRINTABLE, *range(256, 512 - len(_PRINTABLE))]]
_BYTE_OF_LETTER = dict(zip(_LETTERS, _BYTES, strict=True))

_PIECE = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
_EDGE_OF_WORD = r"(?:(?<![\p{L}\p{N}])|(?![\p{L}\p{N}]))"

# ftfy and html.unescape leave these characters as they are.
_PLAIN_TEXT = regex.compile(r"[\t\n\f\r -%'-~]*")
# ftfy needs the square of a line's length for nested HTML and for unsorted accents:
# longer texts are repaired in parts of this length, their HTML only unescaped after.
_MAX_REPAIRED = 2048
# html.unescape fails on 4301 digits; with eight, a number is beyond Unicode already.
_CHARACTER_NUMBER = regex.compile(r"&#0*([0-9]{1,8})[0-9]*")

_MAX_CACHED_PIECES = 16384
_MAX_CACHED_LENGTH = 64


class SimpleTokenizer:
    """CLIP's tokenizer, with KerasCV's names.

    Text is repaired by ftfy, unescaped from HTML twice, folded in whitespace and
    lowered in case; it is cut into words, digits and punctuation, and each of these
    pieces is byte-pair encoded. Every `str` has tokens, whatever its characters, in
    a time about proportional to its length. In texts of more than 2048 characters
    ftfy sees 2048 at a time and no HTML.

    Args:
        vocab_size: Number of tokens, 514 to 49408. A smaller number than CLIP's leaves
            out the last merges of its table: rare words become more tokens.

    Attributes:
        start_of_text: 49406, the first token of every prompt; in a smaller vocabulary,
            the last token but one.
        end_of_text: 49407, the last token of every prompt; in a smaller vocabulary, the
            last token.
        vocab_size: Number of tokens, the added ones included.
        added_tokens: The added words, a dict from each to its tokens.
        vocab: The word of each token, a list as in CLIP's table: "</w>" ends a word.
    """

    def __init__(self, vocab_size=_VOCAB_SIZE):
        self._size = arguments.whole_number("vocab_size", vocab_size, SMALLEST, _VOCAB_SIZE)
        self.start_of_text, self.end_of_text = self._size - 2, self._size - 1
        self._set_added({})

    @property
    def vocab_size(self):
        return self._size + sum(map(len, self._added.values()))

    @property
    def added_tokens(self):
        return {word: list(tokens) for word, tokens in self._added.items()}

    @property
    def vocab(self):
        words = list(table(self._size)[0])
        for word, its in self._added.items():
            words += [""] * (len(its) - 1) + [_to_word(word)]
        return words

    def encode(self, text):
        """Turns a text into tokens.

        Args:
            text: A `str` of any length.

        Returns:
            List of `int`: start of text, the text's tokens, end of text; neither
            padded nor truncated.

        Raises:
            TypeError: If `text` is not a `str`.
        """
        _check_text("text", text)
        return [self.start_of_text, *self._encode_cleaned(_clean(text)), self.end_of_text]

    def decode(self, tokens):
        """Turns tokens back into text, cleaned and lower-case.

        Args:
            tokens: Integers in `[0, vocab_size)`.

        Returns:
            A `str` with a space behind each piece; bytes that are not UTF-8 become
            U+FFFD, start and end of text are written out.

        Raises:
            ValueError: If an element is not an integer of this range.
        """
        words, text = self.vocab, bytearray()
        for index, token in enumerate(tokens):
            if not isinstance(token, (int, np.integer)) or not 0 <= token < len(words):
                raise ValueError(
                    f"Tokens must be integers from 0 to {len(words) - 1}. Received: tokens[{index}]={token!r:.200}"
                )
            text += bytes(_BYTE_OF_LETTER[letter] for letter in words[token])
        return text.decode("utf-8", errors="replace").replace(_END_OF_WORD, " ")

    def add_tokens(self, tokens, count=1):
        """Adds words that become one token or more each, as textual inversion needs them.

        A word is cleaned like any text, so its case does not matter. It is found
        before all else, the longest of several first, but not inside a longer word
        or number: "<cat-toy>" is found in "two<cat-toy>s", "zwx" not in "zwxs".

        Args:
            tokens: A word such as "<cat-toy>", or a list of them. They get the
                tokens from the present `vocab_size` on; the text encoder's embedding
                must have a row for each.
            count: Number of tokens that each word becomes, 1 to 1000; or a list
                of them, one for each word.

        Returns:
            How many words were added; on an error, none is.

        Raises:
            TypeError: If a word is not a `str` or `count` not an `int`.
            ValueError: If a word is empty or is one token already, or `count` is not
                from 1 to 1000, or not one for each word.
        """
        named, added = list(_named("tokens", tokens)), dict(self._added)
        counts = count if isinstance(count, list) else [count] * len(named)
        if len(counts) != len(named):
            raise ValueError(f"`count` must have a number for each word. Received: {len(counts)} for {len(named)}")
        first = self.vocab_size
        for (name, token), each in zip(named, counts, strict=True):
            each = arguments.whole_number("count", each, 1, 1000)
            word = _clean(token)
            known = added[word][:1] if word in added else self._encode_cleaned(word)
            if len(known) < 2:
                problem = f"is token {known[0]} already" if known else "is empty"
                raise ValueError(f"A new word {problem}; choose one like '<word>'. Received: {name}={token!r:.200}")
            added[word] = range(first, first + each)
            first += each
        new = len(added) - len(self._added)
        self._set_added(added)
        return new

    def tokenize(self, prompts, *, pad_token, length=77):
        """Turns prompts into the array that a text encoder takes.

        Args:
            prompts: A `str`, or a list of `b` of them.
            pad_token: The token behind the end of text: 49407 for Stable Diffusion
                1.x, 0 for 2.x. In a smaller vocabulary, 49407 is its end of text.
            length: Number of tokens of each row, start and end of text included.

        Returns:
            NumPy array of shape `(b, length)`, int32.

        Raises:
            TypeError: If a prompt is not a `str`.
            ValueError: If there is no prompt, or one has more than `length` tokens.
        """
        rows, pad_token = [], self.padding(pad_token)
        for name, prompt in _named("prompts", prompts):
            row = self.encode(prompt)
            if len(row) > length:
                rest = self.decode(row[length - 1 : -1][:length]).strip()
                raise ValueError(
                    f"A prompt can have {length} tokens, start and end of text included; this one has {len(row)}. "
                    f"Leave out what does not fit, from {rest!r:.200} on. Received: {name}={prompt!r:.200}"
                )
            rows.append(row + [pad_token] * (length - len(row)))
        return np.array(rows, "int32")

    def padding(self, pad_token):
        """Returns the token that fills a row up, given that of CLIP's whole vocabulary."""
        return self.end_of_text if pad_token == _VOCAB_SIZE - 1 else pad_token

    def _set_added(self, added):
        longest_first = sorted(added, key=len, reverse=True)
        words = "|".join(map(regex.escape, longest_first)) or "(?!)"  # or what is never found
        self._added = added
        self._added_word = regex.compile(f"({_EDGE_OF_WORD}(?:{words}){_EDGE_OF_WORD})")

    def _encode_cleaned(self, text):
        tokens = []
        for index, part in enumerate(self._added_word.split(text)):
            if index % 2:  # what the pattern found, between what it did not
                tokens += self._added[part]
            else:
                for piece in _PIECE.findall(part):
                    encode = _encode_cached if len(piece) <= _MAX_CACHED_LENGTH else _encode_piece
                    tokens += encode(piece, self._size)
        return tokens


def _named(name, texts):
    """Each text with its name for an error message."""
    if isinstance(texts, str):
        return [(name, texts)]
    if not isinstance(texts, (list, tuple)):
        raise TypeError(f"`{name}` must be a str or a list of str. Received: {name}={texts!r:.200}")
    if not texts:
        raise ValueError(f"`{name}` must hold at least one str. Received: {name}={texts}")
    named = [(f"{name}[{index}]", text) for index, text in enumerate(texts)]
    for element, text in named:
        _check_text(element, text)
    return named


def _check_text(name, text):
    if not isinstance(text, str):
        raise TypeError(f"`{name}` must be a str. Received: {name}={text!r:.200} of type {type(text).__name__}")


def _clean(text):
    if not _PLAIN_TEXT.fullmatch(text):
        import ftfy  # slow to import, and most prompts do not need it

        unescape_html = "auto" if len(text) <= _MAX_REPAIRED else False
        text = ftfy.fix_text(text, unescape_html=unescape_html, max_decode_length=_MAX_REPAIRED)
        for _ in range(2):
            text = html.unescape(_CHARACTER_NUMBER.sub(r"&#\1", text))
    return " ".join(text.split()).lower()


def _to_word(text):
    return "".join(_LETTERS[token] for token in text.encode().translate(_TOKEN_OF_BYTE)) + _END_OF_WORD


@functools.cache
def table(size=_VOCAB_SIZE):
    """The words of all tokens, and the merges: a pair of tokens to the token it becomes.

    Args:
        size: Number of tokens, from `SMALLEST` to CLIP's 49408.
    """
    words = _LETTERS + [letter + _END_OF_WORD for letter in _LETTERS]
    token_of_word = {word: token for token, word in enumerate(words)}
    merges = {}
    with gzip.open(_TABLE, "rt", encoding="utf-8") as lines:
        next(lines)  # the table's name
        last = size - len(_SPECIAL_WORDS)
        for token, line in zip(range(len(words), last), lines, strict=False):
            left, right = line.split()
            token_of_word[left + right] = token
            merges[token_of_word[left], token_of_word[right]] = token
    return [*token_of_word, *_SPECIAL_WORDS], merges


def _encode_piece(piece, size=_VOCAB_SIZE):
    """The tokens of a piece: its bytes, merged in the order of the table.

    The original looks again and again for the pair that comes first in the table, and
    merges all its occurrences from left to right. In the table a pair comes after the
    pairs that make its halves, so a merge only brings about pairs that come later: it is
    enough to note where each pair occurs and to go through the table once. The order of
    the places only matters to pairs of equal halves, which are noted from left to right.
    """
    if piece in _SPECIAL_WORDS:
        return (size - len(_SPECIAL_WORDS) + _SPECIAL_WORDS.index(piece),)
    merges = table(size)[1]
    tokens = [*piece.encode().translate(_TOKEN_OF_BYTE), None]  # None bounds both ends
    tokens[-2] += len(_LETTERS)  # the last byte of a word has its own token
    before, after = [*range(-1, len(tokens) - 1)], [*range(1, len(tokens)), 0]  # a linked list
    places = collections.defaultdict(list)  # of each merged token: where its left half may be
    for left, pair in enumerate(itertools.pairwise(tokens)):
        places[merges.get(pair)].append(left)
    places.pop(None)  # the pairs that are not in the table
    queue = sorted(places)
    while queue:
        merged = heapq.heappop(queue)
        for left in places.pop(merged):
            right = after[left]
            if merges.get((tokens[left], tokens[right])) != merged:
                continue  # one of the two has been merged with another since
            tokens[left], tokens[right] = merged, None
            after[left] = after[right]
            before[after[right]] = left
            for start in (before[left], left):
                longer = merges.get((tokens[start], tokens[after[start]]))
                if longer is None:
                    continue
                if longer not in places:
                    heapq.heappush(queue, longer)
                places[longer].append(start)
    return tuple(token for token in tokens if token is not None)


_encode_cached = functools.lru_cache(_MAX_CACHED_PIECES)(_encode_piece)
