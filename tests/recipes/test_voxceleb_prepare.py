"""VoxCeleb preparation: rows, validation split, trials, lists, leaks."""

import csv
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lobes.data.audio import SAMPLE_RATE, audio_statistics
from lobes.data.labels import Letters
from lobes.data.utterance_tables import read_table
from lobes.errors import UserError
from lobes.preparation import pipeline
from lobes.preparation.scan import Scan
from recipes.VoxCeleb import voxceleb_prepare
from recipes.VoxCeleb.voxceleb_prepare import HEADER, main, prepare_voxceleb


def write_utterance(path, samples=500, seed=0):
    """A short file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(-9000, 9000, samples)
    soundfile.write(path, noise.astype(np.int16), SAMPLE_RATE)


def write_tree(folder, speakers, videos, utterances, first=0):
    """``speakers`` x ``videos`` x ``utterances`` files named as in VoxCeleb."""
    numbers = itertools.product(range(speakers), range(videos), range(utterances))
    for seed, (speaker, video, utterance) in enumerate(numbers):
        name = f"id{first + speaker:05d}/-v{video}deo/{utterance + 1:05d}.wav"
        write_utterance(folder / name, 400 + seed % 50, seed)


LIST = """\
1 id90000/-v0deo/00001.wav id90000/-v1deo/00001.wav
0 id90000/-v0deo/00001.wav id90001/-v0deo/00002.wav
0 id90001/-v0deo/00002.wav id90000/-v0deo/00001.wav
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """What every test gets a copy of."""
    folder = tmp_path_factory.mktemp("template")
    write_tree(folder / "vox2" / "dev" / "wav", 6, 3, 2)
    write_tree(folder / "vox1" / "wav", 2, 2, 2, first=90000)
    (folder / "vox1" / "veri_test2.txt").write_text(LIST)
    return folder


@pytest.fixture
def corpora(template, tmp_path):
    """VoxCeleb2 (6 x 3 x 2 utterances) and VoxCeleb1 (2 x 2 x 2) with a list."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path


def prepare(corpora, **changes):
    """Prepare the fixture's corpora with one process, beside them."""
    options = {
        "data_folder": corpora / "vox2",
        "test_folder": corpora / "vox1",
        "save_folder": corpora / "csv",
        "trial_lists": ["veri_test2.txt"],
        "valid_fraction": 0.2,
        "num_workers": 1,
    }
    return prepare_voxceleb(**{**options, **changes})


def rows(path):
    """Rows of a CSV as dicts."""
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        assert tuple(reader.fieldnames) == HEADER
        found = list(reader)
    assert [row["ID"] for row in found] == sorted(row["ID"] for row in found)
    return found


def read_trials(path):
    """Trials as (label, enrol, test)."""
    return [tuple(line.split(" ")) for line in path.read_text().splitlines()]


def video(utterance):
    """Speaker and video of an ID."""
    return utterance.rpartition("--")[0]


def speaker(utterance):
    """Speaker of an ID."""
    return utterance.partition("--")[0]


def check_row(row, frames, mean, std):
    """Compare a row with what is known of its file."""
    path = Path(row["wav"])
    assert path.is_absolute()
    assert row["ID"] == "--".join((*path.parts[-3:-1], path.stem))
    assert row["spk_id"] == path.parts[-3]
    assert (row["start"], row["stop"]) == ("0", str(frames))
    assert float(row["duration"]) == frames / SAMPLE_RATE
    assert (float(row["mean"]), float(row["std"])) == (mean, std)


def test_rows_describe_the_files(corpora):
    counts = prepare(corpora)
    folder = corpora / "csv"
    train, valid = rows(folder / "train.csv"), rows(folder / "valid.csv")
    test = rows(folder / "test.csv")
    for row in train + valid + test:
        samples, _ = soundfile.read(row["wav"])
        check_row(row, len(samples), samples.mean(), samples.std())
    listed = {str(path) for path in (corpora / "vox2").rglob("*.wav")}
    assert {row["wav"] for row in train + valid} == listed
    assert len(train) + len(valid) == len(listed)
    assert [row["ID"] for row in test] == [
        "id90000---v0deo--00001",
        "id90000---v1deo--00001",
        "id90001---v0deo--00002",
    ]
    assert (folder / "veri_test2.txt").read_text() == (
        "1 id90000---v0deo--00001 id90000---v1deo--00001\n"
        "0 id90000---v0deo--00001 id90001---v0deo--00002\n"
        "0 id90001---v0deo--00002 id90000---v0deo--00001\n"
    )
    assert list(counts) == [
        "train.csv",
        "valid.csv",
        "valid_trials.txt",
        "test.csv",
        "veri_test2.txt",
    ]
    assert counts["train.csv"]["utterances"] == len(train)
    assert counts["train.csv"]["speakers"] == 6
    assert counts["train.csv"]["path"] == str(folder / "train.csv")
    assert counts["veri_test2.txt"] == {
        "path": str(folder / "veri_test2.txt"),
        "trials": 3,
        "positives": 1,
        "negatives": 2,
    }


@pytest.mark.parametrize("root", ["dev/aac", "dev/wav", "aac", "wav", "."])
def test_training_audio_is_found_in_every_layout(corpora, root):
    prepare(corpora, test_folder=None)
    other = corpora / "other"
    (other / root).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(corpora / "vox2" / "dev" / "wav", other / root, dirs_exist_ok=True)
    prepare(corpora, data_folder=other, test_folder=None, save_folder=corpora / "b")
    for name in ("train.csv", "valid.csv"):
        first, second = rows(corpora / "csv" / name), rows(corpora / "b" / name)
        for row in first + second:
            del row["wav"]
        assert first == second


