"""LibriSpeech: folders of flac files and transcripts to one CSV per split.

Columns: ``ID,duration,wav,spk_id,wrd,mean,std`` (duration in seconds; mean and
standard deviation of the whole utterance's samples, not with header_only). For
speaker recognition there may also be a validation split and trial lists, lines
``label enrol_ID test_ID`` with label 1 for two utterances of one speaker.

    python librispeech_prepare.py /data/LibriSpeech results/csv \\
        --train train-clean-100 train-clean-360 --dev dev-other --test test-other \\
        --speaker_valid_fraction 0.05 --trials test-other
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lobes.data.audio import encoder_frames
from lobes.data.vocabulary import Vocabulary, ctc_frames
from lobes.errors import UserError, enumeration, user_errors_exit
from lobes.preparation import folders, outputs, splitting
from lobes.preparation.parts import Problem
from lobes.preparation.pipeline import Preparation, Utterances, utterances_csv
from lobes.settings.signatures import Command
from lobes.system.files import read_text
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


class Drawing(NamedTuple):
    """How trials are drawn; ``prepare_librispeech`` tells the arguments."""

    positives: int
    negatives: int
    across_chapters: bool
    seed: int


def prepare_librispeech(
    data_folder: str | Path,
    save_folder: str | Path,
    tr_splits: str | Sequence[str] = (),
    dev_splits: str | Sequence[str] = (),
    te_splits: str | Sequence[str] = (),
    merge_name: str | None = "train.csv",
    journal_folder: str | Path | None = None,
    speaker_valid_fraction: float | None = None,
    trial_splits: str | Sequence[str] = (),
    positive_trials: int = 5000,
    negative_trials: int = 5000,
    trials_across_chapters: bool = True,
    seed: int = 42133724,
    skip_budget: int = 0,
    strict: bool = False,
    header_only: bool = False,
    num_workers: int | None = None,
    skip_prep: bool = False,
) -> dict[str, outputs.CsvCounts | outputs.TrialCounts]:
    """Write ``<save_folder>/<split>.csv`` for every split, rows sorted by ID.

    The parts are the splits; docs/preparation.md says what every part has beside it.

    Arguments:
        data_folder: The corpus: it holds the split folders, or a folder ``LibriSpeech``
            that does.
        save_folder: For the CSVs; it does not lie in a split's folder.
        tr_splits: Splits for training, by the names of their folders.
        dev_splits: Splits for validation, not one for training.
        te_splits: Splits for evaluation, not one for training.
        merge_name: CSV with all training splits together. None: there is none.
        journal_folder: As for ``Preparation``.
        speaker_valid_fraction: Whole recordings (chapters), shuffled by ``seed``, are
            held out of each training split until they have this fraction of its
            utterances: at most two of a speaker, of whom at least one chapter stays.
            That gives ``train_speakers.csv``, ``valid_speakers.csv`` and
            ``valid_speakers_trials.txt`` beside the training CSVs, which keep all rows.
            None: nothing of it.
        trial_splits: Dev and test splits that get a trial list, ``<split>_trials.txt``.
        positive_trials, negative_trials: Pairs drawn for each list, none twice in
            either order; all pairs where there are fewer. Negative trials are of two
            speakers of one sex, which ``SPEAKERS.TXT`` beside the split folders tells.
        trials_across_chapters: Take positive trials from two chapters only (within one,
            room and microphone are the same).
        seed: Seed of the validation split and of all trials.
        skip_budget: How many bad utterances of a split may be left out, listed in
            ``<split>.skipped.csv``. Bad are: audio that ``lobes.data.audio`` refuses,
            audio without transcript, a transcript without audio, without words, with
            characters outside the vocabulary (lower case is turned into upper case), or
            with more letters than CTC can place in its frames; a name with blanks, and
            a path that is not UTF-8.
        strict: A bad utterance is an error, whatever the budget.
        header_only: Take the lengths from the files' headers: far faster, but damaged
            audio shows up in training only, and without ``mean`` and ``std`` every
            utterance is then read whole to be normalised.
        num_workers: Decoding processes, by default one for each core.
        skip_prep: Do nothing: the CSVs are the user's own.

    Returns:
        As ``Preparation.report``; empty with ``skip_prep``.

    Raises ``UserError`` for missing folders, empty splits, transcripts that
    cannot be parsed, utterances that occur twice, too many bad utterances, a
    speaker of a training split in a dev or test split, a list without any trial of a
    kind, and a speaker whose sex is needed and not known.
    """
    if skip_prep:
        return {}
    tr_splits, dev_splits, te_splits = map(_as_list, (tr_splits, dev_splits, te_splits))
    trial_splits, other_splits = _as_list(trial_splits), dev_splits + te_splits
    merge_name = merge_name if tr_splits else None
    _check_splits(tr_splits, other_splits, merge_name)
    drawing = Drawing(positive_trials, negative_trials, trials_across_chapters, seed)
    _check_drawing(drawing, trial_splits, other_splits)
    if speaker_valid_fraction is not None:
        _check_fraction(speaker_valid_fraction, tr_splits, other_splits, merge_name)
    budget = 0 if strict else skip_budget
    run = Preparation(
        CORPUS, save_folder, journal_folder, budget, header_only, num_workers
    )
    data_folder = folders.existing_folder(
        data_folder, "data_folder (librispeech_folder)"
    )
    splits = list(dict.fromkeys(tr_splits + other_splits))
    # All folders first: a misspelt test set must not show up hours later.
    split_folders = {split: _find_split(data_folder, split) for split in splits}
    folders.outside(save_folder, split_folders.values())
    if os.path.realpath(save_folder) in map(os.path.realpath, _homes(data_folder)):
        folders.outside(save_folder, [data_folder])
    _check_leak(split_folders, tr_splits, other_splits)
    run.make_folders()
    files = {split: [f"{split}.csv"] for split in splits}
    official = {(f"{split}.csv",): [f"{CORPUS}/{split}"] for split in splits}
    if merge_name:
        files[Path(merge_name).stem] = [merge_name]
        official[(merge_name,)] = [f"{CORPUS}/{split}" for split in tr_splits]
    if speaker_valid_fraction is not None:
        files[_SPEAKER_PARTS[0]] = [f"{name}.csv" for name in _SPEAKER_PARTS]
    files |= {f"{split}_trials": [f"{split}_trials.txt"] for split in trial_splits}
    need_sexes = trial_splits or speaker_valid_fraction is not None
    speakers_file = _find_speakers_file(data_folder) if need_sexes else None
    left_out = {
        split: folders.LeftOut(folder) for split, folder in split_folders.items()
    }
    with run.writing(files):
        for split, folder in split_folders.items():
            _prepare_split(run, split, folder, left_out[split])
        if merge_name and merge_name not in run.counts:
            _merge(run, merge_name, tr_splits)
        if speaker_valid_fraction is not None:
            _prepare_speakers(
                run, tr_splits, speakers_file, speaker_valid_fraction, drawing
            )
        for split in trial_splits:
            _prepare_trials(run, split, speakers_file, drawing)
        return run.report(official, left_out)


def _check_leak(split_folders, tr_splits, other_splits):
    """Refuse a reader who is in training and in dev or test data."""
    readers = {
        split: {entry.name for entry in folders.listing(folder)[0]}
        for split, folder in split_folders.items()
    }
    for split in tr_splits:
        for other in other_splits:
            if shared := readers[split] & readers[other]:
                raise UserError(
                    f"{len(shared)} speaker(s) are in both {split} and {other}: "
                    f"{enumeration(sorted(shared))}; a model must not be tested on "
                    f"whom it learnt from: take their folders out of one"
                )


def _prepare_split(run, split, folder, left_out):
    """Write one split's CSV, or keep it."""
    chapters, inputs = _list_split(folder, left_out)
    left_out.say(split)

    def build(part):
        utterances, problems = _read_chapters(chapters)
        if not utterances.ids and not problems:
            raise UserError(
                f"{folder}: no utterances found; looked for <speaker>/<chapter>/*.flac "
                f"(or .wav) beside <speaker>-<chapter>.trans.txt: check that the split "
                f"{split} is unpacked there"
            )
        usable, skipped = run.decode(part, folder, utterances, problems, _too_long)
        return utterances_csv(f"{split}.csv", HEADER, usable, skipped), skipped

    run.part(split, {}, inputs, build, folder)


