"""VoxCeleb2 for training and validation, VoxCeleb1 for trials, as CSVs.

Columns: ``ID,duration,wav,start,stop,spk_id,mean,std`` (duration in seconds,
start and stop in samples; mean and standard deviation of the whole utterance's
samples, not with header_only). An ID is ``speaker--video--utterance``. Trial lists
have lines ``label enrol_ID test_ID``, label 1 for two utterances of one speaker.
With automatic transcripts there are also CSVs with a column ``wrd``.

    python voxceleb_prepare.py /data/VoxCeleb2 results/csv \\
        --test_folder /data/VoxCeleb1 --trial_lists /data/veri_test2.txt
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lobes.data.audio import AAC_SUFFIXES
from lobes.errors import UserError, enumeration, user_errors_exit
from lobes.preparation import conversion, folders, outputs, splitting
from lobes.preparation.parts import Problem
from lobes.preparation.pipeline import Preparation, Utterances, utterances_csv
from lobes.preparation.transcripts import (
    choose,
    read_transcripts,
    reason_counts,
    transcript_files,
    unknown_utterances,
)
from lobes.settings.signatures import Command
from lobes.system.files import file_hash, read_text
from lobes.system.terminal import say

HEADER = ("ID", "duration", "wav", "start", "stop", "spk_id", "mean", "std")

#: Beside VoxCeleb2's folders; one line for each speaker.
META = "vox2_meta.csv"

TRIAL_LISTS = ("veri_test2.txt", "list_test_all2.txt", "list_test_hard2.txt")

CORPUS = "VoxCeleb"

# Where <speaker>/<video>/<utterance> may lie; the last is the folder itself.
_TRAIN_ROOTS = ("dev/wav", "dev/aac", "wav", "aac", ".")
_TEST_ROOTS = ("wav", "dev/wav", "test/wav", ".")

# Best first: AAC cannot be read in parts and takes longer to decode.
_SUFFIXES = (".wav", ".flac", ".m4a")

# What else may be audio, where other files are expected, too.
_OTHER_AUDIO = (".mp4", ".aac", ".mp3", ".ogg", ".opus", ".wma", ".aif", ".aiff")


class Splitting(NamedTuple):
    """How validation data are chosen; ``prepare_voxceleb`` tells the arguments."""

    fraction: float
    per_speaker: int
    positives: int
    negatives: int
    different_video: bool
    seed: int


def prepare_voxceleb(
    data_folder: str | Path | None,
    test_folder: str | Path | None,
    save_folder: str | Path,
    trial_lists: str | Path | Sequence[str | Path] = TRIAL_LISTS,
    journal_folder: str | Path | None = None,
    without_test_speakers: bool = False,
    transcripts: str | Path | Sequence[str | Path] | None = None,
    valid_fraction: float = 0.02,
    valid_recordings_per_speaker: int = 2,
    valid_positive_trials: int = 5000,
    valid_negative_trials: int = 5000,
    valid_different_video: bool = False,
    valid_same_sex: bool = False,
    convert: Literal["flac", "wav"] | None = None,
    seed: int = 42133724,
    skip_budget: int = 0,
    strict: bool = False,
    header_only: bool = False,
    num_workers: int | None = None,
    skip_prep: bool = False,
) -> dict[str, outputs.CsvCounts | outputs.TrialCounts]:
    """Write the CSVs and trial lists of VoxCeleb, rows sorted by ID.

    Training data become ``train.csv``, ``valid.csv`` and ``valid_trials.txt``;
    test data become ``test.csv``, with every utterance of any trial list, and
    one trial list under the name of each list given. docs/preparation.md says what the
    parts ``train``, ``test`` and ``transcripts`` have beside them.

    Arguments:
        data_folder: VoxCeleb2 for training and validation; None (``-``) for no training
            data. Its utterances are ``id*/<video>/<utterance>`` in any of ``dev/wav``,
            ``dev/aac``, ``wav``, ``aac`` or the folder itself, as .wav, .flac or .m4a
            (taken in this order where one utterance has several). A name with blanks,
            or a path that is not UTF-8, makes it a bad file.
        test_folder: VoxCeleb1, by default no test data. It has the same in ``wav``,
            ``dev/wav`` and ``test/wav``, or in the folder itself.
        save_folder: For the CSVs; it is no folder of audio.
        trial_lists: Files with lines ``label speaker/video/file speaker/video/file``,
            whose paths are absolute or relative to ``test_folder``. Their order and
            duplicates are kept: published error rates count them.
        journal_folder: As for ``Preparation``.
        without_test_speakers: Take the speakers of the trial lists out of the training
            data: for all of VoxCeleb1 in one folder, as ``data_folder`` and
            ``test_folder``.
        transcripts: Automatic transcripts, as ``tools/pseudo_label.py`` writes them, or
            in other files that ``lobes.preparation.transcripts`` reads. The rows of
            ``train.csv`` and ``valid.csv`` with a usable transcript then also stand,
            with it in a column ``wrd``, in ``train_transcribed.csv`` and
            ``valid_transcribed.csv``; all others, with the reason, in
            ``transcripts.skipped.csv``.
        valid_fraction: Whole recordings (videos), shuffled by ``seed``, are held out
            until they have this fraction of the utterances.
        valid_recordings_per_speaker: At most so many recordings of a speaker are held
            out; at least one stays.
        valid_positive_trials, valid_negative_trials: Pairs drawn from the held-out
            utterances, none twice in either order; all pairs where there are fewer.
        valid_different_video: Take no positive trial within one video (it is easy: same
            room, same microphone).
        valid_same_sex: Take negative trials of two speakers of one sex only (two sexes
            are easy to tell apart), which VoxCeleb's ``vox2_meta.csv`` in
            ``data_folder`` tells.
        convert: ``flac`` or ``wav``: what m4a files of the training data are converted
            to first, once and beside them (see ``lobes.preparation.conversion``); the
            originals stay, and those that cannot be converted are bad files. None: they
            are decoded whole for every crop.
        seed: Seed of the validation split.
        skip_budget: How many files that ``lobes.data.audio`` refuses may be left out,
            of the training and of the test data; listed in ``train.skipped.csv`` and
            ``test.skipped.csv``. Trials that need one are left out and counted.
        strict: A bad file is an error, whatever the budget.
        header_only: Take the lengths from the headers of wav and flac files (m4a are
            decoded): far faster, but damaged audio shows up in training only, and
            without ``mean`` and ``std`` every utterance is then read whole to be
            normalised.
        num_workers: Decoding processes, by default one for each core.
        skip_prep: Do nothing: the files are the user's own.

    Returns:
        As ``Preparation.report``; empty with ``skip_prep``.

    Raises ``UserError`` for missing folders, lists and files, malformed lists,
    a speaker in both training and test data, fewer than two training speakers,
    a speaker without a sex in ``vox2_meta.csv`` where it is needed, a corpus too
    small for the validation split, and too many bad files.
    """
    if skip_prep:
        return {}
    data_folder, test_folder = check_voxceleb(data_folder, test_folder, transcripts)
    rules = Splitting(
        valid_fraction,
        valid_recordings_per_speaker,
        valid_positive_trials,
        valid_negative_trials,
        valid_different_video,
        seed,
    )
    budget = 0 if strict else skip_budget
    run = Preparation(
        CORPUS, save_folder, journal_folder, budget, header_only, num_workers
    )
    _check_options(rules, convert, data_folder, test_folder, without_test_speakers)
    for folder, roots in ((data_folder, _TRAIN_ROOTS), (test_folder, _TEST_ROOTS)):
        if folder is not None:
            _check_outside(save_folder, folder, roots)
    run.make_folders()
    # Both listings come first: a leak must not show up after hours of decoding.
    files, without, train, test, sexes = {}, set(), None, None, None
    if test_folder is not None:
        test = Trialled(test_folder, trial_lists, run.save_folder)
        without = set(test.utterances.speakers) if without_test_speakers else set()
    if data_folder is not None:
        train = Training(data_folder, without)
        files["train"] = ["train.csv", "valid.csv", "valid_trials.txt"]
        train.left_out.say("train")
        if valid_same_sex:
            sexes = _read_sexes(data_folder / META, train.utterances.speakers)
    if test:
        files["test"] = ["test.csv", *test.trials]
    if transcripts is not None:
        files["transcripts"] = ["train_transcribed.csv", "valid_transcribed.csv"]
    if train and test:
        _check_leak(train.utterances.speakers, test.utterances.speakers)
    half = "VoxCeleb1/dev" if without_test_speakers else "VoxCeleb2/dev"
    official = {("train.csv", "valid.csv"): [half]} if train else {}
    with run.writing(files):
        if train:
            if _converted(train.utterances.paths, data_folder, convert, num_workers):
                train = Training(data_folder, without)
            _prepare_train(run, train, rules, sexes)
        if transcripts is not None:
            _prepare_transcribed(run, transcript_files(transcripts))
        if test:
            _prepare_test(run, test)
        left_out = {"train": train.left_out} if train else {}
        return run.report(official, left_out)


def check_voxceleb(
    data_folder: str | Path | None,
    test_folder: str | Path | None,
    transcripts: str | Path | Sequence[str | Path] | None = None,
    skip_prep: bool = False,
    **_,
) -> tuple[Path | None, Path | None]:
    """Both folders as absolute paths; hardly takes any time.

    Takes the arguments of ``prepare_voxceleb``, and raises ``UserError`` for inputs
    that are not there.
    """
    if skip_prep:
        return None, None
    if data_folder is not None:
        data_folder = folders.existing_folder(
            data_folder, "data_folder (voxceleb2_folder)"
        )
    if test_folder is not None:
        test_folder = folders.existing_folder(
            test_folder, "test_folder (voxceleb1_folder)"
        )
    if transcripts is not None:
        transcript_files(transcripts)
        if data_folder is None:
            raise UserError(
                "transcripts are given but no data_folder (voxceleb2_folder), whose "
                "utterances they are for; give both or none"
            )
    return data_folder, test_folder


def _check_options(rules, convert, data_folder, test_folder, without_test_speakers):
    """Refuse options that do not make a preparation."""
    splitting.check_split_settings(
        {"valid_fraction": rules.fraction},
        {
            "valid_recordings_per_speaker": rules.per_speaker,
            "valid_positive_trials": rules.positives,
            "valid_negative_trials": rules.negatives,
        },
        rules.seed,
    )
    if convert not in (None, "flac", "wav"):
        raise UserError(f"convert={convert}: only flac, wav or nothing can be given")
    if data_folder is None and test_folder is None:
        raise UserError(
            "neither data_folder (VoxCeleb2) nor test_folder (VoxCeleb1) is given; "
            "set at least one of them"
        )
    if without_test_speakers and None in (data_folder, test_folder):
        raise UserError(
            "without_test_speakers: it takes the speakers of test_folder's trial lists "
            "out of data_folder; give both, or leave it out"
        )


def _check_outside(save_folder, folder, roots):
    """Refuse to write where utterances are looked for."""
    path, home = (Path(os.path.realpath(place)) for place in (save_folder, folder))
    if path.is_relative_to(home):
        first = (*path.relative_to(home).parts, ".")[0]
        if first.startswith("id") or first in {root.split("/")[0] for root in roots}:
            folders.outside(save_folder, [folder])


def _converted(paths, data_folder, to, num_workers):
    """Convert the training data's m4a files where asked; whether there were any."""
    sources = [path for path in paths if path.lower().endswith(AAC_SUFFIXES)]
    if not sources:
        return False
    if to is None:
        say(
            f"train: {len(sources):,} of {len(paths):,} files are m4a, which are "
            f"decoded whole for every crop; --convert flac (of train.py: "
            f"--voxceleb_convert=flac) converts them once"
        )
        return False
    folders.writable_folder(
        data_folder, f"convert={to}: data_folder (voxceleb2_folder)"
    )
    counts = conversion.convert(data_folder, data_folder, to, num_workers, only=sources)
    say(f"train: {conversion.summary(counts, data_folder)}")
    return True


