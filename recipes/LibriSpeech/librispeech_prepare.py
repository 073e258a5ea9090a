"""LibriSpeech: folders of flac files and transcripts to one CSV per split.

Columns: ``ID,duration,wav,spk_id,wrd,mean,std`` (duration in seconds; mean and
standard deviation of the whole utterance's samples, not with header_only). For
speaker recognition there may also be a validation split and trial lists, lines
``label enrol_ID test_ID`` with label 1 for two utterances of one speaker.

    python librispeech_prepare.py /data/LibriSpeech results/csv \\
        --train train-clean-100 train-clean-360 --dev dev-other --test test-other \\
        --speaker_valid_fraction 0.05 --trials test-other
"""

import csv
import json
import os
from pathlib import Path

import numpy as np

from lobes.data.audio import SAMPLE_RATE, encoder_frames
from lobes.data.scan_cache import ScanCache
from lobes.data.vocabulary import Vocabulary, ctc_frames
from lobes.errors import ArgumentParser, UserError, enumeration, user_errors_exit
from lobes.preparation.folders import (
    Inputs,
    LeftOut,
    best_audio,
    children,
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
    check_budget,
    check_split_settings,
    draw_trials,
    hold_out,
    report_shortage,
)
from lobes.settings.table import option
from lobes.system.files import file_hash
from lobes.system.parallel import worker_count
from lobes.system.terminal import say

HEADER = ("ID", "duration", "wav", "spk_id", "wrd", "mean", "std")

CORPUS = "LibriSpeech"

# Best first. A wav made from the flac is faster to read in parts.
_SUFFIXES = (".wav", ".flac")

# Held out of one speaker for validation at most: two give positive trials from
# different chapters, and more would leave room for fewer speakers.
_CHAPTERS_PER_SPEAKER = 2

# What the validation split consists of, without the endings.
_SPEAKER_PARTS = ("train_speakers", "valid_speakers")


