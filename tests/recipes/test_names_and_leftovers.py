"""What lies in a corpus beside its utterances, names of any kind, and places."""

import csv
import itertools
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lobes.data.audio import SAMPLE_RATE
from lobes.data.trials import check_trials, read_trials
from lobes.data.utterance_tables import read_table
from lobes.errors import UserError
from lobes.preparation import pipeline
from recipes.LibriSpeech import librispeech_prepare
from recipes.LibriSpeech.librispeech_prepare import prepare_librispeech
from recipes.VoxCeleb import voxceleb_prepare
from recipes.VoxCeleb.voxceleb_prepare import prepare_voxceleb

NOISE = np.random.RandomState(0).randint(-9000, 9000, 8000).astype(np.int16)


def write(path):
    """A good file, also under a name that libsndfile does not take."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        soundfile.write(stream, NOISE, SAMPLE_RATE, format="WAV")


@pytest.fixture
def voxceleb(tmp_path):
    """VoxCeleb2 with 5 speakers of 3 videos of 2 utterances."""
    root = tmp_path / "vox2"
    for speaker, video, number in itertools.product(range(5), range(3), range(2)):
        write(root / "dev/wav" / f"id{speaker}" / f"v{video}" / f"{number}.wav")
    return root


@pytest.fixture
def librispeech(tmp_path):
    """A split of 2 readers with 2 chapters of 1 utterance, and who they are."""
    root = tmp_path / "libri"
    for speaker, chapter in itertools.product("12", "34"):
        name = f"{speaker}-{chapter}"
        write(root / "test-a" / speaker / chapter / f"{name}-0.wav")
        (root / "test-a" / speaker / chapter / f"{name}.trans.txt").write_text(
            f"{name}-0 YES\n"
        )
    (root / "SPEAKERS.TXT").write_text("1 | F | x\n2 | F | x\n")
    return root


def prepare_vox(root, **options):
    """Prepare the training half beside the corpus."""
    options = {"valid_fraction": 0.3, "num_workers": 1, **options}
    save = options.pop("save_folder", root.parent / "csv")
    return prepare_voxceleb(root, None, save, **options)


def prepare_libri(root, **options):
    """Prepare the split, with trials, beside the corpus."""
    options = {"te_splits": ["test-a"], "num_workers": 1, **options}
    save = options.pop("save_folder", root.parent / "csv")
    return prepare_librispeech(root, save, **options)


# ------------------------------------------------------------------------- leftovers


@pytest.mark.fault(
    "C7",
    "VoxCeleb with .mp3 files, a folder spk9, files one level off",
    "counted by kind, with an example, in one line and in prepare_report.json",
)
def test_what_is_no_utterance_of_voxceleb_is_counted(voxceleb, capsys):
    for name in (
        "dev/wav/id0/v0/8.mp3", "dev/wav/id0/v0/9.MP3", "dev/wav/id0/v0/notes",
        "dev/wav/id0/v1/8.ogg", "dev/wav/id1/8.wav", "dev/wav/8.mp4", "8.wav",
        "dev/wav/id0/v0/deeper/8.wav", "dev/wav/spk9/v/8.wav", "dev/mp4/id1/v/8.mp4",
        "test/aac/id7/v/8.m4a", "dev/wav/id0/v9/readme.txt", "vox2_meta.csv",
        "dev/wav/id0/v0/.hidden", "dev/wav/id0/v0/0.m4a",
    ):  # fmt: skip
        path = voxceleb / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    counts = prepare_vox(voxceleb)
    assert sum(counts[f"{n}.csv"]["utterances"] for n in ("train", "valid")) == 30
    wanted = {
        "file(s) that lie in no id*/<video>": 3,
        "folder(s) not called id*": 3,
        "file(s) that end in .mp3": 2,
        "file(s) that end in .ogg": 1,
        "file(s) that end in .txt": 1,
        "file(s) without ending": 1,
        "folder(s) below id*/<video>": 1,
        "video(s) without an utterance": 1,
    }
    report = json.loads((voxceleb.parent / "csv/prepare_report.json").read_text())
    assert report["left_out"] == {"train": wanted}
    told = capsys.readouterr().err.splitlines()
    (line,) = [line for line in told if line.startswith("train: left out: ")]
    assert all(f"{number} {kind} (" in line for kind, number in wanted.items())
    assert "2 file(s) that end in .mp3 (dev/wav/id0/v0/8.mp3, ...)" in line
    assert "left out of train: 3 folder(s) not called id*" in told
    # What is said does not depend on whether anything is prepared again.
    prepare_vox(voxceleb)
    assert line in capsys.readouterr().err.splitlines()


def test_a_clean_corpus_leaves_nothing_out(voxceleb, librispeech, capsys):
    prepare_vox(voxceleb)
    prepare_libri(librispeech)
    assert "left out" not in capsys.readouterr().err


@pytest.mark.fault(
    "C7",
    "LibriSpeech with .mp3 files, files and folders at other levels",
    "counted by kind; audio and transcripts without the other are bad utterances",
)
def test_what_is_no_utterance_of_librispeech_is_counted(librispeech, capsys):
    split = librispeech / "test-a"
    stray = ("1/3/x.mp3", "1/stray.wav", "stray.txt", "1/3/deep/1.wav", "9/9/n.txt")
    for name in stray:
        path = split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    write(split / "1" / "3" / "1-3-1.wav")
    with open(split / "2" / "4" / "2-4.trans.txt", "a") as stream:
        stream.write("2-4-1 NO\n")
    counts = prepare_libri(librispeech, skip_budget=2)
    assert counts["test-a.csv"]["utterances"] == 4
    report = json.loads((librispeech.parent / "csv/prepare_report.json").read_text())
    assert report["left_out"] == {
        "test-a": {
            "file(s) that lie in no <speaker>/<chapter>": 2,
            "chapter(s) without an utterance": 1,
            "file(s) that end in .mp3": 1,
            "file(s) that end in .txt": 1,
            "folder(s) below <speaker>/<chapter>": 1,
        }
    }
    assert sum(report["skipped"]["test-a"].values()) == 2
    assert "test-a: left out: 2 file(s) that lie in no" in capsys.readouterr().err


# ----------------------------------------------------------------------------- names

#: Name of a file, and what is said of it; None: it can be used.
NAMES = {
    "00001 (1)": r"name holds ' ', which no trial list can hold",
    "new\nline": r"name holds '\\n'",
    "tab\there": r"name holds '\\t'",
    "no\u00a0break": r"name holds '\\xa0'",
    "form\x0cfeed": r"name holds '\\x0c'",
    "byte\udcff": "its path is not UTF-8",
    "comma,": None,
    'quo"te': None,
    "it's": None,
    "$dollar": None,
    "-dash": None,
    "--two": None,
    "=1+1": None,
    "#hash": None,
    "\u00e9\u00e0": None,
    "\u6f22\u5b57": None,
    "NA": None,
    "null": None,
    "nan": None,
    "007": None,
    "1e5": None,
    "True": None,
}


@pytest.mark.fault(
    "D3",
    "VoxCeleb files and videos called `00001 (1)`, not UTF-8, with line ends, ...",
    "bad utterances found while listing, with escaped names and the remedy",
)
@pytest.mark.parametrize("place", ["file", "video", "speaker"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_voxceleb(voxceleb, name, place, monkeypatch):
    if place == "file":
        path = voxceleb / "dev/wav/id1/v1" / f"{name}.wav"
    elif place == "video":
        path = voxceleb / "dev/wav/id1" / name / "7.wav"
    else:
        path = voxceleb / f"dev/wav/id{name}/v1/7.wav"
    write(path)
    reason = NAMES[name]
    save = voxceleb.parent / "csv"
    if reason is not None:
        # Found before anything is decoded.
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "scan_audio", None)
            with pytest.raises(UserError, match="train: 1 bad utterance") as caught:
                prepare_vox(voxceleb)
        assert "\n" not in str(caught.value) and str(caught.value).isprintable()
        assert "rename the file or folder" in str(caught.value)
        with open(save / "train.skipped.csv", encoding="utf-8", newline="") as stream:
            (row,) = csv.DictReader(stream)
        assert re.search(reason, row["reason"])
        assert row["path"].isprintable()
    counts = prepare_vox(voxceleb, skip_budget=1)
    assert counts["train.csv"]["skipped"] == (reason is not None)
    readable(save, "train.csv", "valid.csv", "valid_trials.txt", reason, path)


def readable(save, train, valid, trials, reason, path):
    """Read what was written with the readers of the training."""
    tables = [read_table(save / name, ["spk_id"]) for name in (train, valid)]
    listed = {wav for table in tables for wav in table["wav"]}
    assert (str(path) in listed) == (reason is None)
    found = read_trials(save / trials)
    check_trials(found, tables[1]["ID"], valid)


@pytest.mark.fault(
    "D3",
    "LibriSpeech files of such names",
    "bad utterances found while listing, with escaped names and the remedy",
)
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_librispeech(librispeech, name, monkeypatch):
    chapter = librispeech / "test-a" / "1" / "3"
    write(chapter / f"{name}.wav")
    if NAMES[name] is None:
        with open(chapter / "1-3.trans.txt", "a", encoding="utf-8") as stream:
            stream.write(f"{name} NO\n")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "scan_audio", None)
            with pytest.raises(UserError, match="rename the file") as caught:
                prepare_libri(librispeech)
        assert str(caught.value).isprintable()
    counts = prepare_libri(librispeech, trial_splits=["test-a"], skip_budget=1)
    used = NAMES[name] is None
    assert counts["test-a.csv"]["utterances"] == 4 + used
    save = librispeech.parent / "csv"
    table = read_table(save / "test-a.csv", ["spk_id", "wrd"])
    assert (name in set(table["ID"])) == used
    trials = read_trials(save / "test-a_trials.txt")
    check_trials(trials, table["ID"], "test-a.csv")


@pytest.mark.fault(
    "D3",
    "200 random names of any characters that a file system takes",
    "the reader of training takes every trial list that preparation writes",
)
def test_every_trial_list_that_is_written_can_be_read(tmp_path):
    random = np.random.RandomState(7)
    alphabet = [chr(c) for c in range(1, 0x180) if chr(c) not in "/."]
    alphabet += list("\u2028\u3000\ufeff\u200b\U0001f600\udcff") + [" ", "-", "$"] * 9

    def name():
        return "".join(random.choice(alphabet, random.randint(1, 6)))

    root, number = tmp_path / "vox2", 0
    for speaker in range(8):
        for _ in range(5):
            # Half of the videos have harmless names.
            video = name() if random.rand() < 0.5 else f"v{number}"
            for _ in range(5):
                write(root / f"id{speaker}" / video / f"{name()}.wav")
                number += 1
    assert number == 200
    counts = prepare_vox(root, skip_budget=200)
    assert 0 < counts["train.csv"]["skipped"] < 150
    save = tmp_path / "csv"
    tables = [read_table(save / f"{n}.csv", ["spk_id"]) for n in ("train", "valid")]
    trials = read_trials(save / "valid_trials.txt")
    check_trials(trials, tables[1]["ID"], "valid.csv")
    wavs = {wav for table in tables for wav in table["wav"]}
    assert all(os.path.isfile(wav) for wav in wavs)
    files = sum(1 for _ in root.rglob("*.wav"))
    assert len(wavs) + counts["train.csv"]["skipped"] == files


@pytest.mark.fault(
    "C7",
    "a trial list with `1 a b` and `0 b a`, `0 a a`, or `1 a a`",
    "refused before decoding; a warning for the last",
)
@pytest.mark.parametrize(
    "line,problem",
    [
        ("0 id1/v/2.wav id1/v/1.wav", "3 trial.s. contradict others or themselves"),
        ("0 id1/v/2.wav id1/v/2.flac", "1 trial.s. .* id1/v/2 with id1/v/2"),
        ("1 id1/v/2.wav id1/v/2.wav", None),
    ],
)
def test_trials_that_contradict(tmp_path, line, problem, capsys):
    root = tmp_path / "vox1"
    for name in ("id1/v/1", "id1/v/2", "id2/v/1"):
        write(root / "wav" / f"{name}.wav")
    good = "1 id1/v/1.wav id1/v/2.wav\n0 id1/v/1.wav id2/v/1.wav\n"
    again = "1 id1/v/1.wav id1/v/2.wav\n"
    (root / "list.txt").write_text(f"{good}{again}{line}\n")

    def prepare():
        prepare_voxceleb(None, root, tmp_path / "csv", ["list.txt"], num_workers=1)

    if problem is not None:
        with pytest.raises(UserError, match=problem):
            prepare()
        return
    prepare()
    told = "list.txt: warning: 1 trial(s) compare an utterance with itself"
    assert told in capsys.readouterr().err
    assert len(read_trials(tmp_path / "csv/list.txt", allow_repeats=True).enrol) == 4


def test_two_files_of_one_id_are_refused(voxceleb):
    write(voxceleb / "dev/wav/id1--v/w/0.wav")
    write(voxceleb / "dev/wav/id1/v--w/0.wav")
    with pytest.raises(UserError, match="two files would both be called id1--v--w--0"):
        prepare_vox(voxceleb)


def test_a_root_that_no_csv_can_hold_is_refused(voxceleb):
    moved = voxceleb.rename(voxceleb.parent / "vox\udcff2")
    with pytest.raises(UserError, match=r"vox\\xff2 cannot stand in a CSV; rename"):
        prepare_vox(moved)


# ---------------------------------------------------------------------------- places


def files(folder):
    """Every file and folder below, with its time of change."""
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


@pytest.mark.fault(
    "C6",
    "--train /corpora/LibriSpeech/train-clean-100, ../x, a/b",
    "`is no name of a split: name the split, not its path (...)`",
)
@pytest.mark.parametrize("kind", ["tr_splits", "dev_splits", "te_splits"])
@pytest.mark.parametrize("split", ["{root}/test-a", "../libri/test-a", "x/y", "..", ""])
def test_a_path_is_no_split(librispeech, split, kind):
    before = files(librispeech)
    split = split.format(root=librispeech)
    with pytest.raises(UserError, match="is no name of a split: name the") as told:
        prepare_libri(librispeech, **{"te_splits": [], kind: [split]})
    if split.startswith("/"):
        assert f"(test-a, with data_folder {librispeech})" in str(told.value)
    assert files(librispeech) == before and not (librispeech.parent / "csv").exists()


@pytest.mark.fault(
    "C6",
    "a save_folder within the corpus",
    "`lies in the corpus (...), where nothing is to be written`",
)
def test_nothing_is_written_into_a_corpus(voxceleb, librispeech):
    link = voxceleb.parent / "link"
    link.symlink_to(voxceleb / "dev")
    before = files(voxceleb), files(librispeech)
    for place in (".", "dev", "dev/wav/id1", "dev/wav/csv", "id7/csv"):
        with pytest.raises(UserError, match="save_folder: .* lies in the corpus"):
            prepare_vox(voxceleb, save_folder=voxceleb / place)
    with pytest.raises(UserError, match="lies in the corpus"):
        prepare_vox(voxceleb, save_folder=link)
    for place in (".", "test-a", "test-a/1/csv"):
        with pytest.raises(UserError, match="save_folder: .* lies in the corpus"):
            prepare_libri(librispeech, save_folder=librispeech / place)
    assert (files(voxceleb), files(librispeech)) == before


@pytest.mark.fault(
    "C6",
    "the user's own train.csv or trial list in save_folder",
    "refused before anything is decoded; it stays as it is",
)
def test_own_csvs_are_not_overwritten(voxceleb, librispeech, monkeypatch):
    save = voxceleb.parent / "csv"
    save.mkdir()
    monkeypatch.setattr(pipeline, "scan_audio", None)
    for name, prepare, root, options in (
        ("valid.csv", prepare_vox, voxceleb, {}),
        ("valid_trials.txt", prepare_vox, voxceleb, {}),
        ("test-a.csv", prepare_libri, librispeech, {}),
        ("test-a_trials.txt", prepare_libri, librispeech, {"trial_splits": "test-a"}),
    ):
        (save / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name} is there and no preparation"):
            prepare(root, **options)
        assert (save / name).read_text() == "mine"
        (save / name).unlink()


@pytest.mark.parametrize(
    "option,value,told",
    [
        ("skip_budget", -1, "skip_budget=-1: it is the number of bad utterances"),
        ("num_workers", 0, "num_workers=0: at least 1 process"),
        ("seed", -1, "seed=-1: use a number from 0"),
    ],
)
def test_numbers_are_checked_before_anything_is_made(
    voxceleb, librispeech, option, value, told
):
    for prepare, root in ((prepare_vox, voxceleb), (prepare_libri, librispeech)):
        with pytest.raises(UserError, match=told):
            prepare(root, **{option: value})
        assert not (root.parent / "csv").exists()


@pytest.mark.parametrize("main", [librispeech_prepare.main, voxceleb_prepare.main])
def test_repeated_options_add_up(main, monkeypatch):
    module = sys.modules[main.__module__]
    got = {}
    name = f"prepare_{module.CORPUS.lower()}"
    monkeypatch.setattr(module, name, lambda **options: got.update(options))
    if module is librispeech_prepare:
        main(["d", "s", "--train", "a", "--train", "b", "c"])
        assert got["tr_splits"] == ["a", "b", "c"] and list(got["trial_splits"]) == []
    else:
        main(["d", "s", "--trial_lists", "a", "--trial_lists", "b"])
        assert got["trial_lists"] == ["a", "b"] and got["transcripts"] is None
        main(["d", "s"])
        assert got["trial_lists"] == voxceleb_prepare.TRIAL_LISTS
