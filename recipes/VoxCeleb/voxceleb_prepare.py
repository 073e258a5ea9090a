"""VoxCeleb2 for training and validation, VoxCeleb1 for trials, as CSVs.

Columns: ``ID,duration,wav,start,stop,spk_id,mean,std`` (duration in seconds,
start and stop in samples; mean and standard deviation of the whole utterance's
samples, not with header_only). An ID is ``speaker--video--utterance``. Trial lists
have lines ``label enrol_ID test_ID``, label 1 for two utterances of one speaker.
With automatic transcripts there are also CSVs with a column ``wrd``.

    python voxceleb_prepare.py /data/VoxCeleb2 results/csv \\
        --test_folder /data/VoxCeleb1 --trial_lists /data/veri_test2.txt
"""

import csv
import json
import os
import re
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lobes.data.audio import AAC_SUFFIXES, SAMPLE_RATE
from lobes.data.scan_cache import ScanCache
from lobes.errors import ArgumentParser, UserError, enumeration, user_errors_exit
from lobes.preparation import conversion
from lobes.preparation.folders import (
    Inputs,
    LeftOut,
    best_audio,
    existing_folder,
    listing,
    name_problem,
    outside,
    writable_folder,
)
from lobes.preparation.outputs import csv_counts, csv_text, trial_text, with_paths
from lobes.preparation.parts import Part, Problem, check_owner, one_preparation
from lobes.preparation.report import write_report
from lobes.preparation.scan import scan_audio
from lobes.preparation.splitting import (
    Trials,
    check_budget,
    check_split_settings,
    draw_trials,
    hold_out,
    report_shortage,
)
from lobes.preparation.transcripts import (
    choose,
    read_transcripts,
    reason_counts,
    transcript_files,
    unknown_utterances,
)
from lobes.settings.table import option
from lobes.system.files import file_hash
from lobes.system.parallel import worker_count
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

# Outputs of each part.
_TRAIN_FILES = ("train.csv", "valid.csv", "valid_trials.txt")
_TRANSCRIBED_FILES = ("train_transcribed.csv", "valid_transcribed.csv")


class Utterances(NamedTuple):
    """Columns ``[utterance]`` and the recordings that these are from.

    Sorted by speaker, video and name; ``recording`` indexes ``recordings``, a
    list of (speaker, video). ``problems`` are those that cannot be used.
    """

    ids: list
    paths: list
    recording: np.ndarray
    recordings: list
    problems: tuple = ()