def _read_sexes(path, speakers):
    """``{speaker: m or f}``, with a row for each of ``speakers``.

    VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set
    id00012 ,n000012 ,m ,dev

    VoxCeleb1's file has tabs for commas; both are fine.
    """
    if not path.is_file():
        raise UserError(
            f"valid_same_sex: {path} does not exist, and it tells the sex of every "
            f"speaker; download VoxCeleb's {path.name} to that place, or set "
            f"valid_same_sex=False"
        )
    sexes, column = {}, None
    for number, line in enumerate(_lines(path), 1):
        fields = [field.strip() for field in re.split("[\t,]", line)]
        if column is None:
            if "Gender" not in fields:
                raise UserError(
                    f"{path}, line {number}: there is no column Gender; download the "
                    f"file again"
                )
            column = fields.index("Gender")
        elif line.strip():
            if len(fields) <= column or fields[column] not in ("m", "f"):
                raise UserError(
                    f"{path}, line {number}: {line.strip()!r} has no m or f in the "
                    f"column Gender; correct the line"
                )
            sexes[fields[0]] = fields[column]
    if unknown := sorted(set(speakers) - sexes.keys()):
        raise UserError(
            f"{path}: no line for {len(unknown)} speaker(s): {enumeration(unknown)}; "
            f"download the complete file, or set valid_same_sex=False"
        )
    return sexes


