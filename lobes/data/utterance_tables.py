"""CSVs of utterances: one row each, read with every problem named by its line."""

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lobes.data.audio import SAMPLE_RATE, ByteRange
from lobes.errors import UserError
from lobes.system.lazy import lazy

pandas = lazy("pandas")

#: One CSV, or several that are one corpus.
CSVPaths = str | os.PathLike | Sequence[str | os.PathLike]

#: Columns that hold numbers; every other column is text.
NUMBERS = ("duration", "start", "stop", "mean", "std", "offset", "size")

# Columns that count only together, and their cells for the rows of a table that lacks
# them where it is joined with one that has them.
_TOGETHER = {("mean", "std"): np.nan, ("offset", "size"): -1}

# Rows that are held as lists of cells; they take ten times the room of the table.
_ROWS = 1 << 16


def read_table(
    path: str | os.PathLike, columns: Sequence[str] = (), extent: bool = True
) -> "pandas.DataFrame":
    """Read one CSV of utterances.

    Arguments:
        path: CSV with a header. ``ID`` and ``wav`` are required; ``duration`` (seconds)
            or ``start`` and ``stop`` (samples) give the extent. ``mean`` and ``std`` of
            the whole utterance are optional: with them a crop is read alone. So are
            ``offset`` and ``size``, the bytes of the file ``wav`` that the utterance's
            own file takes up (shards made by tools/make_shards.py). A relative ``wav``
            is relative to the CSV's folder.
        columns: Further columns that must be there (``wrd``, ``spk_id``, ...).
        extent: Whether the extent must be there. The table of a CSV without it has
            neither ``start`` nor ``stop``.

    Returns:
        All columns, plus ``start`` and ``stop`` as int64 samples; ``offset`` and
        ``size`` are int64 as well. Text columns hold str (an empty cell is an empty
        string). The index is the line in the file, for messages.

    Raises ``UserError``, which names the line, for a file that is absent, not UTF-8,
    without rows or a column, for an ID that stands twice, for a row with too few or
    too many fields, and for a number that is none.
    """
    table = _read(path, columns, extent=extent)
    for column in ("ID", "wav"):
        refuse_empty(path, table[column])
    refuse_cell(
        path,
        table["ID"],
        table["ID"].duplicated(),
        lambda cell: f"{cell!r} stands twice; remove one row",
    )
    if "start" in table or "duration" in table:
        _set_extent(path, table)
    if "offset" in table:
        for column, least in (("offset", 0), ("size", 1)):
            remedy = f"bytes from {least}; make the shards again"
            _make_whole(path, table, column, least, remedy)
    folder = Path(path).resolve().parent
    # Iterating over pandas' own text takes longer than reading it.
    wavs = table["wav"].to_numpy(dtype=object).tolist()
    table["wav"] = [w if os.path.isabs(w) else str(folder / w) for w in wavs]
    return table


def read_header(path: str | os.PathLike) -> list[str]:
    """The names of the columns of a CSV that can be read."""
    with open(path, encoding="utf-8-sig", newline="") as stream:
        return next(csv.reader(stream))


def read_columns(path: str | os.PathLike, names: Sequence[str]) -> "pandas.DataFrame":
    """Those of some columns that a CSV has, without a check of their cells.

    Raises ``UserError`` as ``read_table`` does for a file that cannot be parsed.
    """
    return _read(path, (), only=names)


def read_values(path: str | os.PathLike, column: str) -> set[str]:
    """The distinct cells of one column of a CSV; it is faster than a table.

    Raises ``UserError`` as ``read_table`` does for a file that cannot be parsed.
    """
    return set(_read(path, [column], only=[column])[column])


def refuse_empty(path: str | os.PathLike, cells: "pandas.Series") -> None:
    """Raise ``UserError`` for the first cell of a column that holds nothing."""
    problem = "the cell is empty; fill it or remove the row"
    refuse_cell(path, cells, cells == "", lambda _: problem)


