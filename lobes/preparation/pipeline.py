"""The pipeline of every corpus: keep what fits, else decode, drop and write again.

A corpus lists one table of ``Utterances`` and states its rules; everything else is
done here.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lobes.data.audio import SAMPLE_RATE
from lobes.data.scan_cache import ScanCache
from lobes.errors import UserError
from lobes.preparation.folders import LeftOut, writable_folder
from lobes.preparation.outputs import Outputs, csv_counts, csv_text
from lobes.preparation.parts import Part, Problem, check_owner
from lobes.preparation.report import write_report
from lobes.preparation.scan import scan_audio
from lobes.system.files import file_hash
from lobes.system.locks import one_writer
from lobes.system.parallel import worker_count


class Utterances(NamedTuple):
    """The table that a corpus lists; columns ``[utterance]``.

    A key in ``recordings`` is equal within one recording (a chapter, a video). The last
    three columns are None before decoding: length in samples, mean and standard
    deviation.
    """

    ids: list[str]
    paths: list[str]
    speakers: list[str]
    recordings: list
    texts: list[str] | None = None
    frames: np.ndarray | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None

    @classmethod
    def of(cls, rows: Sequence[tuple]) -> "Utterances":
        """The table of some rows: ID, path, speaker, recording, and perhaps text."""
        return cls(*map(list, zip(*rows, strict=True))) if rows else cls([], [], [], [])

    def rows(self, rows: Sequence[int] | np.ndarray) -> "Utterances":
        """The rows at these indices, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        places = rows.tolist()
        return Utterances(
            *(
                c[rows] if isinstance(c, np.ndarray) else c and [c[i] for i in places]
                for c in self
            )
        )


