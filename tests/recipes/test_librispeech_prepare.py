"""LibriSpeech preparation: rows, rules for bad utterances, rebuilding."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

import lobes.preparation.parts
import lobes.preparation.scan
from lobes.data.audio import SAMPLE_RATE
from lobes.data.labels import Letters
from lobes.data.utterances import Utterances
from lobes.errors import UserError
from recipes.LibriSpeech.librispeech_prepare import HEADER, main, prepare_librispeech

TEXTS = {
    "84-10-0000": "GO DO YOU HEAR",
    "84-10-0001": "IT ISN'T",
    "84-9-0000": "BUT IN LESS THAN FIVE MINUTES",
    "7-3-0000": "YES",
}


def write_utterance(folder, utterance, text, samples=16000, suffix="flac"):
    """One utterance as LibriSpeech stores it; returns the audio's path."""
    speaker, chapter, number = utterance.split("-")
    place = folder / speaker / chapter
    place.mkdir(parents=True, exist_ok=True)
    seed = int(speaker) + int(chapter) + int(number)
    noise = np.random.RandomState(seed).randint(-9000, 9000, samples)
    path = place / f"{utterance}.{suffix}"
    soundfile.write(path, noise.astype(np.int16), SAMPLE_RATE)
    if text is not None:
        with open(place / f"{speaker}-{chapter}.trans.txt", "a") as stream:
            stream.write(f"{utterance} {text}\n")
    return path


@pytest.fixture
def corpus(tmp_path):
    """A folder with the splits train-a, train-b and dev-a."""
    folder = tmp_path / "LibriSpeech"
    for number, (utterance, text) in enumerate(TEXTS.items()):
        write_utterance(folder / "train-a", utterance, text, 16000 + number)
    write_utterance(folder / "train-b", "50-1-0000", "HALLO", suffix="wav")
    write_utterance(folder / "dev-a", "60-1-0000", "GOOD DAY")
    return folder


def rows(path):
    """Rows of a CSV as dicts."""
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        assert tuple(reader.fieldnames) == HEADER
        return list(reader)


def prepare(corpus, **changes):
    """Prepare the fixture's splits with one process, beside the corpus."""
    options = {
        "data_folder": corpus,
        "save_folder": corpus.parent / "csv",
        "tr_splits": ["train-a", "train-b"],
        "dev_splits": ["dev-a"],
        "num_workers": 1,
    }
    return prepare_librispeech(**{**options, **changes})


def check_row(row, path, text):
    """Compare a row with the file it describes."""
    samples, rate = soundfile.read(path)
    assert rate == SAMPLE_RATE
    assert row["wav"] == str(path)
    assert float(row["duration"]) == len(samples) / SAMPLE_RATE
    assert float(row["mean"]) == samples.mean()
    assert float(row["std"]) == samples.std()
    assert row["wrd"] == text
    assert row["spk_id"] == row["ID"].split("-")[0]


def test_rows_describe_the_files(corpus):
    counts = prepare(corpus)
    folder = corpus.parent / "csv"
    train = rows(folder / "train-a.csv")
    assert [row["ID"] for row in train] == sorted(TEXTS)
    for row in train:
        speaker, chapter, _ = row["ID"].split("-")
        path = corpus / "train-a" / speaker / chapter / f"{row['ID']}.flac"
        check_row(row, path, TEXTS[row["ID"]])
    assert rows(folder / "train.csv") == sorted(
        train + rows(folder / "train-b.csv"), key=lambda row: row["ID"]
    )
    assert rows(folder / "dev-a.csv")[0]["wrd"] == "GOOD DAY"
    assert counts["train.csv"] == {
        "path": str(folder / "train.csv"),
        "speakers": 3,
        "utterances": 5,
        "hours": pytest.approx((5 * 16000 + 6) / SAMPLE_RATE / 3600),
        "skipped": 0,
    }
    assert list(counts) == ["train-a.csv", "train-b.csv", "dev-a.csv", "train.csv"]


def test_the_folder_above_is_accepted(corpus):
    prepare(corpus.parent, save_folder=corpus.parent / "above")
    prepare(corpus)
    for name in ("train.csv", "dev-a.csv"):
        above = (corpus.parent / "above" / name).read_bytes()
        assert above == (corpus.parent / "csv" / name).read_bytes()


def test_a_single_split_needs_no_brackets(corpus):
    counts = prepare(corpus, tr_splits="train-b", dev_splits=None)
    assert list(counts) == ["train-b.csv", "train.csv"]
    counts = prepare(corpus, tr_splits="train-b", dev_splits=(), merge_name=None)
    assert list(counts) == ["train-b.csv"]


def test_a_wav_of_a_flac_is_one_utterance(corpus):
    write_utterance(corpus / "dev-a", "60-1-0000", None, suffix="wav")
    (corpus / "dev-a" / "60" / "1" / "._60-1-0000.flac").write_bytes(b"mac")
    prepare(corpus)
    (row,) = rows(corpus.parent / "csv" / "dev-a.csv")
    assert row["wav"].endswith("60-1-0000.wav")


