"""Labels: how the cells of a CSV's column become the tensors that a task learns."""

import hashlib
from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING

import torch

from lobes.data import utterance_tables
from lobes.data.vocabulary import Vocabulary
from lobes.errors import UserError

if TYPE_CHECKING:
    import pandas


class Label:
    """What a stream or evaluation set asks of a label; ``encode`` must be written.

    Attributes:
        column: The CSV's column that the label is made of.
    """

    column: str

    def check(self, path: str | PathLike, table: "pandas.DataFrame") -> None:
        """Raise ``UserError`` for a row of a CSV that cannot be encoded.

        Arguments:
            path: Where the table was read, for messages.
            table: As ``lobes.data.utterance_tables.read_table`` gives it: the index is
                the line in the CSV.
        """

    def digest(self) -> str | None:
        """What the weights of a head depend on, or None: nothing in the data.

        A run that continues compares it.
        """

    def encode(
        self, values: list[str]
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """A tensor [batch], or a padded one [batch, ...] and the lengths [batch]."""
        raise NotImplementedError


class Letters(Label):
    """Transcripts as symbol indices for CTC.

    Arguments:
        column: CSV column with the transcript.
        vocabulary: The symbols; by default the paper's 32.
    """

    def __init__(self, column: str = "wrd", vocabulary: Vocabulary | None = None):
        self.column = column
        self.vocabulary = vocabulary or Vocabulary()

    def check(self, path: str | PathLike, table: "pandas.DataFrame") -> None:
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

    def digest(self) -> str:
        """The symbols in their order, as their number and a short hash."""
        return _recognisable(self.vocabulary.symbols)

    def encode(self, values: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
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


class Categories(Label):
    """The values of a column as class indices, in sorted order.

    Arguments:
        csv: The training CSV whose values are the classes, or several that share one
            set of classes. It is read when first needed: it may be prepared after this
            object was made.
        column: The column, ``spk_id`` for speakers.
    """

    def __init__(self, csv: utterance_tables.CSVPaths, column: str = "spk_id"):
        self.csvs = utterance_tables.as_paths(csv)
        self.column = column
        self._index = None

    @property
    def index(self) -> dict[str, int]:
        """The class index of each value."""
        if self._index is None:
            read = utterance_tables.read_values
            values = set().union(*(read(csv, self.column) for csv in self.csvs))
            self._index = {value: i for i, value in enumerate(sorted(values))}
        return self._index

    def __len__(self) -> int:
        return len(self.index)

    def check(self, path: str | PathLike, table: "pandas.DataFrame") -> None:
        """Raise ``UserError`` for an empty or unknown class, or for a single one."""
        csvs = " and ".join(map(str, self.csvs))
        if len(self) < 2:
            raise UserError(
                f"{csvs}, column {self.column}: all rows have "
                f"{next(iter(self.index), '')!r}; training needs at least two"
            )
        cells = table[self.column]
        utterance_tables.refuse_empty(path, cells)
        problem = f"is not among the {len(self)} of {csvs}; prepare both from the same"
        utterance_tables.refuse_cell(
            path,
            cells,
            ~cells.isin(self.index),
            lambda cell: f"{cell!r} {problem} corpus",
        )

    def digest(self) -> str:
        """The classes in their order, as their number and a short hash."""
        return _recognisable(self.index)

    def encode(self, values: list[str]) -> torch.Tensor:
        """Class indices [batch], int64."""
        return torch.tensor([self.index[value] for value in values])


def _recognisable(values: Iterable[str]) -> str:
    """The number and the short SHA-256 of some texts."""
    values = list(values)
    code = hashlib.sha256("\0".join(values).encode()).hexdigest()
    return f"{len(values)} ({code[:12]})"