def prepare_librispeech(
    data_folder,
    save_folder,
    tr_splits=(),
    dev_splits=(),
    te_splits=(),
    merge_name="train.csv",
    journal_folder=None,
    speaker_valid_fraction=None,
    trial_splits=(),
    positive_trials=5000,
    negative_trials=5000,
    trials_across_chapters=True,
    seed=42133724,
    skip_budget=0,
    strict=False,
    header_only=False,
    num_workers=None,
    skip_prep=False,
):
    """Write ``<save_folder>/<split>.csv`` for every split, rows sorted by ID.

    Every audio file is decoded once, also when the preparation is killed and started
    again (``<split>.scan``); what an earlier call wrote is kept where neither the
    options nor the input files changed and the CSV is as it was; what no preparation
    wrote is never overwritten. At the end ``prepare_report.json`` tells what there is,
    and what lies in each split and is no utterance, by kind.

    Arguments
    ---------
    data_folder : str or Path
        Holds the split folders, or a folder ``LibriSpeech`` that does.
    save_folder : str or Path
        Not in a split's folder.
    tr_splits, dev_splits, te_splits : list of str
        Names (no paths) of split folders; a training split may not be in the others.
    merge_name : str
        CSV with all training splits together; None to leave it out.
    journal_folder : str or Path
        Where what decoding found out (``*.scan``) is kept, for preparations with
        other options, too. None: ``save_folder``.
    speaker_valid_fraction : float
        Whole recordings (chapters), shuffled by ``seed``, are held out of each
        training split until they have this fraction of its utterances: at most two
        of a speaker, of whom at least one chapter stays. That gives
        ``train_speakers.csv``, ``valid_speakers.csv`` and
        ``valid_speakers_trials.txt`` beside the training CSVs, which keep all rows.
        None: nothing of it.
    trial_splits : list of str
        Dev and test splits that get a trial list, ``<split>_trials.txt``.
    positive_trials, negative_trials : int
        Pairs drawn for each list, none twice in either order; all pairs where there
        are fewer. Negative trials are of two speakers of one sex, which
        ``SPEAKERS.TXT`` beside the split folders tells.
    trials_across_chapters : bool
        Take positive trials from two chapters only (within one, room and
        microphone are the same).
    seed : int
        Of the validation split and of all trials.
    skip_budget : int
        How many bad utterances of a split may be left out, listed in
        ``<split>.skipped.csv``. Bad are: audio that ``lobes.data.audio`` refuses,
        audio without transcript, a transcript without audio, without words,
        with characters outside the vocabulary (lower case is turned into upper
        case), or with more letters than CTC can place in its frames; a name with
        blanks, and a path that is not UTF-8.
    strict : bool
        A bad utterance is an error, whatever the budget.
    header_only : bool
        Take the lengths from the files' headers: far faster, but damaged audio shows
        up in training only, and without ``mean`` and ``std`` every utterance is then
        read whole to be normalised.
    num_workers : int
        Decoding processes; None for all cores.
    skip_prep : bool
        Do nothing: the CSVs are the user's own.

    Returns
    -------
    dict
        By file name ``{path, speakers, utterances, hours, skipped}`` for a CSV and
        ``{path, trials, positives, negatives}`` for a trial list; empty with
        ``skip_prep``.

    Raises ``UserError`` for missing folders, empty splits, transcripts that
    cannot be parsed, utterances that occur twice, too many bad utterances, a
    speaker of a training split in a dev or test split, a list without any trial of a
    kind, and a speaker whose sex is needed and not known.
    """
    if skip_prep:
        return {}
    tr_splits, dev_splits, te_splits = map(_as_list, (tr_splits, dev_splits, te_splits))
    trial_splits = _as_list(trial_splits)
    _check_splits(tr_splits, dev_splits + te_splits, merge_name)
    drawing = {
        "positives": positive_trials,
        "negatives": negative_trials,
        "across_chapters": trials_across_chapters,
        "seed": seed,
    }
    _check_drawing(
        drawing,
        speaker_valid_fraction,
        tr_splits,
        merge_name,
        trial_splits,
        dev_splits + te_splits,
    )
    check_budget(skip_budget)
    worker_count(num_workers)
    data_folder = existing_folder(data_folder, "data_folder (librispeech_folder)")
    splits = list(dict.fromkeys(tr_splits + dev_splits + te_splits))
    # All folders first: a misspelt test set must not show up hours later.
    folders = {split: _find_split(data_folder, split) for split in splits}
    outside(save_folder, folders.values())
    if os.path.realpath(save_folder) in map(os.path.realpath, _homes(data_folder)):
        outside(save_folder, [data_folder])
    _check_leak(folders, tr_splits, dev_splits + te_splits)
    save_folder = writable_folder(save_folder)
    journal_folder = writable_folder(journal_folder or save_folder, "journal_folder")
    skip_budget = 0 if strict else skip_budget
    speakers_file = None
    if trial_splits or speaker_valid_fraction is not None:
        speakers_file = _find_speakers_file(data_folder)
    outputs = {split: [f"{split}.csv"] for split in splits}
    if tr_splits and merge_name:
        outputs[Path(merge_name).stem] = [merge_name]
    if speaker_valid_fraction is not None:
        outputs[_SPEAKER_PARTS[0]] = [f"{name}.csv" for name in _SPEAKER_PARTS]
    for split in trial_splits:
        outputs[f"{split}_trials"] = [f"{split}_trials.txt"]
    for name, files in outputs.items():
        check_owner(save_folder, name, CORPUS, files)
    counts, left_out = {}, {}
    # Two trainings that start together share one folder.
    with one_preparation(save_folder, journal_folder):
        for split, folder in folders.items():
            rest = LeftOut(folder)
            journal = ScanCache(journal_folder / f"{split}.scan", folder)
            counts[f"{split}.csv"] = _prepare_split(
                split,
                folder,
                save_folder,
                skip_budget,
                header_only,
                num_workers,
                journal,
                rest,
            )
            left_out[split] = rest.counts()
        if tr_splits and merge_name and [merge_name] != [f"{s}.csv" for s in tr_splits]:
            counts[merge_name] = _merge(save_folder, merge_name, tr_splits, counts)
        if speaker_valid_fraction is not None:
            splitting = {"fraction": speaker_valid_fraction, **drawing}
            counts |= _prepare_speakers(
                save_folder, tr_splits, speakers_file, splitting, counts
            )
        for split in trial_splits:
            counts |= _prepare_trials(save_folder, split, speakers_file, drawing)
        official = {(f"{split}.csv",): (f"{CORPUS}/{split}",) for split in splits}
        if tr_splits and merge_name:
            official[(merge_name,)] = tuple(f"{CORPUS}/{split}" for split in tr_splits)
        skipped = {split: counts[f"{split}.csv"]["skipped"] for split in splits}
        write_report(save_folder, CORPUS, counts, skipped, official, left_out)
    return with_paths(save_folder, counts)