def test_transcript_files_may_be_from_windows(corpus):
    path = corpus / "dev-a" / "60" / "1" / "60-1.trans.txt"
    path.write_bytes(b"\xef\xbb\xbf60-1-0000  good   day\r\n\r\n")
    prepare(corpus)
    assert rows(corpus.parent / "csv" / "dev-a.csv")[0]["wrd"] == "GOOD DAY"


def test_the_order_of_the_file_system_does_not_matter(corpus, monkeypatch):
    prepare(corpus)
    real = os.scandir

    class Reversed:
        def __init__(self, folder):
            with real(folder) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    prepare(corpus, save_folder=corpus.parent / "other")
    monkeypatch.undo()
    for name in ("train-a.csv", "train.csv", "dev-a.csv", "train-a.prepared.json"):
        other = (corpus.parent / "other" / name).read_bytes()
        assert other == (corpus.parent / "csv" / name).read_bytes()


def test_nothing_is_done_with_skip_prep(tmp_path):
    assert prepare_librispeech("absent", tmp_path / "x", skip_prep=True) == {}
    assert not (tmp_path / "x").exists()


# What is decoded again, and what is kept.


@pytest.fixture
def decoded(monkeypatch):
    """Names of the splits that were decoded, in order."""
    titles = []
    scan = lobes.preparation.scan.scan_audio

    def record(paths, num_workers, title, *options):
        titles.append(title)
        return scan(paths, num_workers, title, *options)

    monkeypatch.setattr("lobes.preparation.pipeline.scan_audio", record)
    return titles


def test_nothing_is_decoded_twice(corpus, decoded, capsys):
    first = prepare(corpus)
    assert decoded == ["train-a", "train-b", "dev-a"]
    assert prepare(corpus) == first
    assert prepare(corpus, tr_splits=[], te_splits=["dev-a"])
    assert len(decoded) == 3
    assert "nothing changed" in capsys.readouterr().err


def touch(corpus):
    os.utime(corpus / "train-a" / "7" / "3" / "7-3-0000.flac", ns=(5, 5))


def add(corpus):
    write_utterance(corpus / "train-a", "8-1-0000", "NEW")


def correct(corpus):
    path = corpus / "train-a" / "7" / "3" / "7-3.trans.txt"
    path.write_text("7-3-0000 NO\n")


def truncate(corpus):
    path = corpus.parent / "csv" / "train-a.csv"
    path.write_bytes(path.read_bytes()[:-40])


def edit(corpus):
    path = corpus.parent / "csv" / "train-a.csv"
    path.write_text(path.read_text().replace("YES", "NO"))


def remove(corpus):
    (corpus.parent / "csv" / "train-a.csv").unlink()


@pytest.mark.parametrize("change", [touch, add, correct, truncate, edit, remove])
def test_a_split_that_changed_is_prepared_again(corpus, decoded, change):
    prepare(corpus)
    decoded.clear()
    change(corpus)
    prepare(corpus)
    assert decoded == ["train-a"]
    again = corpus.parent / "again"
    prepare(corpus, save_folder=again)
    for name in ("train-a.csv", "train.csv"):
        kept = (corpus.parent / "csv" / name).read_bytes()
        assert kept == (again / name).read_bytes()


def test_an_edited_merged_csv_is_written_again(corpus, decoded):
    prepare(corpus)
    path = corpus.parent / "csv" / "train.csv"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    decoded.clear()
    prepare(corpus)
    assert path.read_bytes() == content and not decoded


def test_a_moved_corpus_is_prepared_again(corpus):
    prepare(corpus)
    moved = corpus.parent / "moved"
    shutil.move(corpus, moved)
    prepare(moved)
    (row,) = rows(corpus.parent / "csv" / "dev-a.csv")
    assert Path(row["wav"]).is_file()


def test_another_set_of_training_splits_changes_the_merged_csv(corpus, decoded):
    prepare(corpus)
    decoded.clear()
    counts = prepare(corpus, tr_splits=["train-a"])
    assert counts["train.csv"]["utterances"] == 4 and not decoded
    assert len(rows(corpus.parent / "csv" / "train.csv")) == 4


# Bad utterances.


def bad_audio(corpus):
    (corpus / "train-a" / "7" / "3" / "7-3-0000.flac").write_text("<html>")


def dangling_link(corpus):
    path = corpus / "train-a" / "7" / "3" / "7-3-0000.flac"
    path.unlink()
    path.symlink_to("gone.flac")


def no_audio(corpus):
    (corpus / "train-a" / "7" / "3" / "7-3-0000.flac").unlink()


def transcript(text):
    def change(corpus):
        path = corpus / "train-a" / "7" / "3" / "7-3.trans.txt"
        path.write_text(f"7-3-0000 {text}\n", encoding="utf-8")

    return change


def no_transcript(corpus):
    (corpus / "train-a" / "7" / "3" / "7-3.trans.txt").unlink()


