"""Whose CSVs a run opens: folders by options, and what an evaluation compares."""

import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hyperpyyaml import load_hyperpyyaml

from lobes.data.evaluation_sets import EvaluationSet
from lobes.data.prepared import TEST_SETS, check_test_sets, record_test_sets
from lobes.data.utterance_tables import read_table
from lobes.errors import UserError
from lobes.runs.command_line import parse_arguments, resolve
from recipes.LibriSpeech.librispeech_prepare import prepare_librispeech
from recipes.VoxCeleb.voxceleb_prepare import prepare_voxceleb
from tests.helpers import tiny

FOLDERS = ("librispeech", "voxceleb2", "voxceleb1")


def folders(tmp_path, *options, yaml=tiny.MTL):
    """The CSV folders of a command line, as its settings name them."""
    given = [f"--{name}_folder={tmp_path / name}" for name in FOLDERS]
    given.append(f"--prepared_folder={tmp_path / 'prepared'}")
    _, _, tree, _, _ = resolve([str(yaml), *given, *options])
    return tuple(
        tree[f"{corpus}_csv_folder"].value for corpus in ("librispeech", "voxceleb")
    )


def test_runs_share_csvs_unless_the_options_of_a_corpus_differ(tmp_path):
    speech, speaker = folders(tmp_path)
    assert speech.startswith("<prepared_folder>/LibriSpeech/")
    assert speaker.startswith("<prepared_folder>/VoxCeleb/")
    for same in ("--lr=1e-3", "--num_workers=1", "--seed=3", "--crop_seconds=3"):
        assert folders(tmp_path, same) == (speech, speaker)
    for option in ("librispeech.tr_splits=[train-clean-100]",
                   "librispeech_valid_split=dev-clean"):  # fmt: skip
        changed, kept = folders(tmp_path, f"--{option}")
        assert changed != speech and kept == speaker
    changed = {
        folders(tmp_path, f"--{option}")
        for option in (
            "voxceleb.valid_fraction=0.1", "voxceleb.seed=1",
            "voxceleb.valid_positive_trials=10", "voxceleb.valid_same_sex=True",
            "voxceleb.valid_different_video=True",
            "voxceleb.transcripts=a.jsonl", "voxceleb.convert=flac",
            "voxceleb_trial_lists=[veri_test.txt]", "voxceleb2_folder=other",
        )
    }  # fmt: skip
    assert len(changed) == 9 and {place for place, _ in changed} == {speech}
    assert speaker not in {place for _, place in changed}
    both = {folders(tmp_path, f"--{o}") for o in ("skip_budget=3", "header_only=True")}
    assert len({x for pair in both for x in pair}) == 4
    # The budget of a strict run is 0.
    strict = folders(tmp_path, "--skip_budget=3", "--strict=True")
    assert strict == (speech, speaker)


def test_a_relative_corpus_is_the_same_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = folders(tmp_path)
    assert folders(tmp_path, "--librispeech_folder=librispeech") == wanted


def test_own_csvs_are_where_they_were(tmp_path):
    own = ("<prepared_folder>/LibriSpeech", "<prepared_folder>/VoxCeleb")
    assert folders(tmp_path, "--skip_prep=True") == own


def test_the_stored_settings_are_stock_and_follow_the_prepared_folder(tmp_path):
    argv = tiny.arguments(tmp_path, tmp_path / "run", skip_prep=False)
    hparams, _, settings = parse_arguments([*argv, "--device=cpu"])
    stored = load_hyperpyyaml(settings)
    place = Path(stored["voxceleb_csv_folder"])
    assert place.parent == tmp_path / "VoxCeleb"
    assert stored["voxceleb"]["save_folder"] == str(place)
    assert stored["voxceleb"]["journal_folder"] == str(place.parent)
    assert hparams["valid_sets"]["speaker"].csv == f"{place}/valid.csv"
    moved = load_hyperpyyaml(settings, {"prepared_folder": "/moved"})
    assert moved["voxceleb_csv_folder"] == f"/moved/VoxCeleb/{place.name}"


