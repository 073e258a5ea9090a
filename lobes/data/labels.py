"""Turn the label columns of a CSV into tensors."""

import hashlib

import torch

from lobes.data.utterance_tables import as_paths, read_values
from lobes.data.vocabulary import Vocabulary
from lobes.errors import UserError


def digest(values):
    """Number and short SHA-256 of a sequence of texts, to recognise it by."""
    code = hashlib.sha256("\0".join(values).encode()).hexdigest()
    return f"{len(values)} ({code[:12]})"


class Letters:
    """Transcripts as symbol indices for CTC.

    Arguments
    ---------
    column : str
        CSV column with the transcript.
    vocabulary : lobes.data.vocabulary.Vocabulary
        Symbols; by default the paper's 32.
    """

    def __init__(self, column="wrd", vocabulary=None):
        self.column = column
        self.vocabulary = vocabulary or Vocabulary()

    def check(self, path, table):
        """Raise ``UserError`` for the first row whose text cannot be encoded."""
        for line, identity, text in zip(
            table.index, table["ID"], table[self.column], strict=True
        ):
            unknown = self.vocabulary.unknown(text)
            if unknown or not text.strip():
                problem = (
                    f"characters outside the vocabulary: {' '.join(map(repr, unknown))}"
                    if unknown
                    else "the transcript is empty"
                )
                raise UserError(
                    f"{path}, line {line} ({identity}), column {self.column}: "
                    f"{problem}; write A-Z, ' and spaces only"
                )

    def digest(self):
        """What the weights of a head depend on: the symbols in their order."""
        return digest(self.vocabulary.symbols)

    def encode(self, values):
        """Symbol indices [batch, symbols] padded with blanks, and lengths [batch].

        Both are int64; the lengths count symbols.
        """
        encoded = [
            torch.tensor(self.vocabulary.encode(text), dtype=torch.int64)
            for text in values
        ]
        lengths = torch.tensor([len(symbols) for symbols in encoded])
        padded = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)
        return padded, lengths


class Categories:
    """The values of a column as class indices, in sorted order.

    Arguments
    ---------
    csv : str or sequence of str
        Training CSV whose values are the classes, or several that share one set
        of classes; read when first needed, so that it may be prepared after this
        object was made.
    column : str
        The column, ``spk_id`` for speakers.
    """

    def __init__(self, csv, column="spk_id"):
        self.csvs = as_paths(csv)
        self.column = column
        self._index = None

    @property
    def index(self):
        """Mapping from value to class index."""
        if self._index is None:
            values = set()
            for csv in self.csvs:
                values.update(read_values(csv, self.column))
            self._index = {v: i for i, v in enumerate(sorted(values))}
        return self._index

    def __len__(self):
        return len(self.index)

    def check(self, path, table):
        """Raise ``UserError`` for an empty or unknown class, or for a single one."""
        if len(self) < 2:
            raise UserError(
                f"{' and '.join(map(str, self.csvs))}, column {self.column}: all rows "
                f"have {next(iter(self.index), '')!r}; training needs at least two"
            )
        empty = table[self.column] == ""
        if empty.any():
            raise UserError(
                f"{path}, line {table.index[empty.to_numpy().argmax()]}, column "
                f"{self.column}: the cell is empty; fill it or remove the row"
            )
        unknown = ~table[self.column].isin(self.index)
        if unknown.any():
            line = table.index[unknown.to_numpy().argmax()]
            raise UserError(
                f"{path}, line {line}, column {self.column}: "
                f"{table[self.column][line]!r} is not among the {len(self)} of "
                f"{' and '.join(map(str, self.csvs))}; prepare both from the same "
                "corpus"
            )

    def digest(self):
        """What the weights of a head depend on: the classes in their order."""
        return digest(list(self.index))

    def encode(self, values):
        """Class indices [batch], int64."""
        return torch.tensor([self.index[value] for value in values])