def refuse_cell(
    path: str | os.PathLike,
    cells: "pandas.Series",
    marked: "pandas.Series",
    problem_of: Callable[[object], str],
) -> None:
    """Raise ``UserError`` for the first cell of a column that is marked, if any is.

    ``problem_of`` takes the cell. The series are indexed by the line in the CSV.
    """
    if marked.any():
        line = _first_line(marked)
        problem = problem_of(cells[line])
        raise UserError(f"{path}, line {line}, column {cells.name}: {problem}")


def as_paths(csv: CSVPaths) -> list[str | os.PathLike]:
    """The CSVs of one corpus as a list: ``csv`` is a path or a sequence of paths."""
    if isinstance(csv, str | os.PathLike):
        return [csv]
    if not csv:
        raise UserError("csv: the list is empty; name at least one CSV")
    return list(csv)


def windows_of(table: "pandas.DataFrame") -> list[ByteRange | None]:
    """Each row's offset and size in bytes within its file; None where it has its own.

    The table is one of ``read_table`` or ``concatenate``.
    """
    if "offset" not in table:
        return [None] * len(table)
    pairs = zip(table["offset"].tolist(), table["size"].tolist(), strict=True)
    return [None if pair[0] < 0 else pair for pair in pairs]


def file_names(table: "pandas.DataFrame") -> np.ndarray:
    """For each row a text (object) that names its file, also one within a shard."""
    names = table["wav"].to_numpy(dtype=object)
    if "offset" in table:
        offsets = table["offset"].tolist()
        names = [f"{name}\0{at}" for name, at in zip(names, offsets, strict=True)]
    return np.asarray(names, dtype=object)


def concatenate(
    paths: Sequence[str | os.PathLike], tables: "Sequence[pandas.DataFrame]"
) -> "pandas.DataFrame":
    """Several tables of ``read_table`` as one corpus.

    A single table stays as it is. Several give their rows one after another, counted
    from 0, with the columns that all of them have. ``mean`` and ``std``, and
    ``offset`` and ``size``, are also kept where only some have them: in the rows of
    the others they are NaN, and -1.

    ``paths`` say where the tables were read. Raises ``UserError`` for an ID in two of
    them.
    """
    if len(tables) == 1:
        return tables[0]
    for columns, unknown in _TOGETHER.items():
        known = [set(columns) <= set(table.columns) for table in tables]
        if any(known):
            tables = [
                table if has else table.assign(**dict.fromkeys(columns, unknown))
                for table, has in zip(tables, known, strict=True)
            ]
    joined = pandas.concat(tables, join="inner", ignore_index=True)
    repeated = joined["ID"].duplicated()
    if repeated.any():
        identity = joined["ID"][repeated.idxmax()]
        first, second = [
            f"{path}, line {_first_line(table['ID'] == identity)}"
            for path, table in zip(paths, tables, strict=True)
            if (table["ID"] == identity).any()
        ][:2]
        raise UserError(
            f"{second}, column ID: {identity!r} stands also in {first}; name a CSV "
            "once, and keep every utterance in one of them"
        )
    return joined