def _prepare_train(run, train, rules, sexes):
    """Write train.csv, valid.csv and valid_trials.txt, or keep them."""

    def build(part):
        # Before decoding to fail early, and again if files had to be left out.
        valid, trials = _split(train.utterances, sexes, rules)
        usable, skipped = run.decode(
            part, train.folder, train.utterances, train.problems
        )
        if len(usable.ids) < len(train.utterances.ids):
            valid, trials = _split(usable, sexes, rules)
        splitting.report_few_held_out("valid.csv", valid, *rules[:2], "recordings")
        splitting.report_shortage("valid_trials.txt", trials, *rules[2:4])
        held_out, staying = np.flatnonzero(valid), np.flatnonzero(~valid)
        files = utterances_csv("train.csv", HEADER, usable, skipped, staying)
        files |= utterances_csv("valid.csv", HEADER, usable, 0, held_out)
        # How many speakers have one training utterance.
        counts = Counter(usable.speakers[row] for row in staying).values()
        if single := list(counts).count(1):
            say(f"train.csv: warning: {single} speaker(s) have a single utterance")
        else:
            say("train.csv: every speaker has at least two utterances")
        files |= outputs.trial_list("valid_trials.txt", usable.ids, trials)
        return files, skipped

    options = {
        "sexes": sexes and file_hash(train.folder / META),
        # Absent otherwise: what was prepared before stays as it is.
        **({"without": sorted(train.without)} if train.without else {}),
        **rules._asdict(),
    }
    run.part("train", options, train.inputs, build, train.folder)