def _check_leak(folders, tr_splits, other_splits):
    """Refuse a reader who is in training and in dev or test data."""
    readers = {
        split: {entry.name for entry in children(folder, folders=True)}
        for split, folder in folders.items()
    }
    for split in tr_splits:
        for other in other_splits:
            if shared := readers[split] & readers[other]:
                raise UserError(
                    f"{len(shared)} speaker(s) are in both {split} and {other}: "
                    f"{enumeration(sorted(shared))}; a model must not be tested on "
                    f"whom it learnt from: take their folders out of one"
                )


def _prepare_split(
    split,
    folder,
    save_folder,
    skip_budget,
    header_only,
    num_workers,
    journal,
    left_out,
):
    """Write one split's CSV, or keep it; returns its counts."""
    chapters, inputs = _list_split(folder, left_out)
    left_out.say(split)
    options = {"folder": os.fspath(folder), "header_only": header_only}
    part = Part(save_folder, split, CORPUS, options, inputs)
    kept = part.reusable(skip_budget)
    if kept is not None:
        return kept
    ids, paths, speakers, texts, problems = _read_chapters(chapters)
    if not ids and not problems:
        raise UserError(
            f"{folder}: no utterances found; looked for <speaker>/<chapter>/*.flac "
            f"(or .wav) beside <speaker>-<chapter>.trans.txt: check that the split "
            f"{split} is unpacked there"
        )
    if len(problems) > skip_budget:
        # Raises: no reason to decode hours of audio first.
        part.skip(problems, skip_budget)
    scan = scan_audio(paths, num_workers, split, journal, header_only)
    needed = [ctc_frames(text) for text in texts]
    available = encoder_frames(scan.frames)
    keep = []
    for index, (utterance, path) in enumerate(zip(ids, paths, strict=True)):
        if index in scan.reasons:
            problems.append(Problem(utterance, path, scan.reasons[index]))
        elif needed[index] > available[index]:
            reason = (
                f"CTC needs {needed[index]} frames for its transcript but the audio "
                f"has {available[index]} of 20 ms"
            )
            problems.append(Problem(utterance, path, reason))
        else:
            keep.append(index)
    part.skip(problems, skip_budget)
    if not keep:
        raise UserError(f"{folder}: no usable utterance is left; repair the corpus")
    keep.sort(key=ids.__getitem__)
    speakers = [speakers[i] for i in keep]
    frames = scan.frames[keep]
    columns = (
        [ids[i] for i in keep],
        frames / SAMPLE_RATE,
        [paths[i] for i in keep],
        speakers,
        [texts[i] for i in keep],
        scan.mean[keep],
        scan.std[keep],
    )
    name = f"{split}.csv"
    counts = csv_counts(name, speakers, frames, len(problems))
    header = HEADER[:-2] if header_only else HEADER
    columns = columns[: len(header)]
    part.write({name: csv_text(header, columns)}, counts, len(problems))
    return counts


def _list_split(folder, left_out):
    """Chapters as ``(speaker, transcript paths, {ID: audio path})``, and a hash.

    All that is neither goes to ``left_out``.
    """
    chapters = []
    inputs = Inputs()
    prefix = os.path.join(folder, "")
    speakers, files = listing(folder)
    stray = "file(s) that lie in no <speaker>/<chapter>"
    for entry in files:
        left_out.add(stray, entry.path)
    for speaker in speakers:
        folders, files = listing(speaker.path)
        for entry in files:
            left_out.add(stray, entry.path)
        for chapter in folders:
            deeper, entries = listing(chapter.path)
            for entry in deeper:
                left_out.add("folder(s) below <speaker>/<chapter>", entry.path)
            transcripts = [e for e in entries if e.name.endswith(".trans.txt")]
            others = [e for e in entries if not e.name.endswith(".trans.txt")]
            audio = best_audio(others, _SUFFIXES, left_out)
            if not transcripts and not audio:
                left_out.add("chapter(s) without an utterance", chapter.path)
            for entry in (*transcripts, *audio.values()):
                inputs.add(entry.path.removeprefix(prefix), entry.path)
            chapters.append(
                (
                    speaker.name,
                    [entry.path for entry in transcripts],
                    {stem: entry.path for stem, entry in audio.items()},
                )
            )
    return chapters, inputs.digest()