def prepare_voxceleb(
    data_folder,
    test_folder,
    save_folder,
    trial_lists=TRIAL_LISTS,
    journal_folder=None,
    without_test_speakers=False,
    transcripts=None,
    valid_fraction=0.02,
    valid_recordings_per_speaker=2,
    valid_positive_trials=5000,
    valid_negative_trials=5000,
    valid_different_video=False,
    valid_same_sex=False,
    convert=None,
    seed=42133724,
    skip_budget=0,
    strict=False,
    header_only=False,
    num_workers=None,
    skip_prep=False,
):
    """Write the CSVs and trial lists of VoxCeleb, rows sorted by ID.

    Training data become ``train.csv``, ``valid.csv`` and ``valid_trials.txt``;
    test data become ``test.csv``, with every utterance of any trial list, and
    one trial list under the name of each list given. Every audio file is
    decoded once, also when the preparation is killed and started again or when
    the validation split changes (``train.scan``, ``test.scan``); what an earlier
    call wrote is kept where neither the options nor the input files changed and
    the outputs are as they were; what no preparation wrote is never overwritten. At
    the end ``prepare_report.json`` tells what there is, and what lies in the training
    folder and is no utterance (other endings, other folders), by kind.

    Arguments
    ---------
    data_folder : str or Path
        VoxCeleb2: ``id*/<video>/<utterance>`` in any of ``dev/wav``,
        ``dev/aac``, ``wav``, ``aac`` or the folder itself, as .wav, .flac or
        .m4a (taken in this order where one utterance has several). A name with
        blanks, or a path that is not UTF-8, makes it a bad file. None: no training
        data.
    test_folder : str or Path
        VoxCeleb1: the same in ``wav``, ``dev/wav`` and ``test/wav``, or the
        folder itself. None: no test data.
    save_folder : str or Path
        Not a folder of audio.
    trial_lists : list of str
        Files with lines ``label speaker/video/file speaker/video/file``,
        absolute or relative to ``test_folder``. Their order and duplicates are
        kept: published error rates count them.
    journal_folder : str or Path
        Where what decoding found out (``*.scan``) is kept, for preparations with
        other options, too. None: ``save_folder``.
    without_test_speakers : bool
        Take the speakers of the trial lists out of the training data: for all of
        VoxCeleb1 in one folder, as ``data_folder`` and ``test_folder``.
    transcripts : str or list of str
        Files that ``lobes.preparation.transcripts`` reads. The rows of ``train.csv``
        and ``valid.csv`` with a usable transcript then also stand, with it in a column
        ``wrd``, in ``train_transcribed.csv`` and ``valid_transcribed.csv``; all others,
        with the reason, in ``transcripts.skipped.csv``.
    valid_fraction : float
        Whole recordings (videos), shuffled by ``seed``, are held out until they
        have this fraction of the utterances ...
    valid_recordings_per_speaker : int
        ... at most so many of one speaker, of whom at least one stays.
    valid_positive_trials, valid_negative_trials : int
        Pairs drawn from the held-out utterances, none twice in either order;
        all pairs where there are fewer.
    valid_different_video : bool
        Take no positive trial within one video (it is easy: same room, same
        microphone).
    valid_same_sex : bool
        Take negative trials of two speakers of one sex only (two sexes are easy to
        tell apart), which VoxCeleb's ``vox2_meta.csv`` in ``data_folder`` tells.
    convert : str
        ``flac`` or ``wav``: what m4a files of the training data are converted to
        first, once and beside them (see ``lobes.preparation.conversion``); the
        originals stay, and those that cannot be converted are bad files. None: they are
        decoded whole for every crop.
    seed : int
    skip_budget : int
        How many files that ``lobes.data.audio`` refuses may be left out, of the
        training and of the test data; listed in ``train.skipped.csv`` and
        ``test.skipped.csv``. Trials that need one are left out and counted.
    strict : bool
        A bad file is an error, whatever the budget.
    header_only : bool
        Take the lengths from the headers of wav and flac files (m4a are decoded):
        far faster, but damaged audio shows up in training only, and without ``mean``
        and ``std`` every utterance is then read whole to be normalised.
    num_workers : int
        Decoding processes; None for all cores.
    skip_prep : bool
        Do nothing: the files are the user's own.

    Returns
    -------
    dict
        By file name ``{path, speakers, utterances, hours, skipped}`` for a CSV
        and ``{path, trials, positives, negatives}`` for a trial list; empty
        with ``skip_prep``.

    Raises ``UserError`` for missing folders, lists and files, malformed lists,
    a speaker in both training and test data, fewer than two training speakers,
    a speaker without a sex in ``vox2_meta.csv`` where it is needed, a corpus too
    small for the validation split, and too many bad files.
    """
    if skip_prep:
        return {}
    check_voxceleb(data_folder, test_folder, transcripts)
    splitting = {
        "fraction": valid_fraction,
        "per_speaker": valid_recordings_per_speaker,
        "positives": valid_positive_trials,
        "negatives": valid_negative_trials,
        "different_video": valid_different_video,
        "seed": seed,
    }
    check_budget(skip_budget)
    worker_count(num_workers)
    skip_budget = 0 if strict else skip_budget
    check_split_settings(
        {"valid_fraction": valid_fraction},
        {
            "valid_recordings_per_speaker": valid_recordings_per_speaker,
            "valid_positive_trials": valid_positive_trials,
            "valid_negative_trials": valid_negative_trials,
        },
        seed,
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
    if data_folder is not None:
        data_folder = existing_folder(data_folder, "data_folder (voxceleb2_folder)")
        _check_outside(save_folder, data_folder, _TRAIN_ROOTS)
    if test_folder is not None:
        test_folder = existing_folder(test_folder, "test_folder (voxceleb1_folder)")
        _check_outside(save_folder, test_folder, _TEST_ROOTS)
    save_folder = writable_folder(save_folder)
    journal_folder = writable_folder(journal_folder or save_folder, "journal_folder")
    # Both listings come first: a leak must not show up after hours of decoding.
    train = test = sexes = None
    outputs = {}
    if test_folder is not None:
        lists = _find_lists(trial_lists, test_folder, save_folder)
        names, trials = _read_lists(lists)
        test, test_inputs = _find_utterances(names, test_folder, lists)
        outputs["test"] = ["test.csv", *trials]
    if data_folder is not None:
        without = {s for s, _ in test.recordings} if without_test_speakers else ()
        train, train_inputs, left_out = _list_utterances(data_folder, without)
        left_out.say("train")
        if valid_same_sex:
            sexes = _read_sexes(data_folder / META, train)
        outputs["train"] = _TRAIN_FILES
        if transcripts is not None:
            outputs["transcripts"] = _TRANSCRIBED_FILES
    if train is not None and test is not None:
        _check_leak(train, test)
    for name, files in outputs.items():
        check_owner(save_folder, name, CORPUS, files)
    counts = {}
    # Two trainings that start together share one folder.
    with one_preparation(save_folder, journal_folder):
        if train is not None:
            if _converted(train, data_folder, convert, num_workers):
                train, train_inputs, left_out = _list_utterances(data_folder, without)
            options = {
                "folder": os.fspath(data_folder),
                "header_only": header_only,
                "sexes": sexes and file_hash(data_folder / META),
                # Absent otherwise: what was prepared before stays as it is.
                **({"without": sorted(without)} if without else {}),
                **splitting,
            }
            part = Part(save_folder, "train", CORPUS, options, train_inputs)
            splitting["sexes"] = sexes
            scanning = Scanning(
                journal_folder, data_folder, skip_budget, header_only, num_workers
            )
            counts |= part.reusable(skip_budget) or _prepare_train(
                part, train, splitting, scanning
            )
        if transcripts is not None:
            paths = transcript_files(transcripts)
            counts |= _prepare_transcribed(save_folder, paths)
        if test is not None:
            options = {
                "folder": os.fspath(test_folder),
                "header_only": header_only,
                "lists": list(map(str, lists)),
            }
            part = Part(save_folder, "test", CORPUS, options, test_inputs)
            scanning = Scanning(
                journal_folder, test_folder, skip_budget, header_only, num_workers
            )
            counts |= part.reusable(skip_budget) or _prepare_test(
                part, test, trials, scanning
            )
        published = "VoxCeleb1/dev" if without_test_speakers else "VoxCeleb2/dev"
        dropped = {} if train is None else {"train": left_out.counts()}
        _report(save_folder, counts, published, dropped)
    return with_paths(save_folder, counts)


def check_voxceleb(data_folder, test_folder, transcripts=None, skip_prep=False, **_):
    """Raise ``UserError`` for inputs of ``prepare_voxceleb`` that are not there.

    Takes its arguments, and hardly any time: for what comes before it.
    """
    if skip_prep:
        return
    if data_folder is not None:
        existing_folder(data_folder, "data_folder (voxceleb2_folder)")
    if test_folder is not None:
        existing_folder(test_folder, "test_folder (voxceleb1_folder)")
    if transcripts is not None:
        transcript_files(transcripts)
        if data_folder is None:
            raise UserError(
                "transcripts are given but no data_folder (voxceleb2_folder), whose "
                "utterances they are for; give both or none"
            )


class Scanning(NamedTuple):
    """How the files of a part are decoded; see ``prepare_voxceleb``."""

    journal_folder: Path
    folder: Path
    skip_budget: int
    header_only: bool
    num_workers: int | None


def _check_outside(save_folder, folder, roots):
    """Refuse to write where utterances are looked for."""
    path, home = (Path(os.path.realpath(place)) for place in (save_folder, folder))
    if path.is_relative_to(home):
        first = (*path.relative_to(home).parts, ".")[0]
        if first.startswith("id") or first in {root.split("/")[0] for root in roots}:
            outside(save_folder, [folder])


def _converted(train, data_folder, to, num_workers):
    """Convert the training data's m4a files where asked; whether there were any."""
    sources = [path for path in train.paths if path.lower().endswith(AAC_SUFFIXES)]
    if not sources:
        return False
    if to is None:
        say(
            f"train: {len(sources):,} of {len(train.paths):,} files are m4a, which are "
            f"decoded whole for every crop; --convert flac (of train.py: "
            f"--voxceleb_convert=flac) converts them once"
        )
        return False
    writable_folder(data_folder, f"convert={to}: data_folder (voxceleb2_folder)")
    counts = conversion.convert(data_folder, data_folder, to, num_workers, only=sources)
    say(f"train: {conversion.summary(counts, data_folder)}")
    return True


def _report(save_folder, counts, published, left_out):
    """Write and say what there is, beside what was published and was left out."""
    skipped = {}
    for part, names in (
        ("train", ["train.csv"]),
        ("test", ["test.csv"]),
        ("transcripts", _TRANSCRIBED_FILES),
    ):
        skipped[part] = sum(counts[n]["skipped"] for n in names if n in counts)
    official = {}
    if "train.csv" in counts:
        official[("train.csv", "valid.csv")] = (published,)
    write_report(save_folder, CORPUS, counts, skipped, official, left_out)


def _read_sexes(path, utterances):
    """``{speaker: m or f}`` of all speakers of ``utterances``.

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
    for number, line in enumerate(_text_lines(path), 1):
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
    speakers = sorted({speaker for speaker, _ in utterances.recordings})
    unknown = [speaker for speaker in speakers if speaker not in sexes]
    if unknown:
        raise UserError(
            f"{path}: no line for {len(unknown)} speaker(s): {enumeration(unknown)}; "
            f"download the complete file, or set valid_same_sex=False"
        )
    return {speaker: sexes[speaker] for speaker in speakers}


def _prepare_train(part, utterances, splitting, scanning):
    """Write train.csv, valid.csv and valid_trials.txt; returns their counts."""
    _check_speakers(utterances)
    # Before decoding to fail early, and again if files had to be left out.
    valid, trials = _split(utterances, **splitting)
    scan, good, skipped = _scan(part, utterances, scanning)
    if not good.all():
        utterances = _select(utterances, good)
        _check_speakers(utterances)
        valid, trials = _split(utterances, **splitting)
    _report_shortage(valid, trials, splitting)
    columns = _columns(utterances, scan, good)
    files, counts = {}, {}
    for name, rows, left_out in (
        ("train.csv", ~valid, skipped),
        ("valid.csv", valid, 0),
    ):
        files[name], counts[name] = _csv(name, columns, rows, left_out)
    say(_single_utterances(utterances, ~valid))
    name = "valid_trials.txt"
    files[name], counts[name] = trial_text(name, utterances.ids, trials)
    part.write(files, counts, skipped)
    return counts


def _prepare_transcribed(save_folder, transcripts):
    """Write the rows that have a usable transcript, or keep them; their counts."""
    sources = {name: save_folder / f"{name}.csv" for name in ("train", "valid")}
    inputs = json.dumps([file_hash(path) for path in (*transcripts, *sources.values())])
    part = Part(save_folder, "transcripts", CORPUS, {}, inputs)
    kept = part.reusable(skip_budget=0)
    if kept is not None:
        return kept
    found = read_transcripts(transcripts)
    files, counts, skipped, known = {}, {}, [], set()
    for name, path in sources.items():
        with open(path, encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            header = (*reader.fieldnames, "wrd")
            rows = list(reader)
        samples = {row["ID"]: int(row["stop"]) - int(row["start"]) for row in rows}
        texts, left_out = choose(found, samples)
        rows = [{**row, "wrd": texts[row["ID"]]} for row in rows if row["ID"] in texts]
        if not rows and name == "train":
            raise UserError(
                f"transcripts: no utterance of {path} has a usable transcript in "
                f"{', '.join(map(str, transcripts))} ({reason_counts(left_out)}); "
                "docs/transcripts.md says what is usable"
            )
        output = f"{name}_transcribed.csv"
        files[output] = csv_text(header, [[row[c] for row in rows] for c in header])
        speakers = [row["spk_id"] for row in rows]
        frames = np.array([samples[row["ID"]] for row in rows], dtype=np.int64)
        counts[output] = csv_counts(output, speakers, frames, len(left_out))
        say(f"{output}: left out: {reason_counts(left_out)}")
        skipped += left_out
        known |= samples.keys()
    strangers = unknown_utterances(found, known)
    if strangers:
        say(f"transcripts: left out: {reason_counts(strangers)}")
    columns = list(zip(*skipped, *strangers, strict=True)) or [(), (), ()]
    files["transcripts.skipped.csv"] = csv_text(("ID", "reason", "detail"), columns)
    part.write(files, counts)
    return counts


def _prepare_test(part, utterances, trials, scanning):
    """Write test.csv and the trial lists; returns their counts."""
    scan, good, skipped = _scan(part, utterances, scanning)
    columns = _columns(_select(utterances, good), scan, good)
    name = "test.csv"
    text, count = _csv(name, columns, np.ones(int(good.sum()), dtype=bool), skipped)
    files, counts = {name: text}, {name: count}
    for name, listed in trials.items():
        usable = good[listed.enrol] & good[listed.test]
        if not usable.all():
            say(
                f"{name}: {int((~usable).sum())} of {len(usable)} trials left out with "
                f"the bad utterances; error rates are not comparable to published ones"
            )
            listed = Trials(*(column[usable] for column in listed))
        _check_both_labels(name, listed)
        files[name], counts[name] = trial_text(name, utterances.ids, listed)
    part.write(files, counts, skipped)
    return counts


def _list_utterances(data_folder, without=()):
    """All utterances below the training roots, a hash of the listing, and the rest.

    Those of the speakers ``without`` are left out. The rest is a ``LeftOut``.
    """
    left_out = LeftOut(data_folder)
    speakers = _list_speakers(data_folder, left_out)
    ids, paths, recording, recordings, problems = [], [], array("l"), [], []
    inputs = Inputs()
    prefix = os.path.join(data_folder, "")
    for speaker in sorted(speakers):
        videos = {}
        for path in speakers[speaker]:
            folders, files = listing(path)
            for entry in files:
                left_out.add("file(s) that lie in no id*/<video>", entry.path)
            for entry in folders:
                videos.setdefault(entry.name, []).append(entry.path)
        for video in sorted(videos):
            entries = []
            for path in videos[video]:
                folders, files = listing(path)
                entries += files
                for entry in folders:
                    left_out.add("folder(s) below id*/<video>", entry.path)
            audio = best_audio(entries, _SUFFIXES, left_out)
            if not audio:
                left_out.add("video(s) without an utterance", videos[video][0])
            elif speaker in without:
                path = next(iter(audio.values())).path
                kind = "utterance(s) of speakers of the trial lists"
                left_out.add(kind, path, len(audio))
                continue
            known = len(ids)
            for stem, entry in audio.items():
                inputs.add(entry.path.removeprefix(prefix), entry.path)
                utterance = f"{speaker}--{video}--{stem}"
                if reason := name_problem(utterance, entry.path):
                    problems.append(Problem(utterance, entry.path, reason))
                    continue
                ids.append(utterance)
                paths.append(entry.path)
                recording.append(len(recordings))
            if len(ids) > known:
                recordings.append((speaker, video))
    if not ids and not problems:
        if without and speakers:
            raise UserError(
                f"data_folder: all {len(speakers)} speakers in {data_folder} are in "
                f"the trial lists, none is left to train on; unpack VoxCeleb1's "
                f"development half there, too"
            )
        raise UserError(
            f"data_folder: no audio found in {data_folder}; looked for "
            f"id*/<video>/*.wav, .flac or .m4a there and in its "
            f"{', '.join(_TRAIN_ROOTS[:-1])}: unpack VoxCeleb2 or correct the path"
        )
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise UserError(
            f"data_folder: two files would both be called {twice}: "
            f"{enumeration([p for i, p in zip(ids, paths, strict=True) if i == twice])}"
            f"; rename the folders of one"
        )
    recording = np.array(recording, dtype=np.int64)
    utterances = Utterances(ids, paths, recording, recordings, tuple(problems))
    return utterances, inputs.digest(), left_out


def _list_speakers(data_folder, left_out):
    """Paths of every speaker's folders, ``{speaker: [path]}``."""
    roots = [data_folder / root for root in _TRAIN_ROOTS]
    above = {path for root in roots for path in (root, *root.parents)}
    speakers = {}
    for folder in sorted(path for path in above if path.is_relative_to(data_folder)):
        if not folder.is_dir():
            continue
        folders, files = listing(folder)
        for entry in folders:
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
    where each was named first, sorted, and ``{list name: Trials}``.

    1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav
    0 id10270/x6uYqmx31kE/00001.wav id10300/ize_eiCFEg0/00003.wav
    """
    first, index, raw = {}, {}, {}
    problems = []
    for path in lists:
        label, pairs = array("b"), array("l")
        for number, line in enumerate(_text_lines(path), 1):
            fields = line.split()
            if not fields:
                continue
            if problem := _trial_problem(fields):
                problems.append(f"{path}, line {number}: {problem}")
                continue
            label.append(int(fields[0]))
            for file in fields[1:]:
                name = os.path.splitext(file)[0]
                if name not in index:
                    index[name] = len(index)
                    first[name] = (file, path, number)
                pairs.append(index[name])
        raw[path.name] = (
            np.array(label, dtype=np.int64),
            np.array(pairs, dtype=np.int64).reshape(-1, 2),
        )
    if problems:
        raise UserError(
            f"{len(problems)} bad line(s) in the trial lists: {enumeration(problems)}; "
            f"correct them or download the list again"
        )
    names = sorted(first)
    rank = np.empty(len(names), dtype=np.int64)
    rank[[index[name] for name in names]] = np.arange(len(names))
    trials = {}
    for name, (label, pairs) in raw.items():
        pairs = rank[pairs]
        trials[name] = Trials(label, pairs[:, 0], pairs[:, 1])
        _check_both_labels(name, trials[name])
        _check_contradictions(name, trials[name], names)
        _report_oddities(name, trials[name], names)
    return {name: first[name] for name in names}, trials


def _trial_problem(fields):
    """What is wrong with one line's fields, or None."""
    if len(fields) != 3:
        return f"{len(fields)} columns instead of `label enrol test`"
    if fields[0] not in ("0", "1"):
        return f"the label is {fields[0]!r}, not 0 or 1"
    for name in fields[1:]:
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


def _check_contradictions(name, trials, names):
    """Refuse what ``read_trials`` would refuse in the list we write."""
    pairs = _unordered(trials)
    index = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    both = np.bincount(index, trials.label)
    wrong = (both > 0)[index] & (both < np.bincount(index))[index]
    wrong |= (trials.enrol == trials.test) & (trials.label == 0)
    if wrong.any():
        one, other = (names[i] for i in pairs[wrong.argmax()])
        raise UserError(
            f"{name}: {int(wrong.sum())} trial(s) contradict others or themselves, "
            f"such as {one} with {other}: two labels for one pair, or label 0 for an "
            f"utterance and itself; correct the list, or download it again"
        )


def _unordered(trials):
    """Both utterances of every trial ``[trial, 2]``, the smaller index first."""
    return np.sort(np.stack([trials.enrol, trials.test], axis=1), axis=1)


def _report_oddities(name, trials, names):
    """Say what is unusual in a list but no reason to refuse it."""
    pairs = _unordered(trials)
    duplicates = len(pairs) - len(np.unique(pairs, axis=0))
    if duplicates:
        say(f"{name}: {duplicates} trial(s) repeat a pair; kept as published")
    alone = int((trials.enrol == trials.test).sum())
    if alone:
        say(f"{name}: warning: {alone} trial(s) compare an utterance with itself")
    speaker = np.unique([n.split("/")[0] for n in names], return_inverse=True)[1]
    same = speaker[trials.enrol] == speaker[trials.test]
    odd = int((same != (trials.label == 1)).sum())
    if odd:
        say(f"{name}: warning: {odd} label(s) contradict the speakers' folder names")


def _find_utterances(names, test_folder, lists):
    """The utterances named in the lists, and a hash of them and of the lists."""
    roots = [test_folder / root for root in _TEST_ROOTS]
    roots = [root for root in roots if root.is_dir()]
    ids, paths, recording, recordings, missing = [], [], [], [], []
    inputs = Inputs()
    for path in lists:
        inputs.add(path.name, path)
    for name, (file, path, number) in names.items():
        found = _find_audio(roots, file)
        if found is None:
            missing.append(f"{path}, line {number}: {file}")
            continue
        inputs.add(os.path.relpath(found, test_folder), found)
        speaker, video, utterance = name.split("/")
        if not recordings or recordings[-1] != (speaker, video):
            recordings.append((speaker, video))
        ids.append(f"{speaker}--{video}--{utterance}")
        paths.append(found)
        recording.append(len(recordings) - 1)
    if missing:
        raise UserError(
            f"trial_lists: {len(missing)} of {len(names)} files are not in "
            f"{test_folder} nor in its {', '.join(_TEST_ROOTS[:-1])}: "
            f"{enumeration(missing)}; unpack all of VoxCeleb1 there, or take a list "
            f"that needs less"
        )
    utterances = Utterances(ids, paths, np.array(recording, dtype=np.int64), recordings)
    return utterances, inputs.digest()


def _find_audio(roots, file):
    """Path of a listed file, if need be with another suffix; None if absent."""
    stem = os.path.splitext(file)[0]
    for root in roots:
        for candidate in (file, *(stem + suffix for suffix in _SUFFIXES)):
            path = os.path.join(root, candidate)
            if os.path.isfile(path):
                return path
    return None


def _check_leak(train, test):
    """Refuse a speaker that is in both training and test data."""
    shared = {s for s, _ in train.recordings} & {s for s, _ in test.recordings}
    if shared:
        raise UserError(
            f"{len(shared)} speaker(s) are in both training and test data: "
            f"{enumeration(sorted(shared))}; take their folders out of data_folder, "
            f"or test on other speakers"
        )


def _check_speakers(utterances):
    """Telling speakers apart takes two of them."""
    speakers = {speaker for speaker, _ in utterances.recordings}
    if len(speakers) < 2:
        found = f"only 1 speaker ({speakers.pop()})" if speakers else "no speaker"
        raise UserError(f"data_folder: {found} was found; training needs at least two")


def _single_utterances(utterances, rows):
    """What to say about speakers with one training utterance."""
    speakers = [s for s, _ in utterances.recordings]
    index = np.unique(speakers, return_inverse=True)[1]
    single = int((np.bincount(index[utterances.recording[rows]]) == 1).sum())
    if not single:
        return "train.csv: every speaker has at least two utterances"
    return f"train.csv: warning: {single} speaker(s) have a single utterance"


def _scan(part, utterances, scanning):
    """Decode all; returns the ``Scan``, a column of the good, the number of others."""
    problems = list(utterances.problems)
    if len(problems) > scanning.skip_budget:
        # Raises: no reason to decode hours of audio first.
        part.skip(problems, scanning.skip_budget)
    journal = ScanCache(scanning.journal_folder / f"{part.name}.scan", scanning.folder)
    scan = scan_audio(
        utterances.paths,
        scanning.num_workers,
        part.name,
        journal,
        scanning.header_only,
    )
    if scanning.header_only:
        scan = scan._replace(mean=None, std=None)
    problems += [
        Problem(utterances.ids[index], utterances.paths[index], reason)
        for index, reason in scan.reasons.items()
    ]
    part.skip(problems, scanning.skip_budget)
    good = np.ones(len(utterances.ids), dtype=bool)
    good[list(scan.reasons)] = False
    if not good.any():
        raise UserError(
            f"{part.name}: no usable utterance is left; repair the corpus, see "
            f"{part.folder / f'{part.name}.skipped.csv'}"
        )
    return scan, good, len(problems)


def _select(utterances, rows):
    """The utterances where ``rows`` is true, without empty recordings."""
    keep = np.flatnonzero(rows).tolist()
    left, recording = np.unique(utterances.recording[keep], return_inverse=True)
    return Utterances(
        [utterances.ids[i] for i in keep],
        [utterances.paths[i] for i in keep],
        recording,
        [utterances.recordings[i] for i in left],
    )


def _columns(utterances, scan, good):
    """The CSV's columns, for the good utterances."""
    frames = scan.frames[good]
    speakers = [utterances.recordings[i][0] for i in utterances.recording.tolist()]
    columns = (
        utterances.ids,
        frames / SAMPLE_RATE,
        utterances.paths,
        np.zeros_like(frames),
        frames,
        speakers,
    )
    if scan.mean is None:
        return columns
    return *columns, scan.mean[good], scan.std[good]


def _csv(name, columns, rows, skipped):
    """Text and counts of a CSV with the rows that ``rows`` (bool) selects."""
    keep = sorted(np.flatnonzero(rows).tolist(), key=columns[0].__getitem__)
    columns = [
        c[keep] if isinstance(c, np.ndarray) else [c[i] for i in keep] for c in columns
    ]
    speakers = columns[HEADER.index("spk_id")]
    frames = columns[HEADER.index("stop")]
    text = csv_text(HEADER[: len(columns)], columns)
    return text, csv_counts(name, speakers, frames, skipped)


def _split(
    utterances,
    fraction,
    per_speaker,
    positives,
    negatives,
    different_video,
    seed,
    sexes=None,
):
    """Hold out recordings and draw trials; column ``[utterance]`` and ``Trials``.

    The rule is told in ``prepare_voxceleb``.
    """
    random = np.random.RandomState(seed)
    recording = utterances.recording
    speakers = [speaker for speaker, _ in utterances.recordings]
    valid = hold_out(recording, speakers, fraction, per_speaker, random)[recording]
    rows = np.flatnonzero(valid)
    names, speaker = np.unique(speakers, return_inverse=True)
    group = None
    if sexes is not None:
        group = np.array([sexes[name] == "f" for name in names], dtype=np.int64)
    drawn = draw_trials(
        speaker[recording[rows]],
        recording[rows],
        positives,
        negatives,
        different_video,
        random,
        group,
    )
    if len(set(drawn.label.tolist())) != 2:
        kind = "positive" if not drawn.label.any() else "negative"
        raise UserError(
            f"valid_fraction={fraction} holds out {len(rows)} of "
            f"{len(utterances.ids)} utterances, which give no {kind} trial; raise "
            f"valid_fraction, or use more speakers with two or more videos"
            f"{'' if sexes is None else ', or set valid_same_sex=False'}"
        )
    return valid, Trials(drawn.label, rows[drawn.enrol], rows[drawn.test])


def _report_shortage(valid, trials, splitting):
    """Say where the corpus is too small for the numbers asked for."""
    wanted = splitting["fraction"] * len(valid)
    if valid.sum() < wanted:
        say(
            f"valid.csv: only {valid.sum()} utterances can be held out of the "
            f"{wanted:.0f} asked for (at most {splitting['per_speaker']} recordings of "
            f"a speaker, and one must stay)"
        )
    wanted = splitting["positives"], splitting["negatives"]
    report_shortage("valid_trials.txt", trials, *wanted)


def _text_lines(path):
    """Lines of a text file, whatever their ends and with or without a BOM."""
    try:
        return path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8; download the list again"
        ) from error