def _read(path, columns, only=None, extent=True):
    """The cells as numbers (``NUMBERS``) or str, indexed by line.

    ``columns`` must be there. The cells of all columns are kept, or of ``only`` some.

    pandas' own reader would fill short rows with empty cells, and take the first
    column for an index when rows have a field more than the header.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; prepare the corpus first")
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, None)
            if not header:
                raise UserError(f"{path} has no header; prepare the corpus again")
            repeated = [name for name in header if header.count(name) > 1]
            if repeated:
                raise UserError(
                    f"{path}, line 1: the column {repeated[0]} stands twice"
                )
            _check_columns(path, header, columns, extent)
            names = [name for name in header if only is None or name in only]
            lines, blocks = [], {name: [] for name in names}
            for numbers, rows in _blocks(path, reader, len(header)):
                lines.append(np.array(numbers))
                for name in names:
                    place = header.index(name)
                    cells = np.array([row[place] for row in rows], dtype=object)
                    if name in NUMBERS:
                        cells = _numbers(path, pandas.Series(cells, numbers, name=name))
                    blocks[name].append(_shared(cells))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {_undecodable_line(path)}: the file is not UTF-8 "
            f"({error.reason}); re-encode it"
        ) from None
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}; correct that line"
        ) from None
    if not lines:
        raise UserError(f"{path} lists no utterance; prepare the corpus again")
    columns = {name: np.concatenate(blocks.pop(name)) for name in names}
    table = pandas.DataFrame(columns, index=np.concatenate(lines))
    return table.astype({name: "str" for name in names if name not in NUMBERS})


def _blocks(path, reader, width):
    """Yield line numbers and rows of ``width`` cells, without the empty lines."""
    rows, lines = [], []
    for row in reader:
        if row and len(row) != width:
            raise UserError(
                f"{path}, line {reader.line_num}: the row has {len(row)} fields, the "
                f"header {width}; correct the row"
            )
        if row:
            rows.append(row)
            lines.append(reader.line_num)
        if len(rows) == _ROWS:
            yield lines, rows
            rows, lines = [], []
    if rows:
        yield lines, rows


def _shared(cells):
    """The cells, where they repeat (speakers) with one object for all equal ones."""
    if cells.dtype != object:
        return cells
    codes, distinct = pandas.factorize(cells)
    return distinct[codes] if 2 * len(distinct) < len(cells) else cells


def _undecodable_line(path):
    """Line of the first bytes that are not UTF-8."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return content.count(b"\n", 0, error.start) + 1


def _check_columns(path, header, columns, extent):
    """Raise when a required column is absent."""
    if "start" in header:
        extent = ("start", "stop")
    else:
        extent = ("duration",) if extent else ()
    window = ("offset", "size") if {"offset", "size"} & set(header) else ()
    required = ("ID", "wav", *extent, *window, *columns)
    missing = [column for column in required if column not in header]
    if missing:
        raise UserError(
            f"{path}, line 1: there is no column {', '.join(missing)} (there are "
            f"{', '.join(header)}); add it or prepare the corpus again"
        )


def _set_extent(path, table):
    """Give a table ``start`` and ``stop`` as int64; raise where nothing is between."""
    if "start" not in table:
        table["start"] = 0.0
        table["stop"] = np.round(table["duration"] * SAMPLE_RATE)
    wrong = (table["start"] < 0) | (table["stop"] <= table["start"])
    if wrong.any():
        raise UserError(
            f"{path}, line {_first_line(wrong)}: the utterance has no samples "
            "(columns duration, start, stop); correct or remove the row"
        )
    for column in ("start", "stop"):
        remedy = "samples from 0; correct it or prepare the corpus again"
        _make_whole(path, table, column, 0, remedy)


def _make_whole(path, table, column, least, remedy):
    """Make a column int64; raise where a cell is below ``least`` or not whole."""
    cells = table[column]
    wrong = (cells < least) | (cells != np.floor(cells))
    problem = f"is not a whole number of {remedy}"
    refuse_cell(path, cells, wrong, lambda cell: f"{cell} {problem}")
    table[column] = cells.astype(np.int64)


def _numbers(path, cells):
    """One text column as an array of finite float64 values."""
    values = pandas.to_numeric(cells, errors="coerce")
    problem = "is not a finite number; correct it or prepare the corpus again"
    refuse_cell(path, cells, ~np.isfinite(values), lambda cell: f"{cell!r} {problem}")
    return values.to_numpy(np.float64)


def _first_line(marked):
    """The line in the CSV of the first marked row."""
    return int(marked.index[marked.to_numpy().argmax()])