def _too_long(utterances):
    """Reasons of the utterances whose letters CTC cannot place in their frames."""
    available = encoder_frames(utterances.frames)
    # Without a row there is no column of texts.
    needed = np.array([ctc_frames(text) for text in utterances.texts or ()])
    return {
        row: f"CTC needs {needed[row]} frames for its transcript but the audio has "
        f"{available[row]} of 20 ms"
        for row in np.flatnonzero(needed > available).tolist()
    }


def _list_split(folder, left_out):
    """Chapters as ``(speaker, transcript paths, {ID: audio path})``, and a hash.

    All that is neither goes to ``left_out``.
    """
    chapters = []
    inputs = folders.Inputs()
    prefix = os.path.join(folder, "")
    stray = "file(s) that lie in no <speaker>/<chapter>"
    for speaker in folders.folders_in(folder, left_out, stray):
        for chapter in folders.folders_in(speaker.path, left_out, stray):
            deeper = "folder(s) below <speaker>/<chapter>"
            entries = folders.files_in(chapter.path, left_out, deeper)
            transcripts = [e.path for e in entries if e.name.endswith(".trans.txt")]
            others = [e for e in entries if not e.name.endswith(".trans.txt")]
            audio = folders.best_audio(others, _SUFFIXES, left_out)
            if not transcripts and not audio:
                left_out.add("chapter(s) without an utterance", chapter.path)
            for path in (*transcripts, *audio.values()):
                inputs.add(path.removeprefix(prefix), path)
            chapters.append((speaker.name, transcripts, audio))
    return chapters, inputs.digest()