@pytest.mark.parametrize("root", ["wav", "dev/wav", "test/wav", "."])
def test_test_audio_is_found_in_every_layout(corpora, root):
    folder = corpora / "other" / root
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(corpora / "vox1" / "wav", folder, dirs_exist_ok=True)
    prepare(
        corpora,
        data_folder=None,
        test_folder=corpora / "other",
        trial_lists=[corpora / "vox1" / "veri_test2.txt"],
    )
    wanted = folder / "id90000" / "-v0deo" / "00001.wav"
    assert rows(corpora / "csv" / "test.csv")[0]["wav"] == str(wanted)
    assert not (corpora / "csv" / "train.csv").exists()


def test_test_audio_may_lie_in_two_folders(corpora):
    target = corpora / "vox1" / "test" / "wav" / "id90001"
    target.parent.mkdir(parents=True)
    shutil.move(corpora / "vox1" / "wav" / "id90001", target)
    assert prepare(corpora)["test.csv"]["utterances"] == 3


def test_lossless_files_are_preferred(corpora):
    name = "id00000/-v0deo/00001"
    m4a = corpora / "vox2" / "dev" / "aac" / f"{name}.m4a"
    m4a.parent.mkdir(parents=True)
    m4a.write_bytes(b"never read")
    flac = corpora / "vox2" / "dev" / "wav" / f"{name}.flac"
    write_utterance(flac, 777)
    prepare(corpora)
    folder = corpora / "csv"
    both = rows(folder / "train.csv") + rows(folder / "valid.csv")
    assert len(both) == 36
    assert {Path(row["wav"]).suffix for row in both} == {".wav"}
    (corpora / "vox2" / "dev" / "wav" / f"{name}.wav").unlink()
    prepare(corpora)
    both = rows(folder / "train.csv") + rows(folder / "valid.csv")
    assert len(both) == 36 and str(flac) in {row["wav"] for row in both}


def test_listed_files_may_have_been_converted(corpora):
    path = corpora / "vox1" / "wav" / "id90000" / "-v0deo" / "00001.wav"
    path.unlink()
    write_utterance(path.with_suffix(".flac"), 600)
    prepare(corpora)
    row = rows(corpora / "csv" / "test.csv")[0]
    assert row["wav"] == str(path.with_suffix(".flac")) and row["stop"] == "600"


def test_the_order_of_the_file_system_does_not_matter(corpora, monkeypatch):
    prepare(corpora)
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
    prepare(corpora, save_folder=corpora / "other")
    monkeypatch.undo()
    for path in (corpora / "csv").iterdir():
        assert path.read_bytes() == (corpora / "other" / path.name).read_bytes()


# Validation split and trials.


@pytest.fixture
def no_decoding(monkeypatch):
    """Let every file, though empty, have 1 s."""

    def scan(paths, *_):
        ones = np.ones(len(paths))
        return Scan(np.full(len(paths), SAMPLE_RATE), 0 * ones, ones, {})

    monkeypatch.setattr(pipeline, "scan_audio", scan)


def empty_tree(folder, sizes):
    """Empty files; ``sizes[speaker][video]`` is the number of utterances."""
    for s, videos in enumerate(sizes):
        for v, count in enumerate(videos):
            place = folder / f"id{s:05d}" / f"video{v:03d}"
            place.mkdir(parents=True)
            for u in range(count):
                (place / f"{u:05d}.wav").touch()


@pytest.fixture
def large(tmp_path, no_decoding):
    """60 speakers with 1 to 8 videos of 1 to 12 utterances, 1,500 in total."""
    random = np.random.RandomState(3)
    sizes = [random.randint(1, 13, random.randint(1, 9)).tolist() for _ in range(60)]
    empty_tree(tmp_path / "vox2", sizes)
    return tmp_path


def split(folder, **changes):
    """Prepare training data only; IDs of train and valid, and the trials."""
    options = {"valid_positive_trials": 50, "valid_negative_trials": 70}
    prepare(folder, **{"test_folder": None, **options, **changes})
    csvs = folder / "csv"
    return (
        [row["ID"] for row in rows(csvs / "train.csv")],
        [row["ID"] for row in rows(csvs / "valid.csv")],
        read_trials(csvs / "valid_trials.txt"),
    )


@pytest.mark.parametrize("fraction", [0.02, 0.1])
@pytest.mark.parametrize("per_speaker", [1, 2])
def test_whole_recordings_are_held_out(large, fraction, per_speaker):
    train, valid, _ = split(
        large, valid_fraction=fraction, valid_recordings_per_speaker=per_speaker
    )
    total = len(train) + len(valid)
    assert total == len(list((large / "vox2").rglob("*.wav")))
    # Taken until the fraction is reached: short by nothing, long by less than
    # one recording.
    assert fraction * total <= len(valid) < fraction * total + 12
    recordings = {video(u) for u in valid}
    assert not recordings & {video(u) for u in train}
    held_out = Counter(speaker(recording) for recording in recordings)
    assert max(held_out.values()) <= per_speaker
    assert set(held_out) <= {speaker(u) for u in train}