def write_speech(folder, split, speakers):
    """So many readers with two chapters of one utterance."""
    for speaker in range(speakers):
        for chapter in range(2):
            name = f"{split[-1]}{speaker}-{chapter}"
            place = folder / split / name.split("-")[0] / str(chapter)
            place.mkdir(parents=True)
            noise = np.random.RandomState(speaker).randint(-9000, 9000, 16000)
            soundfile.write(place / f"{name}-0.flac", noise.astype(np.int16), 16000)
            (place / f"{name}.trans.txt").write_text(f"{name}-0 YES\n")


@pytest.mark.fault(
    "A4",
    "two runs prepare other splits into one prepared_folder, at the same time",
    "each has its own CSVs; every file is decoded once",
)
def test_two_runs_do_not_overwrite_each_other(tmp_path, capfd):
    corpus = tmp_path / "librispeech"
    for split, speakers in (("train-a", 3), ("train-b", 2), ("dev-c", 2)):
        write_speech(corpus, split, speakers)
    calls, places = [], []
    for splits in ("[train-a]", "[train-a, train-b]"):
        options = [f"--librispeech.tr_splits={splits}"]
        options += ["--librispeech_valid_split=dev-c", "--librispeech_test_splits=[]"]
        options.append("--headline_sets={eer: veri_test2}")
        place = folders(tmp_path, *options)[0].replace(
            "<prepared_folder>", str(tmp_path / "prepared")
        )
        places.append(Path(place))
        calls.append(
            {
                "data_folder": corpus,
                "save_folder": place,
                "journal_folder": tmp_path / "prepared" / "LibriSpeech",
                "tr_splits": splits.strip("[]").split(", "),
                "dev_splits": ["dev-c"],
                "num_workers": 1,
            }
        )
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=prepare_librispeech, kwargs=c) for c in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [len(read_table(place / "train.csv")) for place in places] == [6, 10]
    told = capfd.readouterr().err
    assert "train-a: 6 of 6 files were decoded before (train-a.scan)" in told
    assert not list(places[0].glob("*.scan"))
    # Again the first: nothing of it has changed.
    prepare_librispeech(**calls[0])
    assert "train-a: prepared before and nothing changed" in capfd.readouterr().err


def opened(folder, name="test-other"):
    """The speech test set of the tiny corpus."""
    one = EvaluationSet(folder / "LibriSpeech" / f"{name}.csv")
    return {"speech": {"test-other": one}}


@pytest.fixture
def trained(tiny_corpus, tmp_path):
    """A corpus, and a run's record of its test set."""
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    sets = opened(corpus)
    sets["speech"]["test-other"].open()
    (tmp_path / "run").mkdir()
    record_test_sets(tmp_path / "run", sets)
    return tmp_path


def test_an_unchanged_test_set_is_fine(trained):
    check_test_sets(trained / "run", opened(trained / "corpus"))
    # Also elsewhere, from a run that was moved.
    (trained / "run").rename(trained / "moved")
    (trained / "corpus").rename(trained / "other")
    check_test_sets(trained / "moved", opened(trained / "other"))


@pytest.mark.fault(
    "A4",
    "a run's test CSV was prepared again otherwise, then evaluate.py",
    "`the test set ... is not the one that ... was trained beside`",
)
def test_another_test_set_is_refused(trained):
    path = trained / "corpus" / "LibriSpeech" / "test-other.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="not the one.*as it was then.*allow_changes"):
        check_test_sets(trained / "run", opened(trained / "corpus"))
    copy = path.with_name("another.csv")
    copy.write_text("".join(lines[:-2]))
    with pytest.raises(UserError, match="that was .*test-other.csv: name the results"):
        check_test_sets(trained / "run", opened(trained / "corpus", "another"))