def _read_chapters(chapters):
    """The table of the utterances that can be decoded, and the problems of others."""
    vocabulary = Vocabulary()
    rows, problems = [], []
    seen = {}
    for speaker, transcripts, audio in chapters:
        spoken = _read_transcripts(transcripts)
        for utterance in sorted({*audio, *spoken}):
            path = audio.get(utterance)
            where, text = spoken.get(utterance, (path, None))
            if path and (other := seen.setdefault(utterance, path)) != path:
                raise UserError(
                    f"{path}: the utterance {utterance} occurs twice, also as "
                    f"{other}; remove one of the two"
                )
            if path is None:
                reason = "there is no audio file for this transcript"
            elif reason := folders.name_problem(utterance, path):
                where = path
            elif text is None:
                reason = "no .trans.txt beside the file has a transcript for it"
            elif not text:
                reason = "the transcript is empty"
            elif unknown := vocabulary.unknown(text):
                reason = (
                    f"the transcript has characters outside the vocabulary: "
                    f"{' '.join(map(repr, unknown))} (spell it with A-Z and ')"
                )
            else:
                rows.append((utterance, path, speaker, os.path.dirname(path), text))
            if reason:
                problems.append(Problem(utterance, where, reason))
    return Utterances.of(rows), problems


def _read_transcripts(paths):
    """``{ID: (place, upper-case text)}`` of the transcript files of a chapter.

    84-121123-0000 GO DO YOU HEAR
    84-121123-0001 BUT IN LESS THAN FIVE MINUTES
    """
    spoken = {}
    for path in paths:
        lines = read_text(path, "save the file as UTF-8").split("\n")
        for number, line in enumerate(lines, 1):
            place = f"{path}, line {number}"
            utterance, *words = line.split() or [None]
            if utterance in spoken:
                raise UserError(
                    f"{place}: {utterance} has a transcript already; remove one of "
                    f"the two"
                )
            if utterance is not None:
                spoken[utterance] = (place, " ".join(words).upper())
    return spoken