def _prepare_transcribed(run, transcripts):
    """Write the rows that have a usable transcript, or keep them."""
    sources = {name: run.save_folder / f"{name}.csv" for name in ("train", "valid")}

    def build(_):
        spoken = read_transcripts(transcripts)
        files, skipped, known = {}, [], set()
        for name, path in sources.items():
            header, rows = outputs.read_prepared(path)
            samples = {row["ID"]: int(row["stop"]) - int(row["start"]) for row in rows}
            words, left_out = choose(spoken, samples)
            rows = [
                {**row, "wrd": words[row["ID"]]} for row in rows if row["ID"] in words
            ]
            if not rows and name == "train":
                raise UserError(
                    f"transcripts: no utterance of {path} has a usable transcript in "
                    f"{', '.join(map(str, transcripts))} ({reason_counts(left_out)}); "
                    "docs/transcripts.md says what is usable"
                )
            csv = f"{name}_transcribed.csv"
            files |= outputs.rows_csv(csv, [*header, "wrd"], rows, len(left_out))
            say(f"{csv}: left out: {reason_counts(left_out)}")
            skipped += left_out
            known |= samples.keys()
        if strangers := unknown_utterances(spoken, known):
            say(f"transcripts: left out: {reason_counts(strangers)}")
        columns = list(zip(*skipped, *strangers, strict=True)) or [(), (), ()]
        header = ("ID", "reason", "detail")
        files["transcripts.skipped.csv"] = outputs.csv_text(header, columns), None
        return files, 0

    run.part("transcripts", {}, [*transcripts, *sources.values()], build)


def _prepare_test(run, test):
    """Write test.csv and the trial lists, or keep them."""

    def build(part):
        ids = test.utterances.ids
        usable, skipped = run.decode(part, test.folder, test.utterances, ())
        files = utterances_csv("test.csv", HEADER, usable, skipped)
        good = np.isin(ids, usable.ids)
        for name, listed in test.trials.items():
            scorable = good[listed.enrol] & good[listed.test]
            if not scorable.all():
                say(
                    f"{name}: {int((~scorable).sum())} of {len(scorable)} trials left "
                    f"out with the bad utterances; error rates are not comparable to "
                    f"published ones"
                )
                listed = splitting.TrialRows(*(column[scorable] for column in listed))
            _check_both_labels(name, listed)
            files |= outputs.trial_list(name, ids, listed)
        return files, skipped

    options = {"lists": list(map(str, test.lists))}
    run.part("test", options, test.inputs, build, test.folder)