def test_the_recordings_follow_the_seed(large):
    first, again = split(large, seed=1), split(large, seed=1)
    other = split(large, seed=2)
    assert first == again
    assert first[1] != other[1] and first[2] != other[2]
    # Pinned: the split of a published result must never move.
    _, valid, _ = split(large, seed=42133724, valid_fraction=0.02)
    assert sorted({video(u) for u in valid}) == [
        "id00000--video001",
        "id00006--video001",
        "id00010--video002",
        "id00018--video005",
        "id00046--video000",
    ]


def test_trials_are_unique_pairs_of_held_out_utterances(large):
    _, valid, trials = split(large, valid_fraction=0.1)
    assert Counter(label for label, _, _ in trials) == {"1": 50, "0": 70}
    assert len({frozenset(pair) for _, *pair in trials}) == 120
    for label, enrol, test in trials:
        assert {enrol, test} <= set(valid) and enrol != test
        assert (label == "1") == (speaker(enrol) == speaker(test))
    assert any(video(a) == video(b) for label, a, b in trials if label == "1")


def test_positive_trials_of_different_videos_only(large):
    _, _, trials = split(large, valid_fraction=0.1, valid_different_video=True)
    positives = [(a, b) for label, a, b in trials if label == "1"]
    assert len(positives) == 50
    assert all(video(a) != video(b) for a, b in positives)


def test_all_pairs_are_taken_where_there_are_few(large, capsys):
    _, valid, trials = split(
        large, valid_positive_trials=10**5, valid_negative_trials=10**6
    )
    by_speaker = defaultdict(list)
    for utterance in valid:
        by_speaker[speaker(utterance)].append(utterance)
    positives = sum(len(u) * (len(u) - 1) // 2 for u in by_speaker.values())
    every = len(valid) * (len(valid) - 1) // 2
    assert Counter(label for label, _, _ in trials) == {
        "1": positives,
        "0": every - positives,
    }
    assert len({frozenset(pair) for _, *pair in trials}) == every
    assert f"only {positives} positives exist of the 100000" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [1, 1000, 10000])
def test_any_number_of_negative_trials(large, wanted):
    # Below half of all pairs they are drawn, above they are listed.
    _, _, trials = split(large, valid_negative_trials=wanted)
    negatives = [frozenset(pair) for label, *pair in trials if label == "0"]
    assert len(negatives) == len(set(negatives)) == wanted


def test_a_shortage_of_recordings_is_told(large, capsys):
    train, valid, _ = split(large, valid_fraction=0.9, valid_recordings_per_speaker=1)
    assert len(valid) < 0.9 * (len(train) + len(valid))
    assert f"only {len(valid)} utterances can be held out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sizes,changes,problem",
    [
        ([[3], [3], [3]], {}, "holds out 0 of 9.*no positive.*raise valid_fraction"),
        ([[3, 3], [3, 3]], {"valid_fraction": 0.1}, "no negative trial"),
        ([[1, 1], [1, 1]], {"valid_fraction": 0.5}, "no positive trial"),
        (
            [[3, 3], [3, 3]],
            {"valid_fraction": 0.5, "valid_different_video": True},
            "no positive trial",
        ),
        ([[3, 3, 3]], {}, "only 1 speaker .id00000. was found"),
    ],
)
def test_a_corpus_too_small_to_split(tmp_path, no_decoding, sizes, changes, problem):
    empty_tree(tmp_path / "vox2", sizes)
    with pytest.raises(UserError, match=problem):
        split(tmp_path, **changes)
    assert not (tmp_path / "csv" / "train.csv").exists()


def test_speakers_with_one_utterance_are_counted(tmp_path, no_decoding, capsys):
    empty_tree(tmp_path / "vox2", [[4, 4], [4, 4], [1], [1]])
    split(tmp_path, valid_fraction=0.4)
    assert "warning: 2 speaker(s) have a single utterance" in capsys.readouterr().err


def write_meta(folder, sexes, separator=" ,", name="vox2_meta.csv"):
    """VoxCeleb's table of speakers, with the line ends of the published one."""
    header = ["VoxCeleb2 ID", "VGGFace2 ID", "Gender", "Set"]
    lines = [[s, s.replace("id", "n0"), sex, "dev"] for s, sex in sexes.items()]
    text = "".join(separator.join(line) + "\r\n" for line in [header, *lines])
    (folder / name).write_bytes(text.encode())


def sexes_of(folder):
    """Every third speaker is a woman."""
    speakers = sorted({path.name for path in (folder / "vox2").iterdir()})
    return {s: "f" if n % 3 == 0 else "m" for n, s in enumerate(speakers)}


@pytest.mark.parametrize("separator", [" ,", "\t"])
def test_negative_trials_of_one_sex_only(large, separator):
    plain = split(large)
    sexes = sexes_of(large)
    write_meta(large / "vox2", sexes, separator)
    train, valid, trials = split(large, valid_same_sex=True)
    assert (train, valid) == plain[:2]
    negatives = [pair for label, *pair in trials if label == "0"]
    kinds = Counter(tuple(sexes[speaker(u)] for u in pair) for pair in negatives)
    assert set(kinds) == {("f", "f"), ("m", "m")} and len(negatives) == 70
    mixed = [pair for label, *pair in plain[2] if label == "0"]
    assert any(len({sexes[speaker(u)] for u in pair}) == 2 for pair in mixed)
    # Another table is another list.
    write_meta(large / "vox2", {s: "m" for s in sexes}, separator)
    assert split(large, valid_same_sex=True)[2] != trials
    assert split(large) == plain


def drop(sexes):
    del sexes["id00004"], sexes["id00007"]


def misspell(sexes):
    sexes["id00004"] = "F?"