def _merge(run, merge_name, tr_splits):
    """Write all training splits as one CSV, or keep it."""
    sources = [run.save_folder / f"{split}.csv" for split in tr_splits]
    parts = [run.counts[path.name] for path in sources]

    def build(_):
        header, rows = _merged_rows(sources)
        merged = outputs.CsvCounts(
            speakers=len({row["spk_id"] for row in rows}),
            utterances=len(rows),
            hours=sum(part["hours"] for part in parts),
            skipped=sum(part["skipped"] for part in parts),
        )
        columns = [[row[column] for row in rows] for column in header]
        return {merge_name: (outputs.csv_text(header, columns), merged)}, 0

    run.part(Path(merge_name).stem, {"splits": tr_splits}, sources, build)


def _merged_rows(sources):
    """Columns and rows of all CSVs, sorted by ID; each ID may occur only once."""
    merged = {}
    for path in sources:
        # With mean and std in all of them, or in none.
        header, rows = outputs.read_prepared(path)
        for row in rows:
            if (other := merged.setdefault(row["ID"], row)) is not row:
                raise UserError(
                    f"{row['wav']}: the utterance {row['ID']} occurs twice, also as "
                    f"{other['wav']}; remove one of the two"
                )
    return header, [merged[utterance] for utterance in sorted(merged)]


def _prepare_speakers(run, tr_splits, speakers_file, fraction, drawing):
    """Hold out chapters of every training split, or keep them."""
    sources = [run.save_folder / f"{split}.csv" for split in tr_splits]

    def build(_):
        held_out = set()
        for path in sources:
            # From the seed again for each split: what is held out of train-clean-100
            # is the same with 100 h and with 960 h.
            held_out |= _held_out_ids(path, fraction, drawing.seed)
        header, rows = _merged_rows(sources)
        train = [row for row in rows if row["ID"] not in held_out]
        valid = [row for row in rows if row["ID"] in held_out]
        skipped = sum(run.counts[path.name]["skipped"] for path in sources)
        remedy = (
            "raise speaker_valid_fraction, or use training splits with speakers of "
            "three or more chapters"
        )
        return {
            **outputs.rows_csv("train_speakers.csv", header, train, skipped),
            **outputs.rows_csv("valid_speakers.csv", header, valid, 0),
            **_draw("valid_speakers", valid, speakers_file, remedy, drawing),
        }, 0

    options = {"splits": tr_splits, "per_speaker": _CHAPTERS_PER_SPEAKER}
    options |= {"fraction": fraction, **drawing._asdict()}
    run.part(_SPEAKER_PARTS[0], options, [*sources, speakers_file], build)


def _held_out_ids(path, fraction, seed):
    """IDs of the utterances held out of one split."""
    _, rows = outputs.read_prepared(path)
    held_out = splitting.hold_out(
        [row["spk_id"] for row in rows],
        _chapters(rows),
        fraction,
        _CHAPTERS_PER_SPEAKER,
        np.random.RandomState(seed),
        together=True,
    )
    splitting.report_few_held_out(
        path.name, held_out, fraction, _CHAPTERS_PER_SPEAKER, "chapters"
    )
    return {row["ID"] for row, held in zip(rows, held_out, strict=True) if held}


def _prepare_trials(run, split, speakers_file, drawing):
    """Write one split's trial list, or keep it."""
    source = run.save_folder / f"{split}.csv"

    def build(_):
        _, rows = outputs.read_prepared(source)
        remedy = f"take {split} out of trial_splits"
        return _draw(split, rows, speakers_file, remedy, drawing), 0

    sources = [source, speakers_file]
    run.part(f"{split}_trials", drawing._asdict(), sources, build)


