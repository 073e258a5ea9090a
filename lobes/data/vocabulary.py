"""The letters of the speech task: 32 symbols, blank first; and edit distances."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from lobes.errors import UserError

# Pairs of texts whose edit distances are computed together.
_PAIRS = 128

#: The letters that wav2vec2 models are fine-tuned with, in the order of
#: ``facebook/wav2vec2-base-960h``. Index 0 is the CTC blank, ``|`` the boundary
#: between two words.
VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")


class Vocabulary:
    """Turn upper-case transcripts into symbol indices and back.

    Arguments:
        symbols: Symbols by index; the first is the CTC blank, ``|`` the word boundary.

    Example:
        >>> vocabulary = Vocabulary()
        >>> vocabulary.encode("I SEE")
        [10, 4, 12, 5, 5]
        >>> vocabulary.decode([0, 10, 10, 4, 0, 12, 5, 0, 5])
        'I SEE'
    """

    blank_index = 0

    def __init__(self, symbols: Sequence[str] = VOCABULARY):
        self.symbols = tuple(symbols)
        self._index = {symbol: index for index, symbol in enumerate(self.symbols)}
        # Only single characters can occur in a transcript.
        self.letters = frozenset(s for s in self.symbols if len(s) == 1) - {"|"}

    def __len__(self) -> int:
        return len(self.symbols)

    def unknown(self, text: str) -> list[str]:
        """Characters of ``text`` that have no symbol, in order, each once."""
        known = self.letters | {" "}
        return list(dict.fromkeys(c for c in text if c not in known))

    def encode(self, text: str) -> list[int]:
        """Symbol indices of a transcript, words separated by ``|``.

        Raises ``UserError`` when a character has no symbol.
        """
        unknown = self.unknown(text)
        if unknown:
            raise UserError(
                f"the transcript {text!r} has characters outside the vocabulary: "
                f"{' '.join(map(repr, unknown))}; spell them with A-Z and '"
            )
        return [self._index[c] for c in "|".join(text.split())]

    def decode(self, indices: Iterable[int]) -> str:
        """Greedy CTC decoding of one frame-by-frame index sequence.

        Repeats collapse, blanks vanish, ``|`` becomes a space. The other special
        symbols carry no letter and are left out.
        """
        runs = [index for index, _ in itertools.groupby(indices)]
        symbols = [self.symbols[i] for i in runs if i != self.blank_index]
        text = "".join(s for s in symbols if len(s) == 1)
        return " ".join(text.replace("|", " ").split())


def ctc_frames(symbols: Sequence) -> int:
    """Frames that CTC needs at least: one a symbol, and a blank between two equal ones.

    ``symbols`` is a transcript (single spaces between the words) or its indices.
    """
    return len(symbols) + sum(a == b for a, b in itertools.pairwise(symbols))


def edit_distances(
    references: Sequence[Sequence], hypotheses: Sequence[Sequence]
) -> np.ndarray:
    """The fewest insertions, deletions and substitutions between each pair.

    Many pairs at once: one row of Levenshtein's table is a few array operations.

    Arguments:
        references, hypotheses: Pairs of texts (letters count) or of lists of words.

    Returns:
        int64 ``[pairs]``.

    Example:
        >>> edit_distances(["A CAT", ""], ["A BAT X", "NO"]).tolist()
        [3, 2]
    """
    lengths = np.array(
        [(len(r), len(h)) for r, h in zip(references, hypotheses, strict=True)]
    ).reshape(-1, 2)
    distances = lengths[:, 1].copy()
    order = np.argsort(lengths[:, 0], kind="stable")
    for first in range(0, len(order), _PAIRS):
        rows = order[first : first + _PAIRS]
        known = {}
        left, right = (
            _codes([texts[row] for row in rows], known)
            for texts in (references, hypotheses)
        )
        places = np.arange(right.shape[1] + 1)
        table = np.tile(places, (len(rows), 1))
        for place in range(left.shape[1]):
            changed = table[:, :-1] + (right != left[:, place, None])
            table[:, 1:] = np.minimum(table[:, 1:] + 1, changed)
            table[:, 0] = place + 1
            # An insertion costs 1 more than the cell to the left.
            table = np.minimum.accumulate(table - places, axis=1) + places
            ended = np.flatnonzero(lengths[rows, 0] == place + 1)
            distances[rows[ended]] = table[ended, lengths[rows[ended], 1]]
    return distances


def _codes(texts, known):
    """Numbers [text, tokens], the same for equal tokens; -1 where a text has ended."""
    width = max(map(len, texts))
    codes = np.full((len(texts), width), -1)
    for row, text in zip(codes, texts, strict=True):
        row[: len(text)] = [known.setdefault(token, len(known)) for token in text]
    return codes