BAD = {
    "audio": (bad_audio, "7-3-0000.flac: it is not readable as audio"),
    "link": (dangling_link, "7-3-0000.flac: the file does not exist"),
    "no audio": (no_audio, "7-3.trans.txt, line 1: there is no audio file"),
    "no transcript": (no_transcript, "7-3-0000.flac: no .trans.txt beside the file"),
    "empty": (transcript(""), "7-3.trans.txt, line 1: the transcript is empty"),
    "digits": (transcript("AGENT 007"), "line 1: .* vocabulary: '0' '7' .spell"),
    "accents": (transcript("déjà vu"), "line 1: .* vocabulary: 'É' 'À' .spell"),
    "boundary": (transcript("A|B"), r"line 1: .* vocabulary: '\|'"),
    # 16,003 samples make 49 frames; 25 equal letters need 24 blanks between them.
    "long": (transcript("A" * 26), "needs 51 frames .* has 49 of 20 ms"),
}


@pytest.mark.parametrize("change,reason", BAD.values(), ids=BAD)
def test_a_bad_utterance_is_refused_or_skipped_and_counted(corpus, change, reason):
    change(corpus)
    with pytest.raises(UserError, match=reason) as caught:
        prepare(corpus)
    assert "train-a: 1 bad utterance(s): 7-3-0000: " in str(caught.value)
    assert "--skip_budget=1" in str(caught.value)
    folder = corpus.parent / "csv"
    assert not (folder / "train-a.csv").exists()
    counts = prepare(corpus, skip_budget=1)
    assert counts["train-a.csv"]["skipped"] == counts["train.csv"]["skipped"] == 1
    assert [row["ID"] for row in rows(folder / "train-a.csv")] == sorted(TEXTS)[1:]
    with open(folder / "train-a.skipped.csv", encoding="utf-8", newline="") as stream:
        header, (utterance, _, _) = csv.reader(stream)
    assert header == ["ID", "path", "reason"] and utterance == "7-3-0000"


def test_a_transcript_that_just_fits_is_good(corpus):
    transcript("A" * 25)(corpus)
    assert prepare(corpus)["train-a.csv"]["utterances"] == 4
    transcript("AB" * 24 + "A")(corpus)
    assert prepare(corpus)["train-a.csv"]["utterances"] == 4


def test_the_list_of_the_skipped_goes_when_all_is_well(corpus):
    good = (corpus / "train-a" / "7" / "3" / "7-3-0000.flac").read_bytes()
    bad_audio(corpus)
    prepare(corpus, skip_budget=1)
    (corpus / "train-a" / "7" / "3" / "7-3-0000.flac").write_bytes(good)
    assert prepare(corpus)["train-a.csv"]["skipped"] == 0
    assert not (corpus.parent / "csv" / "train-a.skipped.csv").exists()


def test_a_corpus_without_any_good_utterance_is_refused(corpus):
    (corpus / "dev-a" / "60" / "1" / "60-1-0000.flac").write_text("")
    with pytest.raises(UserError, match="no usable utterance"):
        prepare(corpus, skip_budget=1)
    (corpus / "dev-a/60/1/60-1-0000.flac").unlink()
    with pytest.raises(UserError, match="dev-a: no usable utterance"):
        prepare(corpus, skip_budget=1, tr_splits=[])


# Mistakes that no budget covers.


def test_two_transcripts_of_one_utterance_are_refused(corpus):
    with open(corpus / "dev-a" / "60" / "1" / "60-1.trans.txt", "a") as stream:
        stream.write("60-1-0000 AGAIN\n")
    with pytest.raises(UserError, match="60-1.trans.txt, line 2: 60-1-0000"):
        prepare(corpus)


def test_an_utterance_in_two_splits_is_refused(corpus):
    write_utterance(corpus / "train-b", "7-3-0000", "YES")
    with pytest.raises(UserError, match="train-b.*7-3-0000 occurs twice.*train-a"):
        prepare(corpus)


def test_an_utterance_in_two_chapters_is_refused(corpus):
    shutil.copytree(corpus / "dev-a" / "60" / "1", corpus / "dev-a" / "60" / "2")
    with pytest.raises(UserError, match="60-1-0000 occurs twice"):
        prepare(corpus)


def test_a_transcript_file_in_latin_1_is_refused(corpus):
    path = corpus / "dev-a" / "60" / "1" / "60-1.trans.txt"
    path.write_bytes("60-1-0000 déjà\n".encode("latin-1"))
    with pytest.raises(UserError, match="60-1.trans.txt, line 1: not UTF-8; save"):
        prepare(corpus)