def _read_chapters(chapters):
    """Columns ID, path, speaker and text of the good utterances, and the rest."""
    vocabulary = Vocabulary()
    ids, paths, speakers, texts, problems = [], [], [], [], []
    seen = {}
    for speaker, transcripts, audio in chapters:
        spoken = {}
        for transcript in transcripts:
            for line, utterance, text in _read_transcript(transcript):
                if utterance in spoken:
                    raise UserError(
                        f"{transcript}, line {line}: {utterance} has a transcript "
                        f"already; remove one of the two"
                    )
                spoken[utterance] = (f"{transcript}, line {line}", text)
        for utterance in sorted({*audio, *spoken}):
            path = audio.get(utterance)
            where, text = spoken.get(utterance, (None, None))
            if path is None:
                reason = "there is no audio file for this transcript"
                problems.append(Problem(utterance, where, reason))
                continue
            if utterance in seen:
                raise UserError(
                    f"{path}: the utterance {utterance} occurs twice, also as "
                    f"{seen[utterance]}; remove one of the two"
                )
            seen[utterance] = path
            if reason := name_problem(utterance, path):
                problems.append(Problem(utterance, path, reason))
            elif text is None:
                reason = "no .trans.txt beside the file has a transcript for it"
                problems.append(Problem(utterance, path, reason))
            elif not text:
                problems.append(Problem(utterance, where, "the transcript is empty"))
            elif unknown := vocabulary.unknown(text):
                reason = (
                    f"the transcript has characters outside the vocabulary: "
                    f"{' '.join(map(repr, unknown))} (spell it with A-Z and ')"
                )
                problems.append(Problem(utterance, where, reason))
            else:
                ids.append(utterance)
                paths.append(path)
                speakers.append(speaker)
                texts.append(text)
    return ids, paths, speakers, texts, problems