@pytest.mark.parametrize(
    "change, problem",
    [
        (drop, r"vox2_meta.csv: no line for 2 speaker\(s\): id00004; id00007;"),
        (misspell, "vox2_meta.csv, line 6: .* has no m or f in the column Gender"),
        (dict.clear, r"vox2_meta.csv: no line for 60 speaker\(s\)"),
        (None, "valid_same_sex: .*vox2_meta.csv does not exist"),
    ],
)
def test_a_sex_that_is_not_known_is_refused(large, change, problem):
    sexes = sexes_of(large)
    if change:
        change(sexes)
        write_meta(large / "vox2", sexes)
    with pytest.raises(UserError, match=problem):
        split(large, valid_same_sex=True)
    assert not (large / "csv" / "train.csv").exists()


def test_a_meta_file_without_sexes_is_refused(large):
    (large / "vox2" / "vox2_meta.csv").write_text("<html>")
    with pytest.raises(UserError, match="line 1: there is no column Gender"):
        split(large, valid_same_sex=True)


# Trial lists.


def write_list(corpora, text, name="veri_test2.txt"):
    (corpora / "vox1" / name).write_bytes(text.encode())


def test_lists_may_be_from_windows(corpora):
    prepare(corpora)
    wanted = (corpora / "csv" / "veri_test2.txt").read_bytes()
    write_list(corpora, "\ufeff" + LIST.replace("\n", "\r\n") + "\r\n")
    prepare(corpora)
    assert (corpora / "csv" / "veri_test2.txt").read_bytes() == wanted


def test_duplicates_are_counted_and_kept(corpora, capsys):
    write_list(corpora, LIST + LIST)
    assert prepare(corpora)["veri_test2.txt"]["trials"] == 6
    assert "veri_test2.txt: 4 trial(s) repeat a pair" in capsys.readouterr().err


def test_labels_against_the_folder_names_are_counted(corpora, capsys):
    write_list(corpora, LIST + "1 id90000/-v0deo/00002.wav id90001/-v1deo/00002.wav\n")
    prepare(corpora)
    assert "warning: 1 label(s) contradict" in capsys.readouterr().err


def test_several_lists_share_one_csv(corpora):
    hard = "1 id90001/-v0deo/00002.wav id90001/-v1deo/00001.wav\n" + LIST.replace(
        "1 id90000/-v0deo/00001.wav id90000/-v1deo/00001.wav\n", ""
    )
    write_list(corpora, hard, "hard.txt")
    counts = prepare(corpora, trial_lists=["veri_test2.txt", "hard.txt"])
    assert counts["test.csv"]["utterances"] == 4
    assert read_trials(corpora / "csv" / "hard.txt")[0] == (
        "1",
        "id90001---v0deo--00002",
        "id90001---v1deo--00001",
    )
    known = {row["ID"] for row in rows(corpora / "csv" / "test.csv")}
    for name in ("veri_test2.txt", "hard.txt"):
        for _, *pair in read_trials(corpora / "csv" / name):
            assert known.issuperset(pair)


@pytest.mark.parametrize(
    "line,problem",
    [
        ("1 id90000/-v0deo/00001.wav", "line 4: 2 columns"),
        ("1 a/b/c.wav d/e/f.wav 0.5", "line 4: 4 columns"),
        ("2 a/b/c.wav d/e/f.wav", "line 4: the label is '2', not 0 or 1"),
        ("a/b/c.wav d/e/f.wav 1", "line 4: the label is 'a/b/c.wav'"),
        ("1 c.wav d/e/f.wav", "line 4: 'c.wav' is not speaker/video/file"),
        ("1 a/../c.wav d/e/f.wav", "line 4: 'a/../c.wav' is not"),
        ("0 id9/x/1.wav id90000/-v0deo/00001.wav", "line 4: id9/x/1.wav; unpack"),
    ],
)
def test_a_bad_line_is_named(corpora, line, problem):
    write_list(corpora, LIST + line + "\n")
    with pytest.raises(UserError, match=f"veri_test2.txt, {problem}"):
        prepare(corpora)


def test_all_bad_lines_are_counted(corpora):
    write_list(corpora, LIST + "2 a b\n1\n\n0 0\n1 a/b a/b\n")
    with pytest.raises(UserError, match="4 bad line.*line 4: .*line 7: .*and 1 more"):
        prepare(corpora)


def test_all_absent_files_are_counted(corpora):
    shutil.rmtree(corpora / "vox1" / "wav" / "id90000")
    with pytest.raises(UserError) as caught:
        prepare(corpora)
    assert "2 of 3 files are not in" in str(caught.value)
    assert "veri_test2.txt, line 1: id90000/-v0deo/00001.wav" in str(caught.value)


@pytest.mark.parametrize("label", ["0", "1"])
def test_a_list_with_one_kind_of_trial_is_refused(corpora, label):
    lines = [line for line in LIST.splitlines(True) if line[0] == label]
    write_list(corpora, "".join(lines))
    with pytest.raises(UserError, match="veri_test2.txt: it has .* positive trials of"):
        prepare(corpora)


def test_an_empty_list_is_refused(corpora):
    write_list(corpora, "\n")
    with pytest.raises(UserError, match="0 positive trials of 0"):
        prepare(corpora)