def test_an_absent_test_set_names_the_run_s_own(trained):
    with pytest.raises(UserError, match="does not exist; .* test-other of .*other.csv"):
        check_test_sets(trained / "run", opened(trained / "corpus", "absent"))


def test_a_run_without_a_record_is_not_compared(trained):
    (trained / "run" / TEST_SETS).unlink()
    check_test_sets(trained / "run", opened(trained / "corpus"))


@pytest.mark.parametrize("content", ["", "5", "[]", '{"speech/test-other": 5}'])
def test_a_damaged_record_is_told(trained, content):
    (trained / "run" / TEST_SETS).write_text(content)
    with pytest.raises(UserError, match="test_sets.json.*delete it and the test sets"):
        check_test_sets(trained / "run", opened(trained / "corpus"))


def test_a_training_leaves_the_record(tiny_corpus, tmp_path):
    system = tiny.brain(tiny_corpus, tmp_path / "run")
    system.open_sets()
    stored = json.loads((tmp_path / "run" / TEST_SETS).read_text())
    assert set(stored) == {"speech/test-other", "speaker/voxceleb1"}


@pytest.mark.fault(
    "A7",
    "mtl_100h.yaml on VoxCeleb1/wav with all speakers",
    "the trial list's speakers are taken out of training, counted",
)
def test_voxceleb1_alone_gives_training_and_test_speakers(tmp_path, capfd):
    for speaker in range(6):
        for video in range(3):
            for number in range(2):
                name = f"id1000{speaker}/v{video}/{number}.wav"
                path = tmp_path / "voxceleb1" / "wav" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.RandomState(number).randint(-9000, 9000, 8000)
                soundfile.write(path, noise.astype(np.int16), 16000)
    (tmp_path / "voxceleb1" / "veri_test2.txt").write_text(
        "1 id10000/v0/0.wav id10000/v1/1.wav\n0 id10000/v0/0.wav id10001/v0/0.wav\n"
    )
    yaml = tiny.MTL.with_name("mtl_100h.yaml")
    hparams, _, _ = parse_arguments(
        [
            str(yaml), f"--librispeech_folder={tmp_path}",
            f"--voxceleb1_folder={tmp_path / 'voxceleb1'}", "--encoder.source=null",
            f"--encoder.config={tiny.ENCODER}".replace("'", ""), "--device=cpu",
            f"--prepared_folder={tmp_path / 'prepared'}",
            "--voxceleb.valid_fraction=0.2",
        ]
    )  # fmt: skip
    counts = prepare_voxceleb(**{**hparams["voxceleb"], "num_workers": 1})
    assert counts["train.csv"]["speakers"] == 4
    assert counts["test.csv"]["speakers"] == 2
    kind = "utterance(s) of speakers of the trial lists"
    told = capfd.readouterr().err
    assert f"train: left out: 12 {kind} (wav/id10000/v0/0.wav, ...)" in told
    assert "of 148,642 utterances, 4 of 1,211 speakers of VoxCeleb1 dev" in told
    report = Path(hparams["voxceleb_csv_folder"], "prepare_report.json")
    assert json.loads(report.read_text())["left_out"] == {"train": {kind: 12}}


def test_a_folder_of_test_speakers_alone_cannot_train(tmp_path):
    for name in ("id1/v/1", "id1/v/2", "id2/v/1"):
        path = tmp_path / "vox1" / "wav" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(800, np.int16), 16000)
    lists = tmp_path / "vox1" / "list.txt"
    lists.write_text("1 id1/v/1.wav id1/v/2.wav\n0 id1/v/1.wav id2/v/1.wav\n")
    call = (tmp_path / "vox1", tmp_path / "vox1", tmp_path / "csv", ["list.txt"])
    with pytest.raises(UserError, match="all 2 speakers in .* are in the trial lists"):
        prepare_voxceleb(*call, without_test_speakers=True)
    with pytest.raises(UserError, match="without_test_speakers: .*give both"):
        prepare_voxceleb(None, *call[1:], without_test_speakers=True)