def _read_transcript(path):
    """Lines of a transcript file as (line number, ID, upper-case text).

    84-121123-0000 GO DO YOU HEAR
    84-121123-0001 BUT IN LESS THAN FIVE MINUTES
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
    for number, line in enumerate(lines, 1):
        utterance, *words = line.split() or [None]
        if utterance is not None:
            yield number, utterance, " ".join(words).upper()


def _merge(save_folder, merge_name, tr_splits, counts):
    """Write all training splits as one CSV, or keep it; returns its counts."""
    sources = [save_folder / f"{split}.csv" for split in tr_splits]
    inputs = json.dumps([file_hash(path) for path in sources])
    name = Path(merge_name).stem
    part = Part(save_folder, name, CORPUS, {"splits": tr_splits}, inputs)
    skipped = sum(counts[path.name]["skipped"] for path in sources)
    kept = part.reusable(skipped)
    if kept is not None:
        return kept
    rows = _merged_rows(sources)
    columns = list(zip(*rows, strict=True))
    merged = {
        "speakers": len(set(columns[HEADER.index("spk_id")])),
        "utterances": len(rows),
        "hours": sum(counts[path.name]["hours"] for path in sources),
        "skipped": skipped,
    }
    # Without mean and std in all of them, or in none.
    header = HEADER[: len(columns)]
    part.write({merge_name: csv_text(header, columns)}, merged)
    return merged


def _read_rows(path):
    """Rows of a CSV that was written here."""
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        next(reader)
        return list(reader)


def _merged_rows(sources):
    """Rows of all CSVs, sorted by ID; a ``UserError`` for one that occurs twice."""
    rows = {}
    for row in (row for path in sources for row in _read_rows(path)):
        if row[0] in rows:
            raise UserError(
                f"{row[2]}: the utterance {row[0]} occurs twice, also as "
                f"{rows[row[0]][2]}; remove one of the two"
            )
        rows[row[0]] = row
    return [rows[utterance] for utterance in sorted(rows)]


def _prepare_speakers(save_folder, tr_splits, speakers_file, splitting, counts):
    """Hold out chapters of every training split, or keep them; returns the counts."""
    sources = [save_folder / f"{split}.csv" for split in tr_splits]
    inputs = json.dumps([file_hash(path) for path in (*sources, speakers_file)])
    train_name, valid_name = (f"{name}.csv" for name in _SPEAKER_PARTS)
    options = {"splits": tr_splits, "per_speaker": _CHAPTERS_PER_SPEAKER, **splitting}
    part = Part(save_folder, _SPEAKER_PARTS[0], CORPUS, options, inputs)
    kept = part.reusable(skip_budget=0)
    if kept is not None:
        return kept
    fraction, drawing = splitting["fraction"], dict(splitting)
    del drawing["fraction"]
    held_out = set()
    for path in sources:
        # From the seed again for each split: what is held out of train-clean-100 is
        # the same with 100 h and with 960 h.
        held_out |= _held_out_ids(
            path.name, _read_rows(path), fraction, drawing["seed"]
        )
    rows = _merged_rows(sources)
    skipped = sum(counts[path.name]["skipped"] for path in sources)
    train = [row for row in rows if row[0] not in held_out]
    valid = [row for row in rows if row[0] in held_out]
    files, found = {}, {}
    for name, chosen, left_out in (
        (train_name, train, skipped),
        (valid_name, valid, 0),
    ):
        header = HEADER[: len(rows[0])]
        files[name] = csv_text(header, list(zip(*chosen, strict=True)))
        frames = np.array([round(float(row[1]) * SAMPLE_RATE) for row in chosen])
        found[name] = csv_counts(name, _speakers(chosen), frames, left_out)
    name = f"{_SPEAKER_PARTS[1]}_trials.txt"
    remedy = (
        "raise speaker_valid_fraction, or use training splits with speakers of three "
        "or more chapters"
    )
    files[name], found[name] = _draw(name, valid, speakers_file, remedy, **drawing)
    part.write(files, found)
    return found


def _held_out_ids(name, rows, fraction, seed):
    """IDs of the utterances held out of one split."""
    chapters, recording = np.unique(_chapters(rows), return_inverse=True)
    speaker = dict(zip(recording.tolist(), _speakers(rows), strict=True))
    held_out = hold_out(
        recording,
        [speaker[index] for index in range(len(chapters))],
        fraction,
        _CHAPTERS_PER_SPEAKER,
        np.random.RandomState(seed),
        together=True,
    )
    ids = {
        row[0] for row, index in zip(rows, recording, strict=True) if held_out[index]
    }
    if len(ids) < fraction * len(rows):
        say(
            f"{name}: only {len(ids)} utterances can be held out of the "
            f"{fraction * len(rows):.0f} asked for (at most {_CHAPTERS_PER_SPEAKER} "
            f"chapters of a speaker, and one must stay)"
        )
    return ids


def _prepare_trials(save_folder, split, speakers_file, drawing):
    """Write one split's trial list, or keep it; returns its counts."""
    source = save_folder / f"{split}.csv"
    inputs = json.dumps([file_hash(path) for path in (source, speakers_file)])
    part = Part(save_folder, f"{split}_trials", CORPUS, drawing, inputs)
    kept = part.reusable(skip_budget=0)
    if kept is not None:
        return kept
    name = f"{split}_trials.txt"
    remedy = f"take {split} out of trial_splits"
    text, counts = _draw(name, _read_rows(source), speakers_file, remedy, **drawing)
    part.write({name: text}, {name: counts})
    return {name: counts}