@dataclass
class Preparation:
    """One call of a corpus's prepare function.

    Arguments:
        save_folder, journal_folder: For the outputs, and for what decoding found out
            (None: the same).
        skip_budget: How many bad utterances of a part may be left out.
        header_only: Take lengths from headers, and no mean and standard deviation.
        num_workers: Decoding processes; None for all cores.

    Raises ``UserError`` for impossible numbers; only ``make_folders`` makes folders.
    """

    corpus: str
    save_folder: str | Path
    journal_folder: str | Path | None
    skip_budget: int
    header_only: bool
    num_workers: int | None
    counts: dict[str, dict] = field(default_factory=dict, init=False)
    outputs: Mapping[str, Iterable[str]] = field(default_factory=dict, init=False)

    def __post_init__(self):
        if self.skip_budget < 0:
            raise UserError(
                f"skip_budget={self.skip_budget}: it is the number of bad utterances "
                f"that may be left out; use 0 or more"
            )
        worker_count(self.num_workers)

    def make_folders(self) -> None:
        """Make both folders; ``UserError`` where nothing can be written."""
        journal_folder = self.journal_folder or self.save_folder
        self.save_folder = writable_folder(self.save_folder)
        self.journal_folder = writable_folder(journal_folder, "journal_folder")

    @contextlib.contextmanager
    def writing(self, outputs: Mapping[str, Iterable[str]]) -> Iterator[None]:
        """The ``with`` in which no other process writes; ``outputs`` by part.

        Two trainings that start together share one folder: one waits. Raises
        ``UserError`` where an output is not this corpus's.
        """
        self.outputs = outputs
        for name, files in outputs.items():
            check_owner(self.save_folder, name, self.corpus, files)
        with contextlib.ExitStack() as stack:
            # All processes take this order, so that no two wait for each other.
            for folder in dict.fromkeys((self.save_folder, self.journal_folder)):
                stack.enter_context(one_writer(folder / ".prepare.lock", wait=True))
            yield

    def part(
        self,
        name: str,
        options: dict,
        inputs: str | Sequence[Path],
        build: Callable[[Part], tuple[Outputs, int]],
        folder: Path | None = None,
    ) -> None:
        """Keep a part, or build and write it; its counts join ``counts``.

        Arguments:
            name, options: As for ``Part``.
            inputs: A hash of the audio, or the files that the part is made from.
            build: Returns the outputs (counts None: the output is not told), and how
                many utterances were left out.
            folder: That of the audio, if the part is made from audio.
        """
        if folder is None:
            inputs = json.dumps([file_hash(path) for path in inputs])
        else:
            audio = {"folder": os.fspath(folder), "header_only": self.header_only}
            options = {**audio, **options}
        part = Part(self.save_folder, name, self.corpus, options, inputs)
        counts, csv = part.reusable(self.skip_budget if folder else 0), f"{name}.csv"
        if counts is None:
            outputs, skipped = build(part)
            files = {name: text for name, (text, _) in outputs.items()}
            counts = {name: one for name, (_, one) in outputs.items() if one}
            # What stands in the marker of a part that is a single CSV.
            alone = counts[csv] if list(counts) == [csv] else counts
            part.write(files, alone, skipped)
        self.counts |= {csv: counts} if "utterances" in counts else counts

    def decode(
        self,
        part: Part,
        folder: Path,
        listed: Utterances,
        problems: Sequence[Problem],
        rule: Callable[[Utterances], Mapping[int, str]] | None = None,
    ) -> tuple[Utterances, int]:
        """Decode a table; what can be used of it, and how much was dropped.

        Arguments:
            part: Lists what is dropped in ``<part>.skipped.csv``.
            folder: The files are remembered by their path below it.
            problems: Utterances that are in no row, because they cannot be used.
            rule: Takes the decoded table; returns the reasons of rows that break a
                rule.

        Raises ``UserError`` for more problems than ``skip_budget``, if need be before
        anything is decoded, and where no utterance is left.
        """
        if len(problems) > self.skip_budget:
            # Raises: no reason to decode hours of audio first.
            part.skip(problems, self.skip_budget)
        cache = ScanCache(self.journal_folder / f"{part.name}.scan", folder)
        scan = scan_audio(
            listed.paths, self.num_workers, part.name, cache, self.header_only
        )
        table = listed._replace(frames=scan.frames)
        if not self.header_only:
            table = table._replace(mean=scan.mean, std=scan.std)
        reasons = {**(rule(table) if rule else {}), **scan.reasons}
        bad = [Problem(table.ids[i], table.paths[i], reasons[i]) for i in reasons]
        part.skip([*problems, *bad], self.skip_budget)
        good = np.setdiff1d(np.arange(len(table.ids)), list(reasons))
        if not len(good):
            raise UserError(
                f"{part.name}: no usable utterance is left; repair the corpus, see "
                f"{part.folder / f'{part.name}.skipped.csv'}"
            )
        # A million rows are not copied for nothing.
        return table.rows(good) if bad else table, len(problems) + len(bad)

    def report(
        self,
        official: Mapping[tuple[str, ...], Sequence[str]],
        left_out: Mapping[str, LeftOut],
    ) -> dict[str, dict]:
        """Write the report (see ``write_report``), and return the counts of each file.

        A CSV has ``{path, speakers, utterances, hours, skipped}``, a trial list has
        ``{path, trials, positives, negatives}``.
        """
        folder, parts = self.save_folder, self.outputs
        write_report(folder, self.corpus, self.counts, parts, official, left_out)
        return {
            name: {"path": os.path.join(folder, name), **count}
            for name, count in self.counts.items()
        }


def utterances_csv(
    name: str,
    header: Sequence[str],
    utterances: Utterances,
    skipped: int,
    rows: Iterable[int] | None = None,
) -> Outputs:
    """The CSV ``name`` of decoded utterances (all, or ``rows``), sorted by ID.

    ``mean`` and ``std`` of ``header`` are left out where they are not known.
    """
    rows = range(len(utterances.ids)) if rows is None else rows
    table = utterances.rows(sorted(rows, key=utterances.ids.__getitem__))
    cells = {
        "ID": table.ids,
        "duration": table.frames / SAMPLE_RATE,
        "wav": table.paths,
        "start": np.zeros_like(table.frames),
        "stop": table.frames,
        "spk_id": table.speakers,
        "wrd": table.texts,
        "mean": table.mean,
        "std": table.std,
    }
    header = [column for column in header if cells[column] is not None]
    text = csv_text(header, [cells[column] for column in header])
    return {name: (text, csv_counts(name, table.speakers, table.frames, skipped))}