class Training:
    """The training data: all utterances below a folder's training roots.

    Attributes:
        utterances (Utterances): Sorted by speaker, video and name.
        problems (list of Problem): Utterances whose names no CSV or trial list can
            hold.
        inputs (str): A hash of the listing.
        left_out (LeftOut): What is no utterance, and those of the speakers ``without``.
    """

    def __init__(self, folder, without=()):
        self.folder, self.without = folder, without
        self.left_out = folders.LeftOut(folder)
        self.problems = []
        rows, inputs, prefix = [], folders.Inputs(), os.path.join(folder, "")
        speakers = _list_speakers(folder, self.left_out)
        for speaker in sorted(speakers):
            for video, audio in self._videos(speaker, speakers[speaker]):
                recording = (speaker, video)
                for stem, path in audio.items():
                    inputs.add(path.removeprefix(prefix), path)
                    utterance = f"{speaker}--{video}--{stem}"
                    if reason := folders.name_problem(utterance, path):
                        self.problems.append(Problem(utterance, path, reason))
                    else:
                        rows.append((utterance, path, speaker, recording))
        if not rows and not self.problems:
            raise self._nothing(speakers)
        self.utterances = Utterances.of(rows)
        self.inputs = inputs.digest()
        self._check_ids()

    def _videos(self, speaker, places):
        """Yield each video of a speaker, and its audio: ``{stem: path}``."""
        videos = {}
        for path in places:
            kind = "file(s) that lie in no id*/<video>"
            for entry in folders.folders_in(path, self.left_out, kind):
                videos.setdefault(entry.name, []).append(entry.path)
        for video in sorted(videos):
            entries, kind = [], "folder(s) below id*/<video>"
            for path in videos[video]:
                entries += folders.files_in(path, self.left_out, kind)
            audio = folders.best_audio(entries, _SUFFIXES, self.left_out)
            if not audio:
                self.left_out.add("video(s) without an utterance", videos[video][0])
            elif speaker in self.without:
                kind = "utterance(s) of speakers of the trial lists"
                self.left_out.add(kind, next(iter(audio.values())), len(audio))
            else:
                yield video, audio

    def _nothing(self, speakers):
        """The error of a folder without any utterance."""
        if self.without and speakers:
            return UserError(
                f"data_folder: all {len(speakers)} speakers in {self.folder} are in "
                f"the trial lists, none is left to train on; unpack VoxCeleb1's "
                f"development half there, too"
            )
        return UserError(
            f"data_folder: no audio found in {self.folder}; looked for "
            f"id*/<video>/*.wav, .flac or .m4a there and in its "
            f"{', '.join(_TRAIN_ROOTS[:-1])}: unpack VoxCeleb2 or correct the path"
        )

    def _check_ids(self):
        """Refuse two files of one ID."""
        ids, paths = self.utterances.ids, self.utterances.paths
        if len(set(ids)) < len(ids):
            twice = next(one for one, count in Counter(ids).items() if count > 1)
            both = [p for i, p in zip(ids, paths, strict=True) if i == twice]
            raise UserError(
                f"data_folder: two files would both be called {twice}: "
                f"{enumeration(both)}; rename the folders of one"
            )


def _list_speakers(data_folder, left_out):
    """Paths of every speaker's folders, ``{speaker: [path]}``."""
    roots = [data_folder / root for root in _TRAIN_ROOTS]
    above = {path for root in roots for path in (root, *root.parents)}
    speakers = {}
    for folder in sorted(path for path in above if path.is_relative_to(data_folder)):
        if not folder.is_dir():
            continue
        below, files = folders.listing(folder)
        for entry in below:
            if entry.name.startswith("id") and folder in roots:
                speakers.setdefault(entry.name, []).append(entry.path)
            elif Path(entry.path) not in above:
                left_out.add("folder(s) not called id*", entry.path)
        for entry in files:
            if entry.name.lower().endswith((*_SUFFIXES, *_OTHER_AUDIO)):
                left_out.add("file(s) that lie in no id*/<video>", entry.path)
    return speakers