@pytest.mark.parametrize(
    "changes,problem",
    [
        ({"tr_splits": ["train-c"]}, "train-c was not found.*train-c.tar.gz"),
        ({"data_folder": "/nowhere"}, "librispeech_folder.: the folder /nowhere"),
        ({"tr_splits": [], "dev_splits": []}, "no splits were asked for"),
        ({"tr_splits": ["train-a", "train-a"]}, "named twice"),
        ({"dev_splits": ["train-a"]}, "train-a is both a training split and"),
        ({"te_splits": ["train-b"]}, "train-b is both a training split and"),
        ({"merge_name": "dev-a.csv"}, "also the CSV of the split dev-a"),
        ({"merge_name": "train-a.csv"}, "also the CSV of the split train-a"),
        ({"merge_name": "x/train.csv"}, "not a plain file name"),
        ({"merge_name": "train"}, "ends in .csv"),
        ({"num_workers": 0}, "num_workers=0"),
    ],
)
def test_wrong_arguments_are_refused(corpus, changes, problem):
    with pytest.raises(UserError, match=problem):
        prepare(corpus, **changes)


def test_a_single_split_may_be_called_like_the_merged_csv(corpus):
    counts = prepare(corpus, tr_splits=["train-b"], merge_name="train-b.csv")
    assert list(counts) == ["train-b.csv", "dev-a.csv"]


def test_an_empty_split_is_refused(corpus):
    (corpus / "test-a").mkdir()
    with pytest.raises(UserError, match=r"test-a: no utterances.*<speaker>/<chapter>"):
        prepare(corpus, te_splits=["test-a"])


def test_a_save_folder_of_voxceleb_is_refused_before_decoding(corpus, decoded):
    folder = corpus.parent / "csv"
    lobes.preparation.parts.Part(folder, "train", "VoxCeleb", {}, "").write({}, {})
    with pytest.raises(UserError, match="prepared from VoxCeleb"):
        prepare(corpus)
    assert not decoded


@pytest.mark.parametrize("other", ["dev_splits", "te_splits"])
def test_a_reader_in_training_and_in_test_is_refused(corpus, decoded, other):
    write_utterance(corpus / "test-a", "84-11-0000", "NEW")
    with pytest.raises(UserError, match=r"1 speaker.* both train-a and test-a: 84;"):
        prepare(corpus, **{other: ["test-a"]})
    assert not decoded
    # A dev and a test split may share one: nothing is learnt from either.
    prepare(corpus, tr_splits=["train-b"], te_splits=["train-a", "test-a"])


def test_any_skip_is_an_error_when_strict(corpus):
    bad_audio(corpus)
    with pytest.raises(UserError, match=r"1 bad .*\(now 0, as always with --strict\)"):
        prepare(corpus, skip_budget=5, strict=True)
    prepare(corpus, skip_budget=5)
    # Also where the CSVs are there already.
    with pytest.raises(UserError, match="as always with --strict"):
        prepare(corpus, skip_budget=5, strict=True)