@pytest.mark.parametrize(
    "changes,problem",
    [
        ({"data_folder": "/nowhere"}, "voxceleb2_folder.: the folder /nowhere"),
        ({"test_folder": "/nowhere"}, "voxceleb1_folder.: the folder /nowhere"),
        ({"data_folder": None, "test_folder": None}, "neither data_folder"),
        ({"trial_lists": ["absent.txt"]}, "absent.txt does not exist; download it"),
        ({"trial_lists": []}, "no list is given"),
        ({"trial_lists": ["veri_test2.txt"] * 2}, "same veri_test2.txt; rename"),
        ({"valid_fraction": 0}, "valid_fraction=0: "),
        ({"valid_fraction": 2}, "between 0 and 1"),
        ({"valid_recordings_per_speaker": 0}, "valid_recordings_per_speaker=0"),
        ({"valid_positive_trials": 0}, "valid_positive_trials=0"),
        ({"valid_negative_trials": -1}, "valid_negative_trials=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"convert": "mp3"}, "convert=mp3: only flac, wav"),
    ],
)
def test_wrong_arguments_are_refused(corpora, changes, problem):
    with pytest.raises(UserError, match=problem):
        prepare(corpora, **changes)


def test_a_list_is_never_overwritten(corpora):
    own = corpora / "csv" / "veri_test2.txt"
    own.parent.mkdir()
    own.write_text(LIST)
    with pytest.raises(UserError, match="lies in save_folder and would be overwritten"):
        prepare(corpora, trial_lists=[str(own)])
    assert own.read_text() == LIST


def test_a_list_called_like_the_validation_trials_is_refused(corpora):
    write_list(corpora, LIST, "valid_trials.txt")
    with pytest.raises(UserError, match="same valid_trials.txt"):
        prepare(corpora, trial_lists="valid_trials.txt")


def test_a_folder_without_audio_is_refused(corpora):
    (corpora / "empty").mkdir()
    with pytest.raises(UserError, match="no audio found in .*empty.*dev/wav, dev/aac"):
        prepare(corpora, data_folder=corpora / "empty")


def test_a_leak_is_refused_before_decoding(corpora, monkeypatch):
    write_tree(corpora / "vox2" / "dev" / "wav", 1, 2, 1, first=90001)
    monkeypatch.setattr(pipeline, "scan_audio", None)
    with pytest.raises(UserError, match=r"1 speaker\(s\) are in both .*: id90001;"):
        prepare(corpora)


# Bad audio, and rebuilding.


def test_bad_training_audio_is_refused_or_skipped(corpora):
    bad = corpora / "vox2" / "dev" / "wav" / "id00003" / "-v1deo" / "00002.wav"
    bad.write_text("<html>")
    with pytest.raises(UserError, match=r"train: 1 bad .*id00003---v1deo--00002: "):
        prepare(corpora)
    assert not (corpora / "csv" / "train.csv").exists()
    counts = prepare(corpora, skip_budget=1)
    assert counts["train.csv"]["skipped"] == 1
    folder = corpora / "csv"
    both = rows(folder / "train.csv") + rows(folder / "valid.csv")
    assert len(both) == 35 and str(bad) not in {row["wav"] for row in both}
    for row in both:
        samples, _ = soundfile.read(row["wav"])
        check_row(row, len(samples), samples.mean(), samples.std())
    valid = {row["ID"] for row in rows(folder / "valid.csv")}
    for _, *pair in read_trials(folder / "valid_trials.txt"):
        assert valid.issuperset(pair)
    assert "id00003---v1deo--00002" in (folder / "train.skipped.csv").read_text()


def test_a_recording_that_is_all_bad_is_gone(corpora):
    for path in (corpora / "vox2" / "dev" / "wav" / "id00003").rglob("*.wav"):
        path.write_text("")
    counts = prepare(corpora, skip_budget=6)
    assert counts["train.csv"]["speakers"] == 5


def test_bad_test_audio_takes_its_trials_with_it(corpora, capsys):
    write_list(corpora, LIST + LIST.replace("/00001", "/00002"))
    bad = corpora / "vox1" / "wav" / "id90000" / "-v1deo" / "00001.wav"
    bad.write_text("")
    with pytest.raises(UserError, match="test: 1 bad utterance.*0 bytes"):
        prepare(corpora)
    counts = prepare(corpora, skip_budget=1)
    assert counts["test.csv"] | {"path": None, "hours": None} == {
        "path": None,
        "speakers": 2,
        "utterances": 4,
        "hours": None,
        "skipped": 1,
    }
    assert counts["veri_test2.txt"]["trials"] == 5
    assert "1 of 6 trials left out" in capsys.readouterr().err
    known = {row["ID"] for row in rows(corpora / "csv" / "test.csv")}
    for _, *pair in read_trials(corpora / "csv" / "veri_test2.txt"):
        assert known.issuperset(pair)


@pytest.fixture
def decoded(monkeypatch):
    """Names of the parts that were decoded, in order."""
    titles = []
    scan = pipeline.scan_audio

    def record(paths, num_workers, title, *options):
        titles.append(title)
        return scan(paths, num_workers, title, *options)

    monkeypatch.setattr(pipeline, "scan_audio", record)
    return titles


def test_nothing_is_decoded_twice(corpora, decoded):
    first = prepare(corpora)
    assert decoded == ["train", "test"]
    assert prepare(corpora) == first
    assert "train.csv" not in prepare(corpora, data_folder=None)
    assert "test.csv" not in prepare(corpora, test_folder=None)
    assert len(decoded) == 2


def touch(corpora):
    path = corpora / "vox2" / "dev" / "wav" / "id00003" / "-v1deo" / "00002.wav"
    os.utime(path, ns=(5, 5))


def touch_test(corpora):
    path = corpora / "vox1" / "wav" / "id90000" / "-v0deo" / "00001.wav"
    os.utime(path, ns=(5, 5))


def unlisted(corpora):
    path = corpora / "vox1" / "wav" / "id90000" / "-v1deo" / "00002.wav"
    os.utime(path, ns=(5, 5))


def new_list(corpora):
    write_list(corpora, LIST.replace("/00002", "/00001"))


def truncate(name):
    def change(corpora):
        path = corpora / "csv" / name
        path.write_bytes(path.read_bytes()[:-30])

    return change


@pytest.mark.parametrize(
    "change,again",
    [
        (touch, ["train"]),
        (touch_test, ["test"]),
        (unlisted, []),
        (new_list, ["test"]),
        (truncate("train.csv"), ["train"]),
        (truncate("valid.csv"), ["train"]),
        (truncate("valid_trials.txt"), ["train"]),
        (truncate("test.csv"), ["test"]),
        (truncate("veri_test2.txt"), ["test"]),
    ],
)
def test_only_what_changed_is_prepared_again(corpora, decoded, change, again):
    prepare(corpora)
    decoded.clear()
    change(corpora)
    prepare(corpora)
    assert decoded == again
    prepare(corpora, save_folder=corpora / "fresh")
    for path in (corpora / "csv").iterdir():
        # It also remembers the files before they changed.
        if path.suffix != ".scan":
            assert path.read_bytes() == (corpora / "fresh" / path.name).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"valid_fraction": 0.3},
        {"valid_recordings_per_speaker": 1},
        {"valid_positive_trials": 2},
        {"valid_negative_trials": 2},
        {"valid_different_video": True, "valid_fraction": 0.6},
        {"seed": 3},
    ],
)
def test_another_option_prepares_again(corpora, decoded, changes):
    prepare(corpora)
    decoded.clear()
    prepare(corpora, **changes)
    assert decoded == ["train"]