def _find_lists(trial_lists, test_folder, save_folder):
    """Absolute paths of the trial lists, checked to exist and not to collide."""
    if isinstance(trial_lists, str | os.PathLike):
        trial_lists = [trial_lists]
    lists = [test_folder / name for name in trial_lists]
    if not lists:
        raise UserError(
            "trial_lists: no list is given with test_folder; name at least one, e.g. "
            "veri_test2.txt"
        )
    written = {"valid_trials.txt": save_folder}
    for path in lists:
        if not path.is_file():
            raise UserError(
                f"trial_lists: {path} does not exist; download it from the VoxCeleb "
                f"site to that place, or give its path in trial_lists"
            )
        if path.name in written:
            raise UserError(
                f"trial_lists: {path} and {written[path.name] / path.name} would be "
                f"written to the same {path.name}; rename one"
            )
        if path.parent.resolve() == save_folder.resolve():
            raise UserError(
                f"trial_lists: {path} lies in save_folder and would be overwritten; "
                f"choose another save_folder"
            )
        written[path.name] = path.parent
    return lists


def _read_lists(lists):
    """Utterances named in the lists, and the trials that index them.

    Returns ``{speaker/video/utterance: (file name, list path, line number)}`` of
    where each was named first, sorted, and ``{list name: TrialRows}``.

    1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav
    0 id10270/x6uYqmx31kE/00001.wav id10300/ize_eiCFEg0/00003.wav
    """
    first, listed, problems = {}, {path.name: [] for path in lists}, []
    for path in lists:
        for number, line in enumerate(_lines(path), 1):
            label, *files = line.split() or [None]
            if label is None:
                continue
            if problem := _trial_problem(label, files):
                problems.append(f"{path}, line {number}: {problem}")
                continue
            # One object for each name: lists of VoxCeleb1 repeat it a hundred times.
            names = [sys.intern(os.path.splitext(file)[0]) for file in files]
            for name, file in zip(names, files, strict=True):
                first.setdefault(name, (file, path, number))
            listed[path.name].append((int(label), *names))
    if problems:
        raise UserError(
            f"{len(problems)} bad line(s) in the trial lists: {enumeration(problems)}; "
            f"correct them or download the list again"
        )
    names = sorted(first)
    rank = {name: row for row, name in enumerate(names)}
    trials = {}
    for path, rows in listed.items():
        table = [(label, rank[enrol], rank[test]) for label, enrol, test in rows]
        table = np.array(table, dtype=np.int64).reshape(-1, 3)
        trials[path] = splitting.TrialRows(*table.T)
        _check_both_labels(path, trials[path])
        _check_trials(path, trials[path], names)
    return {name: first[name] for name in names}, trials


def _trial_problem(label, files):
    """What is wrong with one line's fields, or None."""
    if len(files) != 2:
        return f"{1 + len(files)} columns instead of `label enrol test`"
    if label not in ("0", "1"):
        return f"the label is {label!r}, not 0 or 1"
    for name in files:
        parts = name.split("/")
        if len(parts) != 3 or ".." in parts or "" in parts:
            return f"{name!r} is not speaker/video/file"
    return None


def _check_both_labels(name, trials):
    """An error rate needs trials of both kinds."""
    if len(set(trials.label.tolist())) != 2:
        raise UserError(
            f"{name}: it has {int(trials.label.sum())} positive trials of "
            f"{len(trials.label)}; both kinds are needed: use the complete list"
        )


def _check_trials(name, trials, names):
    """Refuse trials that contradict each other; say what else is unusual."""
    pairs = np.sort(np.stack([trials.enrol, trials.test], axis=1), axis=1)
    distinct, index = np.unique(pairs, axis=0, return_inverse=True)
    index = index.reshape(-1)
    positive = np.bincount(index, trials.label)
    alone = trials.enrol == trials.test
    wrong = (positive > 0)[index] & (positive < np.bincount(index))[index]
    wrong |= alone & (trials.label == 0)
    if wrong.any():
        one, other = (names[i] for i in pairs[wrong.argmax()])
        raise UserError(
            f"{name}: {int(wrong.sum())} trial(s) contradict others or themselves, "
            f"such as {one} with {other}: two labels for one pair, or label 0 for an "
            f"utterance and itself; correct the list, or download it again"
        )
    if repeated := len(pairs) - len(distinct):
        say(f"{name}: {repeated} trial(s) repeat a pair; kept as published")
    if alone.any():
        say(f"{name}: warning: {alone.sum()} trial(s) compare an utterance with itself")
    speaker = splitting.ranks([n.split("/")[0] for n in names])[1]
    odd = (speaker[trials.enrol] == speaker[trials.test]) != (trials.label == 1)
    if odd.any():
        say(
            f"{name}: warning: {odd.sum()} label(s) contradict the speakers' folder "
            f"names"
        )