@user_errors_exit
def main(arguments=None):
    """Command line of ``prepare_voxceleb``."""
    parser = ArgumentParser(
        description="Prepare VoxCeleb: CSVs for training, validation and test, and "
        "trial lists.",
    )
    parser.add_argument(
        "data_folder",
        metavar="DATA_FOLDER",
        help="VoxCeleb2 for training and validation; - for none",
    )
    parser.add_argument("save_folder", metavar="SAVE_FOLDER", help="for the CSVs")
    parser.add_argument("--test_folder", help="VoxCeleb1 (default: no test data)")
    parser.add_argument(
        "--trial_lists",
        nargs="+",
        action="extend",
        metavar="LIST",
        help=f"absolute or relative to the test folder ({' '.join(TRIAL_LISTS)})",
    )
    parser.add_argument(
        "--transcripts",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="of VoxCeleb2, made by tools/pseudo_label.py or elsewhere (none)",
    )
    for flag, default, use in (
        ("valid_fraction", 0.02, "utterances held out for validation"),
        ("valid_recordings_per_speaker", 2, "held out of a speaker at most"),
        ("valid_positive_trials", 5000, "validation trials of one speaker"),
        ("valid_negative_trials", 5000, "validation trials of two speakers"),
        ("seed", 42133724, "of the validation split"),
        ("skip_budget", 0, "bad files that may be left out"),
    ):
        parser.add_argument(
            f"--{flag}",
            type=option("voxceleb", flag),
            default=default,
            help=f"{use} (%(default)s)",
        )
    for flag, use in (
        ("valid_different_video", "no positive validation trial within one video"),
        (
            "without_test_speakers",
            "no training on the speakers of the trial lists: DATA_FOLDER is VoxCeleb1",
        ),
        ("valid_same_sex", f"negative validation trials of one sex (by {META})"),
        ("strict", "any bad file is an error"),
        (
            "header_only",
            "lengths from headers, no mean and std: fast, and overlooks "
            "damage; m4a files are decoded",
        ),
    ):
        parser.add_argument(f"--{flag}", action="store_true", help=use)
    parser.add_argument(
        "--convert",
        choices=("flac", "wav"),
        help="convert VoxCeleb2's m4a files first, beside them (read as they are)",
    )
    parser.add_argument(
        "--num_workers",
        type=option("voxceleb", "num_workers"),
        help="decoding processes (default: all cores)",
    )
    options = vars(parser.parse_args(arguments))
    options["trial_lists"] = options["trial_lists"] or TRIAL_LISTS
    if options["data_folder"] == "-":
        options["data_folder"] = None
    prepare_voxceleb(**options)


if __name__ == "__main__":
    main()