def test_lengths_from_headers(corpus):
    """The same rows without mean and std; damage behind a header goes unnoticed."""
    prepare(corpus)
    whole = rows(corpus.parent / "csv" / "train.csv")
    headers = {"header_only": True, "save_folder": corpus.parent / "headers"}
    prepare(corpus, **headers)
    path = corpus.parent / "headers" / "train.csv"
    with open(path, encoding="utf-8", newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [{**row, "mean": 0, "std": 0} for row in found] == [
        {**row, "mean": 0, "std": 0} for row in whole
    ]
    utterances = Utterances(path, {})
    (wave,) = utterances.read([(0, 0, 16000)]).wavs
    assert abs(wave.mean()) < 1e-4 and abs(wave.std() - 1) < 1e-3
    short = write_utterance(corpus / "train-a", "7-3-0001", "A", 399)
    with pytest.raises(UserError, match="it has 399 samples"):
        prepare(corpus, **headers)
    write_utterance(corpus / "train-a", "7-3-0001", None, 4000)
    with open(short, "r+b") as stream:
        stream.truncate(short.stat().st_size // 2)
    prepare(corpus, **headers)
    with pytest.raises(UserError, match="7-3-0001.flac: it is"):
        prepare(corpus)


def test_statistics_are_not_taken_from_headers(corpus):
    """Nor is a header read again where everything was decoded."""
    prepare(corpus)
    whole = (corpus.parent / "csv" / "train.csv").read_bytes()
    prepare(corpus, header_only=True)
    assert (corpus.parent / "csv" / "train.csv").read_bytes() != whole
    prepare(corpus)
    assert (corpus.parent / "csv" / "train.csv").read_bytes() == whole
    for path in (corpus.parent / "csv").glob("*.scan"):
        path.unlink()
    prepare(corpus, header_only=True)
    prepare(corpus)
    assert (corpus.parent / "csv" / "train.csv").read_bytes() == whole


def test_dollars_in_names_survive(corpus):
    """SpeechBrain's own reader would replace them."""
    folder = corpus.parent / "$corpora ${of} $$mine"
    shutil.move(corpus, folder)
    prepare(folder, save_folder=folder / "$csv")
    (row,) = rows(folder / "$csv" / "dev-a.csv")
    assert row["wav"].startswith(str(folder))
    utterances = Utterances(folder / "$csv" / "dev-a.csv", {"text": Letters()})
    assert utterances.paths[0] == row["wav"]
    assert len(utterances.read([(0, 0, 16000)])) == 1


def test_dollars_in_transcripts_are_refused(corpus):
    transcript("ONE $WORD")(corpus)
    with pytest.raises(UserError, match=r"outside the vocabulary: '\$'"):
        prepare(corpus)


def test_the_report_counts_and_compares(corpus, capsys):
    for name in ("train-a", "train-b"):
        official = {"train-a": "train-clean-100", "train-b": "train-other-500"}[name]
        shutil.move(corpus / name, corpus / official)
    moved = corpus / "train-clean-100"
    (moved / "84" / "9" / "84-9-0000.flac").write_text("")
    write_utterance(moved, "7-3-0001", "A", 399)
    write_utterance(moved, "7-3-0002", "A", 398)
    options = {"tr_splits": ["train-clean-100", "train-other-500"], "skip_budget": 3}
    prepare(corpus, **options)
    table = capsys.readouterr().err
    path = corpus.parent / "csv" / "prepare_report.json"
    report = json.loads(path.read_text())
    assert report["files"]["train.csv"] | {"hours": None} == {
        "speakers": 3,
        "utterances": 4,
        "hours": None,
        "skipped": 3,
    }
    short = "it has N samples, fewer than the N that one wav2vec2 frame needs"
    assert report["skipped"] == {"train-clean-100": {short: 2, "the file is empty": 1}}
    assert f"skipped of train-clean-100: 2: {short}\n" in table
    assert report["official"][-1] == {
        "files": "train.csv",
        "published": "LibriSpeech train-clean-100 + train-other-500",
        "counts": {
            "utterances": [4, 28_539 + 148_688],
            "speakers": [3, 251 + 1_166],
        },
    }
    assert (
        "train-clean-100.csv: 3 of 28,539 utterances, 2 of 251 speakers of LibriSpeech "
        "train-clean-100\n"
    ) in table
    # dev-a is nobody's.
    assert len(report["official"]) == 3
    before = path.stat().st_mtime_ns
    prepare(corpus, **options)
    assert path.stat().st_mtime_ns == before
    assert table.splitlines()[-9:] == capsys.readouterr().err.splitlines()[-9:]


# Speaker recognition: what is held out, and the trials.

SEX = {"1": "F", "2": "F", "3": "M", "4": "M", "5": "F", "8": "F", "9": "F"}

#: Chapters of each speaker by split; speaker 5 has a single one.
CHAPTERS = {
    "train-a": {"1": 4, "2": 4, "3": 4, "5": 1},
    "train-b": {"4": 3},
    "dev-a": {"8": 2, "9": 3},
}


@pytest.fixture(scope="module")
def readers_template(tmp_path_factory):
    """Readers with chapters of two utterances, and SPEAKERS.TXT."""
    folder = tmp_path_factory.mktemp("readers") / "LibriSpeech"
    for split, speakers in CHAPTERS.items():
        for speaker, chapters in speakers.items():
            for chapter in range(chapters):
                for number in range(2):
                    utterance = f"{speaker}-{speaker}0{chapter}-000{number}"
                    write_utterance(folder / split, utterance, "A", 800)
    lines = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for speaker, sex in SEX.items():
        lines.append(f"{speaker:<4} | {sex} | train-clean-100  | 25.03 | | Zo\u00eb |")
    (folder / "SPEAKERS.TXT").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder


@pytest.fixture
def readers(readers_template, tmp_path):
    """A copy of them."""
    return shutil.copytree(readers_template, tmp_path / "LibriSpeech")


def speakers_options(**changes):
    return {"speaker_valid_fraction": 0.3, "trial_splits": ["dev-a"], **changes}


def ids(path):
    return [row["ID"] for row in rows(path)]


def read_trials(path):
    return [line.split(" ") for line in path.read_text().splitlines()]


def chapter(utterance):
    return utterance.rpartition("-")[0]


def speaker(utterance):
    return utterance.partition("-")[0]


def test_chapters_are_held_out_of_every_training_split(readers):
    counts = prepare(readers, **speakers_options())
    folder = readers.parent / "csv"
    train, valid = (
        ids(folder / "train_speakers.csv"),
        ids(folder / "valid_speakers.csv"),
    )
    assert train == sorted(train) and valid == sorted(valid)
    assert sorted(train + valid) == ids(folder / "train.csv")
    held_out = {chapter(u) for u in valid}
    assert not held_out & {chapter(u) for u in train}
    # 0.3 of 26 and of 6 utterances, in chapters of 2.
    assert Counter(speaker(u) == "4" for u in valid) == {False: 8, True: 2}
    assert max(Counter(map(speaker, held_out)).values()) == 2
    assert {speaker(u) for u in train} == {"1", "2", "3", "4", "5"}
    everything = {row["ID"]: row for row in rows(folder / "train.csv")}
    for name in ("train_speakers", "valid_speakers"):
        for row in rows(folder / f"{name}.csv"):
            assert row == everything[row["ID"]]
    assert counts["train_speakers.csv"] == {
        "path": str(folder / "train_speakers.csv"),
        "speakers": 5,
        "utterances": 22,
        "hours": pytest.approx(22 * 800 / SAMPLE_RATE / 3600),
        "skipped": 0,
    }
    assert counts["valid_speakers.csv"]["utterances"] == 10
    assert list(counts)[-4:] == [
        "train_speakers.csv",
        "valid_speakers.csv",
        "valid_speakers_trials.txt",
        "dev-a_trials.txt",
    ]


def test_what_is_held_out_of_a_split_does_not_depend_on_the_others(readers):
    prepare(readers, **speakers_options())
    both = ids(readers.parent / "csv" / "valid_speakers.csv")
    prepare(readers, tr_splits=["train-a"], **speakers_options())
    alone = ids(readers.parent / "csv" / "valid_speakers.csv")
    assert alone == [u for u in both if speaker(u) != "4"]


def test_the_chapters_follow_the_seed(readers):
    found = []
    for seed in (1, 1, 2):
        prepare(readers, seed=seed, **speakers_options())
        folder = readers.parent / "csv"
        names = "valid_speakers.csv", "valid_speakers_trials.txt"
        found.append([(folder / name).read_text() for name in names])
        shutil.rmtree(folder)
    assert found[0] == found[1] and found[0] != found[2]
    # Pinned: the split of a published result must never move.
    prepare(readers, **speakers_options())
    held_out = {chapter(u) for u in ids(folder / "valid_speakers.csv")}
    assert sorted(held_out) == ["1-100", "1-101", "2-201", "2-203", "4-402"]


@pytest.mark.parametrize("name", ["valid_speakers", "dev-a"])
@pytest.mark.parametrize("within", [False, True])
def test_trials_are_of_one_sex_and_of_two_chapters(readers, name, within):
    prepare(readers, trials_across_chapters=not within, **speakers_options())
    folder = readers.parent / "csv"
    known = ids(folder / f"{name}.csv")
    trials = read_trials(folder / f"{name}_trials.txt")
    expected = set()
    for number, first in enumerate(known):
        for second in known[number + 1 :]:
            same = speaker(first) == speaker(second)
            if same and (within or chapter(first) != chapter(second)):
                expected.add(("1", first, second))
            elif not same and SEX[speaker(first)] == SEX[speaker(second)]:
                expected.add(("0", first, second))
    assert len(trials) == len(expected) and set(map(tuple, trials)) == expected
    assert {label for label, _, _ in trials} == {"0", "1"}


def test_trials_are_drawn_where_there_are_more(readers, capsys):
    counts = prepare(
        readers, positive_trials=3, negative_trials=7, **speakers_options()
    )
    for name in ("valid_speakers_trials.txt", "dev-a_trials.txt"):
        assert (counts[name]["positives"], counts[name]["negatives"]) == (3, 7)
        trials = read_trials(readers.parent / "csv" / name)
        assert Counter(label for label, _, _ in trials) == {"1": 3, "0": 7}
    assert "exist of the" not in capsys.readouterr().err


def test_a_shortage_and_single_chapters_are_told(readers, capsys):
    shutil.rmtree(readers / "dev-a" / "8" / "801")
    counts = prepare(readers, **speakers_options(speaker_valid_fraction=None))
    told = capsys.readouterr().err
    assert "dev-a_trials.txt: 1 of 2 speakers have a single chapter" in told
    # Speaker 9: three chapters of two; speaker 8: one.
    assert "dev-a_trials.txt: only 12 positives exist of the 5000 asked for" in told
    assert "dev-a_trials.txt: only 12 negatives exist of the 5000 asked for" in told
    assert (counts["dev-a_trials.txt"]["positives"]) == 12
    prepare(readers, **speakers_options(speaker_valid_fraction=0.9))
    told = capsys.readouterr().err
    assert "train-a.csv: only 12 utterances can be held out of the 23 asked" in told


def test_no_positive_trial_is_refused_with_the_remedy(readers):
    shutil.rmtree(readers / "dev-a" / "8" / "801")
    shutil.rmtree(readers / "dev-a" / "9" / "901")
    shutil.rmtree(readers / "dev-a" / "9" / "902")
    options = speakers_options(speaker_valid_fraction=None)
    with pytest.raises(
        UserError, match="dev-a_trials.txt: the 4 .* no positive trial f"
    ):
        prepare(readers, **options)
    prepare(readers, trials_across_chapters=False, **options)
    for path in (readers / "train-b" / "4").iterdir():
        if path.name != "400":
            shutil.rmtree(path)
    with pytest.raises(
        UserError, match="raise speaker_valid_fraction, or use"
    ) as caught:
        prepare(readers, tr_splits=["train-b"], speaker_valid_fraction=0.3)
    assert "\n" not in str(caught.value)


def test_no_negative_trial_is_refused(readers):
    shutil.rmtree(readers / "dev-a" / "8")
    with pytest.raises(UserError, match="no two speakers of one sex"):
        prepare(readers, **speakers_options(speaker_valid_fraction=None))


def test_the_speakers_file_may_lie_above_or_be_from_windows(readers):
    prepare(readers, **speakers_options())
    name = "dev-a_trials.txt"
    wanted = (readers.parent / "csv" / name).read_bytes()
    path = readers / "SPEAKERS.TXT"
    text = path.read_text(encoding="utf-8").replace("\n", "\r\n")
    path.write_bytes(text.encode("latin-1"))
    prepare(readers.parent, save_folder=readers.parent / "b", **speakers_options())
    assert (readers.parent / "b" / name).read_bytes() == wanted


def drop_file(path):
    path.unlink()


def drop_speaker(path):
    path.write_text(path.read_text(encoding="utf-8").replace("\n9 ", "\n77 "))


def unknown_sex(path):
    path.write_text(path.read_text(encoding="utf-8").replace("| M |", "| X |"))


def contradict(path):
    path.write_text(path.read_text(encoding="utf-8") + "1 | M | train-b | 1 | N\n")


def cut(path):
    path.write_text(path.read_text(encoding="utf-8") + "123\n")


@pytest.mark.parametrize(
    "change, problem",
    [
        (drop_file, "SPEAKERS.TXT exists, and trials need the sex of every speaker"),
        (drop_speaker, r"SPEAKERS.TXT: no line for 1 speaker\(s\) of dev-a_tr.*: 9; "),
        (unknown_sex, "SPEAKERS.TXT, line 4: '3 .* is not `speaker . F or M"),
        (contradict, "SPEAKERS.TXT, line 9: speaker 1 stood there before"),
        (cut, "SPEAKERS.TXT, line 9: '123' is not"),
    ],
)
def test_a_speakers_file_that_will_not_do(readers, change, problem):
    change(readers / "SPEAKERS.TXT")
    with pytest.raises(UserError, match=problem) as caught:
        prepare(readers, **speakers_options(speaker_valid_fraction=None))
    assert "\n" not in str(caught.value)
    assert list(prepare(readers)) == [
        "train-a.csv",
        "train-b.csv",
        "dev-a.csv",
        "train.csv",
    ]


def test_a_missing_speakers_file_is_known_before_decoding(readers, decoded):
    (readers / "SPEAKERS.TXT").unlink()
    with pytest.raises(UserError, match="SPEAKERS.TXT"):
        prepare(readers, **speakers_options())
    assert not decoded


def test_the_other_outputs_are_the_same_with_and_without(readers):
    prepare(readers)
    prepare(readers, save_folder=readers.parent / "b", **speakers_options())
    for path in (readers.parent / "csv").iterdir():
        if path.name == "prepare_report.json":
            continue
        assert path.read_bytes() == (readers.parent / "b" / path.name).read_bytes()
    extra = {p.name for p in (readers.parent / "b").iterdir()} - {
        p.name for p in (readers.parent / "csv").iterdir()
    }
    assert extra == {
        "train_speakers.csv",
        "train_speakers.prepared.json",
        "valid_speakers.csv",
        "valid_speakers_trials.txt",
        "dev-a_trials.txt",
        "dev-a_trials.prepared.json",
    }


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}


def test_nothing_is_written_twice(readers):
    first = prepare(readers, **speakers_options())
    before = stamps(readers.parent / "csv")
    assert prepare(readers, **speakers_options()) == first
    assert stamps(readers.parent / "csv") == before


SPEAKER_FILES = {
    "train_speakers.csv",
    "valid_speakers.csv",
    "valid_speakers_trials.txt",
}
TRIALS = {"dev-a_trials.txt"}


def other_sex(readers):
    path = readers / "SPEAKERS.TXT"
    text = path.read_text(encoding="utf-8").replace("2    | F", "2    | M")
    path.write_text(text, encoding="utf-8")


def new_train(readers):
    write_utterance(readers / "train-b", "4-400-0009", "A", 800)


def new_dev(readers):
    write_utterance(readers / "dev-a", "9-900-0009", "A", 800)


def damage(name):
    def change(readers):
        path = readers.parent / "csv" / name
        path.write_bytes(path.read_bytes()[:-20])

    return change


@pytest.mark.parametrize(
    "change, again",
    [
        (other_sex, SPEAKER_FILES | TRIALS),
        (new_train, SPEAKER_FILES),
        (new_dev, TRIALS),
        (damage("train_speakers.csv"), SPEAKER_FILES),
        (damage("valid_speakers.csv"), SPEAKER_FILES),
        (damage("valid_speakers_trials.txt"), SPEAKER_FILES),
        (damage("dev-a_trials.txt"), TRIALS),
    ],
)
def test_only_what_changed_is_written_again(readers, change, again):
    prepare(readers, **speakers_options())
    before = stamps(readers.parent / "csv")
    change(readers)
    prepare(readers, **speakers_options())
    after = stamps(readers.parent / "csv")
    written = {name for name in after if after[name] != before[name]}
    assert written & (SPEAKER_FILES | TRIALS) == again
    prepare(readers, save_folder=readers.parent / "fresh", **speakers_options())
    for name in SPEAKER_FILES | TRIALS:
        kept = (readers.parent / "csv" / name).read_bytes()
        assert kept == (readers.parent / "fresh" / name).read_bytes()


@pytest.mark.parametrize(
    "changes, again",
    [
        ({"speaker_valid_fraction": 0.5}, SPEAKER_FILES),
        ({"positive_trials": 2}, SPEAKER_FILES | TRIALS),
        ({"negative_trials": 2}, SPEAKER_FILES | TRIALS),
        ({"trials_across_chapters": False}, SPEAKER_FILES | TRIALS),
        ({"seed": 3}, SPEAKER_FILES | TRIALS),
    ],
)
def test_another_option_writes_again(readers, changes, again):
    prepare(readers, **speakers_options())
    before = stamps(readers.parent / "csv")
    prepare(readers, **speakers_options(**changes))
    after = stamps(readers.parent / "csv")
    assert {
        name for name in SPEAKER_FILES | TRIALS if after[name] != before[name]
    } == again


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"speaker_valid_fraction": 0}, "speaker_valid_fraction=0: .* 0 and 1"),
        ({"speaker_valid_fraction": 1.5}, "speaker_valid_fraction=1.5"),
        ({"tr_splits": []}, "speaker_valid_fraction=0.3 holds out training data"),
        ({"trial_splits": ["train-a"]}, "trial_splits: train-a is not among the dev"),
        ({"trial_splits": "dev-b"}, r"dev-b is not among .* \(dev-a\)"),
        ({"positive_trials": 0}, "positive_trials=0"),
        ({"negative_trials": -3}, "negative_trials=-3"),
        ({"seed": -1}, "seed=-1"),
        ({"merge_name": "train_speakers.csv"}, "train_speakers.csv is what speaker_"),
    ],
)
def test_wrong_arguments_of_the_split_are_refused(readers, changes, problem):
    with pytest.raises(UserError, match=problem):
        prepare(readers, **speakers_options(**changes))


