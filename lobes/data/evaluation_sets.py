"""Evaluation sets: every utterance of a CSV once, and the trials over them."""

import hashlib
from pathlib import Path

import numpy as np
from speechbrain.dataio.dataloader import LoopedLoader
from tqdm import tqdm

from lobes.data.audio import (
    SAMPLE_RATE,
)
from lobes.data.streams import pack
from lobes.data.trials import look_at_trials, read_trials
from lobes.data.utterances import Utterances
from lobes.errors import UserError


class EvaluationSet:
    """Every utterance of a CSV once, whole or its first seconds.

    Arguments
    ---------
    csv : str
        CSV, read by ``open``.
    labels : dict
        Label name to encoder; none for speakers that were never trained on.
    trial_lists : sequence of str
        Trial lists as preparation was given them; it wrote each under its own name
        beside the CSV, from where it is read.
    trial_paths : sequence of str
        Further lists, read from where they are; their IDs are the CSV's. With any
        list, only utterances named in one are read. ``trials`` holds the opened
        lists by the name of the file without its ending, which no two may share.
    crop_seconds : float or None
        Take the first seconds of each utterance only (the paper's validation of
        the speaker task); None takes it whole.
    max_batch_samples : int or None
        Budget of a batch, padding counted; None takes one utterance at a time.
        The encoder gives the same frames either way (``lobes.model.encoder``).
    num_workers, timeout
        See ``TaskStream``.
    """

    def __init__(
        self,
        csv,
        labels=None,
        trial_lists=(),
        trial_paths=(),
        crop_seconds=None,
        max_batch_samples=None,
        num_workers=0,
        timeout=0,
    ):
        self.csv = csv
        self.labels = labels or {}
        prepared = [Path(csv).parent / Path(name).name for name in trial_lists]
        self.trial_paths = [*prepared, *map(Path, trial_paths)]
        stems = [path.stem for path in self.trial_paths]
        for path in self.trial_paths:
            if stems.count(path.stem) > 1:
                raise UserError(
                    f"{path}: {stems.count(path.stem)} trial lists have the name "
                    f"{path.stem}, by which results go; rename one"
                )
        self.trials = None
        self.crop = None if crop_seconds is None else round(crop_seconds * SAMPLE_RATE)
        self.max_batch_samples = max_batch_samples
        self.num_workers = num_workers
        self.timeout = timeout

    def open(self, rank=0, world_size=1):
        """Read the CSV and trial lists, once; this process takes its share of batches.

        Raises ``UserError`` for any problem of the files, or of the IDs in a list.
        """
        if self.trials is not None:
            return
        self.utterances = Utterances(self.csv, self.labels)
        # Official lists repeat a few trials; they count as often as they stand.
        trials = {p.stem: read_trials(p, allow_repeats=True) for p in self.trial_paths}
        named = set()
        for name, one in trials.items():
            trials[name] = look_at_trials(one, self.csv, self.utterances.table)
            named.update(trials[name].utterances())
        ids = enumerate(self.utterances.ids)
        #: The utterances that are read, by their place in ``utterances``.
        self.rows = np.array([row for row, i in ids if not trials or i in named])
        self.utterances.look(self.rows)
        lengths = self.utterances.lengths
        if self.crop is not None:
            lengths = np.minimum(lengths, self.crop)
        order = self.rows[np.argsort(-lengths[self.rows], kind="stable")]
        batches = pack(order, lengths, self.max_batch_samples or 0)
        self._requests = [
            (None, [(int(row), 0, int(lengths[row])) for row in rows])
            for rows in batches[rank::world_size]
        ]
        self.trials = trials

    def digest(self):
        """SHA-256 of the utterances and trials; where they lie does not count."""
        digest = hashlib.sha256(self.utterances.digest().encode())
        for name, trials in sorted(self.trials.items()):
            rows = zip(trials.labels, trials.enrol, trials.test, strict=True)
            lines = [f"{label:d} {enrol} {test}" for label, enrol, test in rows]
            digest.update("\n".join([name, *lines]).encode())
        return digest.hexdigest()[:16]

    def __len__(self):
        return len(self._requests)

    def batches(self, pin_memory=False):
        """Yield every ``Batch`` of this process, longest utterances first."""
        return self.utterances.loader(
            self._requests, self.num_workers, self.timeout, pin_memory
        )


def evaluation_sets(folder, names, **settings):
    """``{name: EvaluationSet}`` of the CSVs ``<folder>/<name>.csv``.

    The settings are those of ``EvaluationSet``.
    """
    return {name: EvaluationSet(f"{folder}/{name}.csv", **settings) for name in names}


class EvaluationStream(LoopedLoader):
    """The batches of several evaluation sets as ``{task: Batch}``, one after another.

    Arguments
    ---------
    sets : list of (str, EvaluationSet)
        Task name and opened set.
    pin_memory : bool
        Whether batches are copied to page-locked memory.
    title : str or None
        What a progress bar calls it; None shows none.
    """

    def __init__(self, sets, pin_memory=False, title=None):
        super().__init__(loader=None, epoch_length=sum(len(s) for _, s in sets))
        self.sets = sets
        self.pin_memory = pin_memory
        self.title = title
        self._batches = None

    def close(self):
        """End the loading processes."""
        if self._batches is not None:
            self._batches.close()

    def __iter__(self):
        for task, evaluation_set in self.sets:
            self._batches = evaluation_set.batches(self.pin_memory)
            bar = tqdm(
                self._batches,
                desc=f"{self.title} {task}",
                total=len(evaluation_set),
                unit="batch",
                leave=False,
                dynamic_ncols=True,
                disable=self.title is None,
            )
            for batch in bar:
                yield {task: batch}


def open_sets(train_streams, valid_sets, test_sets, rank=0, world_size=1):
    """Open every set, the small ones first; each file's header is read.

    Arguments
    ---------
    train_streams, valid_sets : dict
        Task name to ``TaskStream`` and to ``EvaluationSet``.
    test_sets : dict
        Task name to ``{name: EvaluationSet}``.

    Raises one ``UserError`` of all that is wrong with any of them.
    """
    tests = [one for sets in test_sets.values() for one in sets.values()]
    problems = {}
    for one in [*tests, *valid_sets.values(), *train_streams.values()]:
        try:
            one.open(rank, world_size)
        except UserError as error:
            problems[str(error)] = None
    if problems:
        raise UserError("; ".join(problems))