class Trialled:
    """The test data: the utterances that trial lists name.

    Attributes:
        lists (list of Path)
        trials (dict): ``TrialRows`` by the name of the list.
        utterances (Utterances): Sorted by the names in the lists.
        inputs (str): A hash of the files and of the lists.
    """

    def __init__(self, folder, trial_lists, save_folder):
        self.folder = folder
        self.lists = _find_lists(trial_lists, folder, save_folder)
        names, self.trials = _read_lists(self.lists)
        roots = [folder / root for root in _TEST_ROOTS]
        roots = [root for root in roots if root.is_dir()]
        rows, missing, inputs = [], [], folders.Inputs()
        for path in self.lists:
            inputs.add(path.name, path)
        for name, (file, path, number) in names.items():
            audio = _find_audio(roots, file)
            if audio is None:
                missing.append(f"{path}, line {number}: {file}")
                continue
            inputs.add(os.path.relpath(audio, folder), audio)
            speaker, video, utterance = name.split("/")
            identity = f"{speaker}--{video}--{utterance}"
            rows.append((identity, audio, speaker, (speaker, video)))
        if missing:
            raise UserError(
                f"trial_lists: {len(missing)} of {len(names)} files are not in "
                f"{folder} nor in its {', '.join(_TEST_ROOTS[:-1])}: "
                f"{enumeration(missing)}; unpack all of VoxCeleb1 there, or take a "
                f"list that needs less"
            )
        self.utterances = Utterances.of(rows)
        self.inputs = inputs.digest()


def _find_audio(roots, file):
    """Path of a listed file, if need be with another suffix; None if absent."""
    stem = os.path.splitext(file)[0]
    names = (file, *(stem + suffix for suffix in _SUFFIXES))
    paths = (os.path.join(root, name) for root in roots for name in names)
    return next(filter(os.path.isfile, paths), None)


def _check_leak(train_speakers, test_speakers):
    """Refuse a speaker that is in both training and test data."""
    if shared := set(train_speakers) & set(test_speakers):
        raise UserError(
            f"{len(shared)} speaker(s) are in both training and test data: "
            f"{enumeration(sorted(shared))}; take their folders out of data_folder, "
            f"or test on other speakers"
        )


def _split(utterances, sexes, rules):
    """Hold out recordings and draw trials; column ``[utterance]`` and ``TrialRows``.

    The rule is told in ``prepare_voxceleb``.
    """
    fraction, per_speaker, *drawing, seed = rules
    distinct = set(utterances.speakers)
    if len(distinct) < 2:
        # Telling speakers apart takes two of them.
        held = f"only 1 speaker ({distinct.pop()})" if distinct else "no speaker"
        raise UserError(f"data_folder: {held} was found; training needs at least two")
    random = np.random.RandomState(seed)
    columns = utterances.speakers, utterances.recordings
    valid = splitting.hold_out(*columns, fraction, per_speaker, random)
    rows = np.flatnonzero(valid)
    held_out = utterances.rows(rows)
    drawn = splitting.draw_trials(
        held_out.speakers, held_out.recordings, *drawing, random, sexes
    )
    if len(set(drawn.label.tolist())) != 2:
        kind = "positive" if not drawn.label.any() else "negative"
        raise UserError(
            f"valid_fraction={fraction} holds out {len(rows)} of "
            f"{len(utterances.ids)} utterances, which give no {kind} trial; raise "
            f"valid_fraction, or use more speakers with two or more videos"
            f"{'' if sexes is None else ', or set valid_same_sex=False'}"
        )
    return valid, splitting.TrialRows(drawn.label, rows[drawn.enrol], rows[drawn.test])


def _lines(path):
    """Lines of a text file of VoxCeleb, whatever their ends."""
    return read_text(path, "download the list again").split("\n")


COMMAND = Command(
    prepare_voxceleb,
    positional=("data_folder", "save_folder"),
    hidden=("journal_folder", "skip_prep"),
    section="voxceleb",
)


@user_errors_exit
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``prepare_voxceleb``."""
    prepare_voxceleb(**COMMAND.parse(arguments))


if __name__ == "__main__":
    main()
