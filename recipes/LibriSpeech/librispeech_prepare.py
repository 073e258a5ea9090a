"""LibriSpeech: folders of flac files and transcripts to one CSV per split.

Columns: ``ID,duration,wav,spk_id,wrd,mean,std`` (duration in seconds; mean and
standard deviation of the whole utterance's samples).

    python librispeech_prepare.py /data/LibriSpeech results/csv \\
        --train train-clean-100 train-clean-360 --dev dev-other --test test-other
"""

import argparse
import csv
import json
import os
from pathlib import Path

from lobes.audio import SAMPLE_RATE, encoder_frames
from lobes.errors import UserError, user_errors_exit
from lobes.preparation import (
    Inputs,
    Part,
    Problem,
    best_audio,
    check_owner,
    children,
    csv_counts,
    csv_text,
    existing_folder,
    file_hash,
    scan_audio,
    summary_table,
    with_paths,
    writable_folder,
)
from lobes.text import Vocabulary

HEADER = ("ID", "duration", "wav", "spk_id", "wrd", "mean", "std")

CORPUS = "LibriSpeech"

# Best first. A wav made from the flac is faster to read in parts.
_SUFFIXES = (".wav", ".flac")


def prepare_librispeech(
    data_folder,
    save_folder,
    tr_splits=(),
    dev_splits=(),
    te_splits=(),
    merge_name="train.csv",
    skip_budget=0,
    num_workers=None,
    skip_prep=False,
):
    """Write ``<save_folder>/<split>.csv`` for every split, rows sorted by ID.

    Every audio file is decoded once; what an earlier call wrote is kept where
    neither the options nor the input files changed and the CSV is as it was.

    Arguments
    ---------
    data_folder : str or Path
        Holds the split folders, or a folder ``LibriSpeech`` that does.
    save_folder : str or Path
    tr_splits, dev_splits, te_splits : list of str
        Names of split folders; a training split may not be in the others.
    merge_name : str
        CSV with all training splits together; None to leave it out.
    skip_budget : int
        How many bad utterances of a split may be left out, listed in
        ``<split>.skipped.csv``. Bad are: audio that ``lobes.audio`` refuses,
        audio without transcript, a transcript without audio, without words,
        with characters outside the vocabulary (lower case is turned into upper
        case), or with more letters than CTC can place in its frames.
    num_workers : int
        Decoding processes; None for all cores.
    skip_prep : bool
        Do nothing: the CSVs are the user's own.

    Returns
    -------
    dict
        ``{file name: {path, speakers, utterances, hours, skipped}}``; empty
        with ``skip_prep``.

    Raises ``UserError`` for missing folders, empty splits, transcripts that
    cannot be parsed, utterances that occur twice, and too many bad utterances.
    """
    if skip_prep:
        return {}
    tr_splits, dev_splits, te_splits = map(_as_list, (tr_splits, dev_splits, te_splits))
    _check_splits(tr_splits, dev_splits + te_splits, merge_name)
    data_folder = existing_folder(data_folder, "data_folder (librispeech_folder)")
    save_folder = writable_folder(save_folder)
    splits = list(dict.fromkeys(tr_splits + dev_splits + te_splits))
    # All folders first: a misspelt test set must not show up hours later.
    folders = {split: _find_split(data_folder, split) for split in splits}
    if tr_splits and merge_name:
        check_owner(save_folder, Path(merge_name).stem, CORPUS)
    counts = {}
    for split, folder in folders.items():
        counts[f"{split}.csv"] = _prepare_split(
            split, folder, save_folder, skip_budget, num_workers
        )
    if tr_splits and merge_name and [merge_name] != [f"{s}.csv" for s in tr_splits]:
        counts[merge_name] = _merge(save_folder, merge_name, tr_splits, counts)
    return with_paths(save_folder, counts)


def _prepare_split(split, folder, save_folder, skip_budget, num_workers):
    """Write one split's CSV, or keep it; returns its counts."""
    chapters, inputs = _list_split(folder)
    part = Part(save_folder, split, CORPUS, {"folder": os.fspath(folder)}, inputs)
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
    scan = scan_audio(paths, num_workers, split)
    needed = [_ctc_frames(text) for text in texts]
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
    part.write({name: csv_text(HEADER, columns)}, counts, len(problems))
    return counts


def _list_split(folder):
    """Chapters as ``(speaker, transcript paths, {ID: audio path})``, and a hash."""
    chapters = []
    inputs = Inputs()
    prefix = os.path.join(folder, "")
    for speaker in children(folder, folders=True):
        for chapter in children(speaker.path, folders=True):
            entries = children(chapter.path)
            transcripts = [e for e in entries if e.name.endswith(".trans.txt")]
            audio = best_audio(entries, _SUFFIXES)
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
            if text is None:
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


def _ctc_frames(text):
    """Frames that CTC needs: one per letter, and a blank between equal ones."""
    return len(text) + sum(a == b for a, b in zip(text, text[1:], strict=False))


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
    rows = {}
    for path in sources:
        with open(path, encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream)
            next(reader)
            for row in reader:
                if row[0] in rows:
                    raise UserError(
                        f"{row[2]}: the utterance {row[0]} occurs twice, also as "
                        f"{rows[row[0]][2]}; remove one of the two"
                    )
                rows[row[0]] = row
    columns = list(zip(*(rows[utterance] for utterance in sorted(rows)), strict=True))
    merged = {
        "speakers": len(set(columns[HEADER.index("spk_id")])),
        "utterances": len(rows),
        "hours": sum(counts[path.name]["hours"] for path in sources),
        "skipped": skipped,
    }
    part.write({merge_name: csv_text(HEADER, columns)}, merged)
    return merged


def _find_split(data_folder, split):
    """Folder of a split, directly in ``data_folder`` or one level below."""
    candidates = (data_folder / split, data_folder / CORPUS / split)
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


def _as_list(splits):
    """A list; in YAML a single split is easily written without the brackets."""
    return [splits] if isinstance(splits, str) else list(splits or ())


@user_errors_exit
def main(arguments=None):
    """Command line of ``prepare_librispeech``."""
    parser = argparse.ArgumentParser(
        description="Prepare LibriSpeech: one CSV per split, one with all training "
        "splits together.",
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
            f"--{flag}", nargs="+", default=[], metavar="SPLIT", help=f"for {use}"
        )
    parser.add_argument(
        "--merge_name", default="train.csv", help="the merged CSV (%(default)s)"
    )
    parser.add_argument(
        "--skip_budget",
        type=int,
        default=0,
        help="bad utterances that may be left out per split (%(default)s)",
    )
    parser.add_argument(
        "--num_workers", type=int, help="decoding processes (default: all cores)"
    )
    options = parser.parse_args(arguments)
    counts = prepare_librispeech(
        options.data_folder,
        options.save_folder,
        tr_splits=options.train,
        dev_splits=options.dev,
        te_splits=options.test,
        merge_name=options.merge_name,
        skip_budget=options.skip_budget,
        num_workers=options.num_workers,
    )
    print(summary_table(counts))


if __name__ == "__main__":
    main()