def _draw(split, rows, speakers_file, remedy, drawing):
    """The trial list over the utterances of some CSV rows."""
    name = f"{split}_trials.txt"
    speakers, chapters = [row["spk_id"] for row in rows], _chapters(rows)
    distinct = sorted(set(speakers))
    sexes = _read_sexes(speakers_file)
    if unknown := [speaker for speaker in distinct if speaker not in sexes]:
        raise UserError(
            f"{speakers_file}: no line for {len(unknown)} speaker(s) of {name}: "
            f"{enumeration(unknown)}; their sex is needed: take the file of the same "
            f"release of LibriSpeech, or add the lines"
        )
    positives, negatives, across_chapters, seed = drawing
    random = np.random.RandomState(seed)
    trials = splitting.draw_trials(
        speakers, chapters, positives, negatives, across_chapters, random, sexes
    )
    if across_chapters:
        pairs = {*zip(speakers, chapters, strict=True)}
        counts = Counter(speaker for speaker, _ in pairs).values()
        if single := list(counts).count(1):
            say(
                f"{name}: {single} of {len(distinct)} speakers have a single chapter, "
                f"which gives no positive trial"
            )
    if not trials.label.any():
        where = ""
        if across_chapters:
            where = " from two chapters"
            remedy += ", or set trials_across_chapters=False (--trials_within_chapters)"
        raise UserError(
            f"{name}: the {len(rows)} utterances of {len(distinct)} speakers give no "
            f"positive trial{where}; {remedy}"
        )
    if trials.label.all():
        raise UserError(
            f"{name}: the {len(rows)} utterances have no two speakers of one sex, so "
            f"they give no negative trial; use more speakers"
        )
    splitting.report_shortage(name, trials, positives, negatives)
    return outputs.trial_list(name, [row["ID"] for row in rows], trials)


def _chapters(rows):
    """Folder of each CSV row's audio: the chapter, read in one session."""
    return [os.path.dirname(row["wav"]) for row in rows]


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
    first, second = (home / "SPEAKERS.TXT" for home in _homes(data_folder))
    if first.is_file() or second.is_file():
        return first if first.is_file() else second
    raise UserError(
        f"neither {first} nor {second} exists, and trials need the sex of every "
        f"speaker; put LibriSpeech's {first.name} there (it is in every archive)"
    )


def _find_split(data_folder, split):
    """Folder of a split, directly in ``data_folder`` or one level below."""
    first, second = (home / split for home in _homes(data_folder))
    if first.is_dir() or second.is_dir():
        return first if first.is_dir() else second
    raise UserError(
        f"the split {split} was not found: neither {first} nor {second} is a folder; "
        f"unpack {split}.tar.gz there or correct the name"
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
    if not merge_name:
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


def _check_drawing(drawing, trial_splits, other_splits):
    """Refuse what can give no trial list."""
    splitting.check_split_settings(
        {},
        {"positive_trials": drawing.positives, "negative_trials": drawing.negatives},
        drawing.seed,
    )
    for split in trial_splits:
        if split not in other_splits:
            raise UserError(
                f"trial_splits: {split} is not among the dev and test splits "
                f"({', '.join(other_splits) or 'there are none'}); name one of them"
            )


def _check_fraction(fraction, tr_splits, other_splits, merge_name):
    """Refuse what can give no validation split of speakers."""
    splitting.check_split_settings({"speaker_valid_fraction": fraction}, {}, 0)
    if not tr_splits:
        raise UserError(
            f"speaker_valid_fraction={fraction} holds out training data, but "
            f"tr_splits (--train) names none; name the training splits"
        )
    merged = (merge_name or "").removesuffix(".csv")
    for name in _SPEAKER_PARTS:
        if name in (*tr_splits, *other_splits, merged):
            raise UserError(
                f"{name}.csv is what speaker_valid_fraction writes; choose another name"
            )


def _as_list(splits):
    """A list; in YAML a single split is easily written without the brackets."""
    return [splits] if isinstance(splits, str) else list(splits or ())


COMMAND = Command(
    prepare_librispeech,
    positional=("data_folder", "save_folder"),
    names={
        "tr_splits": "train",
        "dev_splits": "dev",
        "te_splits": "test",
        "trial_splits": "trials",
        "trials_across_chapters": "trials_within_chapters",
    },
    hidden=("journal_folder", "skip_prep"),
    section="librispeech",
)


@user_errors_exit
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``prepare_librispeech``."""
    prepare_librispeech(**COMMAND.parse(arguments))


if __name__ == "__main__":
    main()