def _draw(
    name, rows, speakers_file, remedy, positives, negatives, across_chapters, seed
):
    """Text and counts of a trial list over the utterances of some CSV rows."""
    speakers, speaker = np.unique(_speakers(rows), return_inverse=True)
    chapter = np.unique(_chapters(rows), return_inverse=True)[1]
    sexes = _read_sexes(speakers_file)
    unknown = [identity for identity in speakers.tolist() if identity not in sexes]
    if unknown:
        raise UserError(
            f"{speakers_file}: no line for {len(unknown)} speaker(s) of {name}: "
            f"{enumeration(unknown)}; their sex is needed: take the file of the same "
            f"release of LibriSpeech, or add the lines"
        )
    sex = np.unique([sexes[s] for s in speakers.tolist()], return_inverse=True)[1]
    trials = draw_trials(
        speaker,
        chapter,
        positives,
        negatives,
        across_chapters,
        np.random.RandomState(seed),
        sex,
    )
    if across_chapters:
        pairs = np.unique(np.stack([speaker, chapter]), axis=1)
        single = int((np.bincount(pairs[0]) == 1).sum())
        if single:
            say(
                f"{name}: {single} of {len(speakers)} speakers have a single chapter, "
                f"which gives no positive trial"
            )
    if not trials.label.any():
        where = ""
        if across_chapters:
            where = " from two chapters"
            remedy += ", or set trials_across_chapters=False (--trials_within_chapters)"
        raise UserError(
            f"{name}: the {len(rows)} utterances of {len(speakers)} speakers give no "
            f"positive trial{where}; {remedy}"
        )
    if trials.label.all():
        raise UserError(
            f"{name}: the {len(rows)} utterances have no two speakers of one sex, so "
            f"they give no negative trial; use more speakers"
        )
    report_shortage(name, trials, positives, negatives)
    return trial_text(name, [row[0] for row in rows], trials)


def _speakers(rows):
    """Speaker of each CSV row."""
    return [row[HEADER.index("spk_id")] for row in rows]


def _chapters(rows):
    """Folder of each CSV row's audio: the chapter, read in one session."""
    return [os.path.dirname(row[HEADER.index("wav")]) for row in rows]


def _read_sexes(path):
    """``{speaker: F or M}``.

    ;ID  |SEX| SUBSET           |MINUTES| NAME
    14   | F | train-clean-360  | 25.03 | Kristin LeMoine
    60   | M | train-clean-100  | 20.18 | | CBW Simon
    """
    sexes = {}
    # Only the names of the readers may be other than ASCII.
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith(";"):
            continue
        speaker, *rest = (field.strip() for field in line.split("|"))
        if not rest or rest[0] not in ("F", "M"):
            raise UserError(
                f"{path}, line {number}: {line.strip()!r} is not `speaker | F or M | "
                f"...`; correct the line"
            )
        if sexes.setdefault(speaker, rest[0]) != rest[0]:
            raise UserError(
                f"{path}, line {number}: speaker {speaker} stood there before with "
                f"another sex; remove one line"
            )
    return sexes


def _homes(data_folder):
    """Where split folders and ``SPEAKERS.TXT`` may lie."""
    return data_folder, data_folder / CORPUS


def _find_speakers_file(data_folder):
    """``SPEAKERS.TXT``, directly in ``data_folder`` or one level below."""
    name = "SPEAKERS.TXT"
    candidates = [home / name for home in _homes(data_folder)]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(
        f"neither {candidates[0]} nor {candidates[1]} exists, and trials need the sex "
        f"of every speaker; put LibriSpeech's {name} there (it is in every archive)"
    )


def _find_split(data_folder, split):
    """Folder of a split, directly in ``data_folder`` or one level below."""
    candidates = [home / split for home in _homes(data_folder)]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UserError(
        f"the split {split} was not found: neither {candidates[0]} nor {candidates[1]} "
        f"is a folder; unpack {split}.tar.gz there or correct the name"
    )


def _check_splits(tr_splits, other_splits, merge_name):
    """Refuse splits that would leak or whose CSVs would overwrite each other."""
    if not tr_splits and not other_splits:
        raise UserError(
            "no splits were asked for; name at least one in tr_splits, dev_splits or "
            "te_splits (--train, --dev, --test)"
        )
    for split in (*tr_splits, *other_splits):
        plain = split.strip() and Path(split).name == split and "\\" not in split
        if not plain or split in (".", ".."):
            home, name = os.path.split(split.rstrip("/"))
            raise UserError(
                f"{split!r} is no name of a split: name the split, not its path"
                + (f" ({name}, with data_folder {home})" if home and name else "")
            )
    if twice := {s for s in tr_splits if tr_splits.count(s) > 1}:
        raise UserError(f"tr_splits: {min(twice)} is named twice; name it once")
    if shared := set(tr_splits) & set(other_splits):
        raise UserError(
            f"{min(shared)} is both a training split and a dev or test split; a model "
            f"must not be tested on what it learnt from: take it out of one"
        )
    if not merge_name or not tr_splits:
        return
    if Path(merge_name).name != merge_name or not merge_name.endswith(".csv"):
        raise UserError(
            f"merge_name: {merge_name!r} is not a plain file name that ends in .csv"
        )
    split = merge_name.removesuffix(".csv")
    if split in other_splits or (split in tr_splits and len(tr_splits) > 1):
        raise UserError(
            f"merge_name: {merge_name} is also the CSV of the split {split}; choose "
            f"another name"
        )