def test_nothing_is_done_with_skip_prep(tmp_path):
    assert prepare_voxceleb("a", "b", tmp_path / "x", skip_prep=True) == {}
    assert not (tmp_path / "x").exists()


def test_any_skip_is_an_error_when_strict(corpora):
    write_list(corpora, LIST + LIST.replace("/00001", "/00002"))
    bad = corpora / "vox1" / "wav" / "id90000" / "-v1deo" / "00001.wav"
    bad.write_text("")
    prepare(corpora, skip_budget=3)
    with pytest.raises(UserError, match="test: 1 bad .* as always with --strict"):
        prepare(corpora, skip_budget=3, strict=True)


def test_lengths_from_headers(corpora, everything):
    prepare(corpora)
    transcripts = write_transcripts(corpora, everything)
    options = {"header_only": True, "transcripts": transcripts}
    prepare(corpora, save_folder=corpora / "headers", **options)
    for name in ("train", "valid", "test"):
        whole = read_table(corpora / "csv" / f"{name}.csv")
        found = read_table(corpora / "headers" / f"{name}.csv")
        assert found.equals(whole.drop(columns=["mean", "std"]))
    found = read_table(corpora / "headers" / "train_transcribed.csv", ["wrd"])
    assert list(found.columns) == [*HEADER[:-2], "wrd"]
    trials = (corpora / "csv" / "valid_trials.txt").read_bytes()
    assert (corpora / "headers" / "valid_trials.txt").read_bytes() == trials


def test_the_report_compares_with_the_published_sizes(corpora, capsys):
    prepare(corpora)
    report = json.loads((corpora / "csv" / "prepare_report.json").read_text())
    assert report["official"] == [
        {
            "files": "train.csv + valid.csv",
            "published": "VoxCeleb2 dev",
            "counts": {"utterances": [36, 1_092_009], "speakers": [6, 5_994]},
        },
        {
            "files": "veri_test2.txt",
            "published": "VoxCeleb1's veri_test2.txt",
            "counts": {"positives": [1, 18_802], "negatives": [2, 18_809]},
        },
    ]
    assert report["skipped"] == {}


# Automatic transcripts.


def write_transcripts(corpora, lines, name="transcripts.jsonl"):
    """A file of JSON lines from ``(ID, text, language)``."""
    keys = ("ID", "text", "language")
    objects = (dict(zip(keys, line, strict=True)) for line in lines)
    path = corpora / name
    path.write_text("".join(json.dumps(one) + "\n" for one in objects))
    return path


def transcribed(path):
    """Rows of a transcribed CSV as dicts; the column ``wrd`` comes last."""
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        assert tuple(reader.fieldnames) == (*HEADER, "wrd")
        return list(reader)


@pytest.fixture
def everything(corpora):
    """A transcript for every utterance that training and validation have."""
    prepare(corpora, test_folder=None, save_folder=corpora / "plain")
    names = [
        row["ID"]
        for name in ("train.csv", "valid.csv")
        for row in rows(corpora / "plain" / name)
    ]
    # The files of this corpus have 1 frame: 400 to 449 samples.
    return [(name, "a.", "en") for name in sorted(names)]