# The command, and real speech.


def test_the_command_holds_out_and_draws(readers, capsys):
    folder = readers.parent / "csv"
    arguments = ["--train", "train-a", "--dev", "dev-a", "--trials", "dev-a"]
    arguments += ["--speaker_valid_fraction=0.3", "--positive_trials=5", "--seed=4"]
    main([str(readers), str(folder), *arguments, "--trials_within_chapters"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].split()[:3] == ["dev-a_trials.txt", "29", "trials"]
    prepare(
        readers,
        save_folder=readers.parent / "b",
        tr_splits=["train-a"],
        positive_trials=5,
        trials_across_chapters=False,
        seed=4,
        **speakers_options(),
    )
    for path in folder.iterdir():
        assert path.read_bytes() == (readers.parent / "b" / path.name).read_bytes()


def test_the_command_prints_a_table(corpus, capsys):
    folder = str(corpus.parent / "csv")
    main([str(corpus), folder, "--train", "train-a", "--dev", "dev-a"])
    lines = capsys.readouterr().err.splitlines()[-4:]
    assert [line.split()[0] for line in lines] == [
        "file",
        "train-a.csv",
        "dev-a.csv",
        "train.csv",
    ]
    assert lines[1].split()[1:3] == ["2", "4"]


def test_the_command_ends_in_one_line(corpus, repository):
    script = repository / "recipes" / "LibriSpeech" / "librispeech_prepare.py"
    done = subprocess.run(
        [sys.executable, script, corpus, corpus.parent / "csv", "--test", "none"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the split none was not found")
    assert done.stderr.count("\n") == 1


def test_trials_of_real_recordings(mini_corpora, tmp_path):
    counts = prepare_librispeech(
        mini_corpora,
        tmp_path,
        te_splits=["test-other"],
        trial_splits=["test-other"],
        num_workers=2,
    )
    # Eight speakers with two chapters of six; three of one sex, five of the other.
    assert counts["test-other_trials.txt"]["positives"] == 8 * 36
    trials = read_trials(tmp_path / "test-other_trials.txt")
    known = set(ids(tmp_path / "test-other.csv"))
    assert all({first, second} <= known for _, first, second in trials)


def test_real_recordings(mini_corpora, tmp_path):
    counts = prepare_librispeech(
        mini_corpora,
        tmp_path,
        dev_splits=["dev-other"],
        te_splits=["test-other"],
        num_workers=2,
    )
    assert counts["dev-other.csv"]["speakers"] == 8
    assert counts["dev-other.csv"]["utterances"] == 96
    prepared = {row["ID"]: row for row in rows(tmp_path / "dev-other.csv")}
    for transcript_file in mini_corpora.glob("LibriSpeech/dev-other/*/*/*.trans.txt"):
        for line in transcript_file.read_text().splitlines():
            utterance, text = line.split(" ", 1)
            path = transcript_file.parent / f"{utterance}.flac"
            check_row(prepared.pop(utterance), path, text)
    assert not prepared