def _check_drawing(
    drawing, fraction, tr_splits, merge_name, trial_splits, other_splits
):
    """Refuse what can give no validation split and no trial list."""
    counts = {"positive_trials": "positives", "negative_trials": "negatives"}
    check_split_settings(
        {} if fraction is None else {"speaker_valid_fraction": fraction},
        {argument: drawing[key] for argument, key in counts.items()},
        drawing["seed"],
    )
    if fraction is not None:
        if not tr_splits:
            raise UserError(
                f"speaker_valid_fraction={fraction} holds out training data, but "
                f"tr_splits (--train) names none; name the training splits"
            )
        for name in (
            *tr_splits,
            *other_splits,
            (merge_name or "").removesuffix(".csv"),
        ):
            if name in _SPEAKER_PARTS:
                raise UserError(
                    f"{name}.csv is what speaker_valid_fraction writes; choose another "
                    f"name"
                )
    for split in trial_splits:
        if split not in other_splits:
            raise UserError(
                f"trial_splits: {split} is not among the dev and test splits "
                f"({', '.join(other_splits) or 'there are none'}); name one of them"
            )


def _as_list(splits):
    """A list; in YAML a single split is easily written without the brackets."""
    return [splits] if isinstance(splits, str) else list(splits or ())


@user_errors_exit
def main(arguments=None):
    """Command line of ``prepare_librispeech``."""
    parser = ArgumentParser(
        description="Prepare LibriSpeech: one CSV per split, one with all training "
        "splits together; for speaker recognition a validation split and trials.",
    )
    parser.add_argument(
        "data_folder", metavar="DATA_FOLDER", help="folder that holds the splits"
    )
    parser.add_argument("save_folder", metavar="SAVE_FOLDER", help="for the CSVs")
    for flag, use in (
        ("train", "training, merged into one CSV"),
        ("dev", "validation"),
        ("test", "evaluation"),
    ):
        parser.add_argument(
            f"--{flag}",
            nargs="+",
            action="extend",
            default=[],
            metavar="SPLIT",
            help=f"for {use}",
        )
    parser.add_argument(
        "--merge_name", default="train.csv", help="the merged CSV (%(default)s)"
    )
    parser.add_argument(
        "--speaker_valid_fraction",
        type=option("librispeech", "speaker_valid_fraction"),
        help="utterances of each training split held out by chapter for the "
        "validation of speaker recognition, 0.05 for one (default: none)",
    )
    parser.add_argument(
        "--trials",
        nargs="+",
        action="extend",
        default=[],
        metavar="SPLIT",
        help="dev and test splits that get a trial list (default: none)",
    )
    for flag, default, use in (
        ("positive_trials", 5000, "trials of one speaker in each list"),
        ("negative_trials", 5000, "trials of two speakers of one sex in each list"),
        ("seed", 42133724, "of the held-out chapters and of the trials"),
        ("skip_budget", 0, "bad utterances that may be left out per split"),
    ):
        parser.add_argument(
            f"--{flag}",
            type=option("librispeech", flag),
            default=default,
            help=f"{use} (%(default)s)",
        )
    parser.add_argument(
        "--trials_within_chapters",
        dest="trials_across_chapters",
        action="store_false",
        help="allow positive trials within one chapter, too",
    )
    parser.add_argument(
        "--strict", action="store_true", help="any bad utterance is an error"
    )
    parser.add_argument(
        "--header_only",
        action="store_true",
        help="lengths from headers, no mean and std: fast, and overlooks damage",
    )
    parser.add_argument(
        "--num_workers",
        type=option("librispeech", "num_workers"),
        help="decoding processes (default: all cores)",
    )
    options = vars(parser.parse_args(arguments))
    for flag, argument in (
        ("train", "tr_splits"),
        ("dev", "dev_splits"),
        ("test", "te_splits"),
        ("trials", "trial_splits"),
    ):
        options[argument] = options.pop(flag)
    prepare_librispeech(**options)


if __name__ == "__main__":
    main()