def test_rows_with_a_transcript_get_a_column(corpora, everything, capsys):
    bad = {
        "id00001---v0deo--00001": ("oui", "fr"),
        "id00002---v0deo--00001": ("5", "en"),
        "id00003---v0deo--00001": ("", None),
        "id00004---v0deo--00001": ("two", None),
    }
    lines = [(n, *bad.get(n, (t, "en"))) for n, t, _ in everything[1:]]
    path = write_transcripts(corpora, [*lines, ("id9--x--1", "a", "en")])
    counts = prepare(corpora, transcripts=path)
    plain, folder = corpora / "plain", corpora / "csv"
    left_out = {everything[0][0], *bad}
    total = 0
    for name in ("train", "valid"):
        assert (folder / f"{name}.csv").read_bytes() == (
            plain / f"{name}.csv"
        ).read_bytes()
        wanted = [r for r in rows(plain / f"{name}.csv") if r["ID"] not in left_out]
        found = transcribed(folder / f"{name}_transcribed.csv")
        assert found == [{**row, "wrd": "A"} for row in wanted]
        count = counts[f"{name}_transcribed.csv"]
        assert count["utterances"] == len(wanted)
        assert count["path"] == str(folder / f"{name}_transcribed.csv")
        total += count["skipped"]
    assert total == len(left_out) == 5
    skipped = (folder / "transcripts.skipped.csv").read_text().splitlines()
    assert skipped[0] == "ID,reason,detail"
    assert set(skipped[1:]) == {
        "id00000---v0deo--00001,no transcript,",
        "id00001---v0deo--00001,not English,fr",
        "id00002---v0deo--00001,characters,5",
        "id00003---v0deo--00001,empty,",
        "id00004---v0deo--00001,more letters than frames,3 > 1",
        "id9--x--1,unknown utterance,transcripts.jsonl:36",
    }
    said = capsys.readouterr().err
    assert "transcripts: left out: 1 unknown utterance" in said
    for reason in ("no transcript", "not English", "characters", "empty"):
        assert f"1 {reason}" in said


def test_the_transcribed_csvs_can_be_trained_on(corpora, everything):
    prepare(corpora, transcripts=write_transcripts(corpora, everything))
    table = read_table(corpora / "csv" / "train_transcribed.csv", ["wrd", "spk_id"])
    Letters().check("train_transcribed.csv", table)
    assert len(table) == len(rows(corpora / "csv" / "train.csv"))


def test_only_changed_transcripts_are_chosen_again(corpora, everything, decoded):
    path = write_transcripts(corpora, everything)
    first = prepare(corpora, transcripts=path)
    folder = corpora / "csv"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}
    assert prepare(corpora, transcripts=str(path)) == first
    assert {p: p.stat().st_mtime_ns for p in folder.glob("[!.]*")} == before
    write_transcripts(corpora, everything[1:])
    again = prepare(corpora, transcripts=path)
    left = sum(again[f"{n}_transcribed.csv"]["skipped"] for n in ("train", "valid"))
    assert left == 1
    changed = {p.name for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert changed == {
        "train_transcribed.csv",
        "valid_transcribed.csv",
        "transcripts.skipped.csv",
        "transcripts.prepared.json",
        "prepare_report.json",
    }
    assert decoded == ["train", "test"]
    # Another split changes what the rows are chosen from.
    third = prepare(corpora, transcripts=path, seed=3)
    assert third["train_transcribed.csv"] != again["train_transcribed.csv"]
    truncate("train_transcribed.csv")(corpora)
    prepare(corpora, transcripts=path, seed=3)
    known = {row["ID"] for row in rows(folder / "train.csv")} - {everything[0][0]}
    assert {row["ID"] for row in transcribed(folder / "train_transcribed.csv")} == known


def test_transcripts_that_cannot_be_used_are_refused(corpora, everything, monkeypatch):
    with pytest.raises(UserError, match="transcripts are given but no data_folder"):
        prepare(corpora, transcripts=corpora / "vox1/veri_test2.txt", data_folder=None)
    path = write_transcripts(corpora, [("id9--x--1", "a", "en")])
    with pytest.raises(UserError, match="train.csv has a usable .* no transcript"):
        prepare(corpora, transcripts=path)
    path.write_text(path.read_text() + "{")
    with pytest.raises(UserError, match="transcripts.jsonl, line 2: no JSON: "):
        prepare(corpora, transcripts=path)
    # Before anything is looked at, and without transcripts nothing is.
    monkeypatch.setattr(voxceleb_prepare, "Training", None)
    with pytest.raises(UserError, match="transcripts: the file .* does not exist"):
        prepare(corpora, transcripts=corpora / "absent.jsonl")
    assert prepare(corpora, transcripts="absent.jsonl", skip_prep=True) == {}


# m4a files.


@pytest.fixture
def published(corpora, mini_corpora):
    """Real m4a files as VoxCeleb2 has them: 6 speakers, the first with a bad file."""
    pytest.importorskip("av")
    source = mini_corpora / "VoxCeleb2" / "dev" / "aac"
    shutil.rmtree(corpora / "vox2")
    for name in sorted(os.listdir(source))[:6]:
        target = corpora / "vox2" / "dev" / "aac" / name
        shutil.copytree(source / name, target)
    bad = sorted((corpora / "vox2").rglob("*.m4a"))[0]
    bad.write_bytes(bad.read_bytes()[:500])
    return corpora


@pytest.mark.parametrize("to", ["flac", "wav"])
def test_m4a_files_are_converted_once(published, capsys, monkeypatch, to):
    originals = sorted((published / "vox2").rglob("*.m4a"))
    with pytest.raises(UserError, match="train: 1 bad utterance"):
        prepare(published, convert=to)
    told = capsys.readouterr().err
    converted = f"{len(originals) - 1} converted, 0 there before, 1 failed"
    assert f"train: {len(originals)} files: {converted}" in told
    with open(published / "vox2" / "convert.failed.csv", newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == [str(originals[0])]
    # The rest is not decoded again, neither as m4a nor as what it became.
    monkeypatch.setattr(voxceleb_prepare.conversion, "encode_audio", None)
    counts = prepare(published, convert=to, skip_budget=1)
    assert counts["train.csv"]["skipped"] == 1
    found = rows(published / "csv" / "train.csv") + rows(
        published / "csv" / "valid.csv"
    )
    assert len(found) == len(originals) - 1
    for row in found:
        assert row["wav"].endswith(f".{to}") and "/dev/wav/" in row["wav"]
    check_row(found[0], *audio_statistics(found[0]["wav"]))
    assert sorted((published / "vox2").rglob("*.m4a")) == originals
    # Nothing is left to convert or to say.
    originals[0].unlink()
    capsys.readouterr()
    prepare(published, convert=to, skip_budget=1)
    assert "m4a" not in capsys.readouterr().err


def test_m4a_files_that_stay_are_told(published, capsys):
    prepare(published, skip_budget=1)
    count = len(list((published / "vox2").rglob("*.m4a")))
    told = f"train: {count} of {count} files are m4a, which are decoded whole"
    assert told in capsys.readouterr().err
    assert not (published / "vox2" / "dev" / "wav").exists()


def test_another_preparation_of_the_folder_is_waited_for(corpora, repository):
    first = prepare(corpora)
    hold = (
        "import sys; from lobes.system.locks import one_writer\n"
        "with one_writer(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    lock = corpora / "csv" / ".prepare.lock"
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    script = repository / "recipes" / "VoxCeleb" / "voxceleb_prepare.py"
    options = ["--test_folder", corpora / "vox1", "--trial_lists", "veri_test2.txt"]
    command = [sys.executable, script, corpora / "vox2", corpora / "csv", *options]
    with subprocess.Popen([sys.executable, "-c", hold, lock], **pipe) as holder:
        assert holder.stdout.readline() == "held\n"
        with subprocess.Popen(
            [*command, "--valid_fraction=0.2"], stderr=subprocess.PIPE, text=True
        ) as second:
            told = f"another process ({socket.gethostname()}, pid {holder.pid}) is"
            assert any(told in line for line in iter(second.stderr.readline, ""))
            assert second.poll() is None
            holder.stdin.close()
            assert "nothing changed; kept" in second.stderr.read()
    assert second.returncode == 0
    assert prepare(corpora) == first


# The command, and real speech.


def test_the_command_prints_a_table(corpora, capsys):
    arguments = ["--test_folder", corpora / "vox1", "--trial_lists", "veri_test2.txt"]
    main(list(map(str, ["-", corpora / "csv", *arguments])))
    lines = capsys.readouterr().err.splitlines()
    names = ["file", "test.csv", "veri_test2.txt", "veri_test2.txt:"]
    assert [line.split()[0] for line in lines[-4:]] == names
    assert lines[-1].endswith(
        "1 of 18,802 positives, 2 of 18,809 negatives of VoxCeleb1's veri_test2.txt"
    )
    main(list(map(str, [corpora / "vox2", corpora / "csv", "--valid_fraction=0.2"])))
    assert "valid_trials.txt " in capsys.readouterr().err
    (corpora / "text").write_text("id00000/-v0deo/00001.wav A\n")
    options = ["--valid_fraction=0.2", "--transcripts", corpora / "text"]
    main(list(map(str, [corpora / "vox2", corpora / "csv", *options])))
    assert "valid_transcribed.csv " in capsys.readouterr().err


def test_the_command_ends_in_one_line(tmp_path, repository):
    script = repository / "recipes" / "VoxCeleb" / "voxceleb_prepare.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "absent", tmp_path / "csv"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: data_folder (voxceleb2_folder): the")
    assert done.stderr.count("\n") == 1


def test_real_recordings(mini_corpora, tmp_path):
    pytest.importorskip("av")
    source = mini_corpora / "VoxCeleb2" / "dev" / "aac"
    target = tmp_path / "vox2" / "dev" / "aac"
    target.mkdir(parents=True)
    for name in sorted(os.listdir(source))[:8]:
        (target / name).symlink_to(source / name)
    counts = prepare_voxceleb(
        tmp_path / "vox2",
        mini_corpora / "VoxCeleb1",
        tmp_path / "csv",
        trial_lists=("veri_test2.txt", "list_test_all2.txt", "list_test_hard2.txt"),
        valid_fraction=0.1,
        num_workers=2,
    )
    assert counts["test.csv"]["utterances"] == 160
    assert counts["test.csv"]["speakers"] == 20
    assert counts["veri_test2.txt"]["trials"] == 800
    assert counts["train.csv"]["speakers"] == 8
    train = rows(tmp_path / "csv" / "train.csv")
    valid = rows(tmp_path / "csv" / "valid.csv")
    files = {str(path) for folder in target.iterdir() for path in folder.rglob("*.m4a")}
    assert {row["wav"] for row in train + valid} == files
    for row in valid + train[::20] + rows(tmp_path / "csv" / "test.csv")[::20]:
        check_row(row, *audio_statistics(row["wav"]))
    original = (mini_corpora / "VoxCeleb1" / "veri_test2.txt").read_text()
    assert read_trials(tmp_path / "csv" / "veri_test2.txt") == [
        (label, *(name.removesuffix(".wav").replace("/", "--") for name in pair))
        for label, *pair in map(str.split, original.splitlines())
    ]
