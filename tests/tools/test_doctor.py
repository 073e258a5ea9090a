"""The doctor: what each line says of a good and of a bad state, and its remedy."""

import collections
import shutil
import sys

import pandas
import pytest
import soundfile
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from lobes.preparation.published import Count, ListCount
from tests.helpers import tiny
from tools import doctor


def only(found, topic):
    """The one finding about a topic."""
    (finding,) = [one for one in found if one.topic == topic]
    return finding


def states(found):
    return {one.topic: one.status for one in found}


def test_this_installation_is_healthy(capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    *lines, total = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and "0 FAIL" in total, lines
    assert all(line.split()[0] in ("OK", "WARN") for line in lines)
    topics = {line[6:].split("  ")[0] for line in lines}
    assert topics >= {"python", "torch", "device", "cores", "wav, flac", "m4a", "disk"}


def test_a_failure_is_the_exit_status(monkeypatch, capsys):
    failure = doctor.Finding("FAIL", "python", "3.9", "make .venv anew")
    monkeypatch.setattr(doctor, "python", lambda: failure)
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    assert ended.value.code == 1
    assert "FAIL  python        3.9; make .venv anew\n" in capsys.readouterr().out


def test_overrides_need_their_yaml(capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--lr=1"])
    assert "--lr=1: name the YAML file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "version, status, text",
    [
        (None, "FAIL", "not installed; pip install -c constraints.txt -e ."),
        ("0.9.9", "FAIL", "0.9.9, but >=1.1.2 is needed; pip install -c"),
        ("99.0", "WARN", "99.0, tested with"),
        ("1.1.2", "OK", "1.1.2, as tested"),
    ],
)
def test_versions(monkeypatch, version, status, text):
    real = doctor.version
    monkeypatch.setattr(
        doctor, "version", lambda name: version if name == "speechbrain" else real(name)
    )
    finding = only(doctor.packages(), "speechbrain")
    assert finding.status == status and text in str(finding)


@pytest.mark.parametrize(
    "ours, theirs, status",
    [
        ("2.11.0", "2.11.0", "OK"),
        ("2.11.0+cu130", "2.11.0+cu130", "OK"),
        ("2.11.0+cu130", "2.11.0+cpu", "FAIL"),
        ("2.11.0", "2.10.0", "FAIL"),
        ("2.12.0", "2.12.0", "WARN"),
    ],
)
def test_torch_and_torchaudio_must_match(monkeypatch, ours, theirs, status):
    monkeypatch.setattr(torch, "__version__", ours)
    monkeypatch.setattr("torchaudio.__version__", theirs)
    tested = {"torch": "2.11.0", "torchaudio": "2.11.0"}
    finding = doctor.torch_and_torchaudio(tested)
    assert finding.status == status
    assert ("torch==2.11.0 torchaudio==2.11.0" in finding.remedy) == (status != "OK")


def test_a_torchaudio_that_cannot_be_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    finding = doctor.torch_and_torchaudio(doctor.tested_versions())
    assert finding.status == "FAIL" and "torchaudio cannot be used" in finding.found


def gpu(monkeypatch, free=80e9, total=80e9, bf16=True):
    """Pretend that there is one GPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, total))
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)


@pytest.mark.parametrize(
    "settings, status, remedy",
    [
        ({}, "OK", "use --precision=bf16"),
        ({"bf16": False}, "OK", "use --precision=fp16"),
        ({"free": 20e9}, "WARN", "another process uses it, too"),
    ],
)
def test_a_gpu(monkeypatch, settings, status, remedy):
    gpu(monkeypatch, **settings)
    finding = only(doctor.devices(), "device")
    assert (finding.status, finding.remedy) == (status, remedy)
    assert "A100" in finding.found and "of 80.0 GB" in finding.found


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert only(doctor.devices(), "device").found == "CPU only"
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = only(doctor.devices(), "device")
    assert "built for CPUs" in finding.found and "--torch-backend" in finding.remedy


def test_audio_that_cannot_be_read(monkeypatch):
    def refuse(samples, kind):
        raise soundfile.LibsndfileError(1, f"no {kind}: ")

    monkeypatch.setattr(doctor, "encode_audio", refuse)
    monkeypatch.setitem(sys.modules, "av", None)
    found = list(doctor.audio())
    assert states(found) == {"wav, flac": "FAIL", "m4a": "WARN"}
    assert "soundfile" in found[0].remedy and ".[m4a]" in found[1].remedy


def test_disk(tmp_path, monkeypatch):
    new = tmp_path / "not" / "there"
    assert doctor.disk(new, needed=1).status == "OK"
    finding = doctor.disk(new, needed=1e18)
    assert finding.status == "FAIL" and "--output_folder" in finding.remedy
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "cannot be written" in doctor.disk(new, needed=1).found


# Corpora ------------------------------------------------------------------------


def write_csv(path, speakers, utterances):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"u{n},1,u{n}.wav,s{n % speakers}" for n in range(utterances)]
    path.write_text("\n".join(["ID,duration,wav,spk_id", *rows, ""]))


@pytest.fixture
def speech(tmp_path):
    """Settings of LibriSpeech's preparation."""
    return {
        "data_folder": str(tmp_path / "corpus"),
        "save_folder": str(tmp_path / "csv"),
        "tr_splits": [],
        "dev_splits": ["dev-other"],
        "te_splits": [],
        "skip_prep": False,
    }


@pytest.mark.parametrize(
    "speakers, utterances, status",
    [(33, 2864, "OK"), (33, 2863, "WARN"), (32, 2864, "WARN")],
)
def test_csvs_are_compared_with_the_published_size(
    speech, tmp_path, speakers, utterances, status
):
    write_csv(tmp_path / "csv" / "dev-other.csv", speakers, utterances)
    (finding,) = doctor.librispeech(speech)
    assert finding.status == status
    assert f"{utterances:,} of 2,864 utterances, {speakers} of 33" in finding.found


def test_training_splits_count_together(speech, tmp_path):
    speech["tr_splits"] = ["train-clean-100", "train-clean-360", "train-other-500"]
    write_csv(tmp_path / "csv" / "train.csv", 7, 9)
    found = list(doctor.librispeech(speech))[0]
    assert "9 of 281,241 utterances, 7 of 2,338 speakers" in found.found


def test_a_broken_csv(speech, tmp_path):
    path = tmp_path / "csv" / "dev-other.csv"
    write_csv(path, 2, 3)
    path.write_text(path.read_text() + "cut,1\n")
    (finding,) = doctor.librispeech(speech)
    assert finding.status == "FAIL" and "line 5" in finding.found


def test_folders_are_listed_before_preparation(speech, tmp_path):
    def now():
        (finding,) = doctor.librispeech(speech)
        return finding.status, str(finding)

    status, text = now()
    assert status == "FAIL" and "dev-other is no folder" in text
    split = tmp_path / "corpus" / "LibriSpeech" / "dev-other"
    split.mkdir(parents=True)
    status, text = now()
    assert status == "FAIL" and "0 of 33 speakers" in text
    for number in range(33):
        (split / str(number)).mkdir()
    status, text = now()
    assert status == "OK" and "33 of 33 speakers" in text and "not prepared yet" in text
    (split / "0").rmdir()
    assert now()[0] == "WARN"
    speech["skip_prep"] = True
    assert "train without --skip_prep" in now()[1]
    speech |= {"skip_prep": False, "data_folder": "unused"}
    status, text = now()
    assert status == "FAIL" and "give --librispeech_folder=" in text


def test_voxceleb(tmp_path, monkeypatch):
    one, two, save = (tmp_path / name for name in ("one", "two", "csv"))
    settings = {
        "data_folder": str(two),
        "test_folder": str(one),
        "save_folder": str(save),
        "trial_lists": ["veri_test2.txt"],
        "skip_prep": False,
    }
    monkeypatch.setattr(doctor, "official_count", lambda *_: Count(2, 5))
    monkeypatch.setattr(doctor, "TRIALS", {"veri_test2.txt": ListCount(1, 2)})
    (two / "dev" / "aac" / "id1").mkdir(parents=True)
    (two / "dev" / "wav" / "id1").mkdir(parents=True)
    (one / "wav").mkdir(parents=True)
    found = list(doctor.voxceleb(settings))
    assert [f.status for f in found] == ["WARN", "FAIL", "FAIL"]
    assert "1 of 2 speakers" in found[0].found
    assert "veri_test2.txt does not exist" in found[2].found
    write_csv(save / "train.csv", 2, 4)
    write_csv(save / "valid.csv", 1, 1)
    write_csv(save / "test.csv", 2, 3)
    trials = save / "veri_test2.txt"
    trials.write_text("1 a b\n0 a c\n\n0 b c\n")
    *_, found = doctor.voxceleb(settings)
    assert found.status == "FAIL" and "line 3: 0 fields" in found.found
    trials.write_text("1 a b\n0 a c\n0 b c\n")
    found = list(doctor.voxceleb(settings))
    assert [f.status for f in found] == ["OK", "OK", "OK"]
    assert "5 of 5 utterances, 2 of 2 speakers" in found[0].found
    (save / "veri_test2.txt").write_text("1 a b\n0 a c\n")
    finding = list(doctor.voxceleb(settings))[2]
    assert finding.status == "WARN"
    assert "1 of 1 positive and 1 of 2 negative" in finding.found
    # One that is not prepared yet comes from the corpus, if that is to be prepared.
    settings["trial_lists"].append("more.txt")
    (one / "more.txt").write_text("1 a b\n0 a c\n")
    assert str(list(doctor.voxceleb(settings))[3]).endswith(f"trials in {one}/more.txt")
    settings["skip_prep"] = True
    assert f"{save}/more.txt does not" in list(doctor.voxceleb(settings))[3].found


def test_the_classifier_has_its_speakers(tmp_path):
    csv = tmp_path / "train.csv"
    assert list(doctor.classes([csv], 4)) == []
    write_csv(csv, 4, 9)
    assert next(doctor.classes([csv], 4)).status == "OK"
    finding = next(doctor.classes([csv], 5994))
    assert (finding.status, finding.remedy) == ("FAIL", "--speaker.n_speakers=4")


@pytest.mark.fault(
    "B3",
    "the doctor and a CSV `ID,duration,wav,wrd` of speech recognition alone",
    "OK: `16 utterances without speakers (no column spk_id)`",
)
def test_speech_needs_no_speakers(tiny_corpus, tmp_path):
    for name in ("train", "dev-other", "test-other"):
        table = pandas.read_csv(tiny_corpus / "LibriSpeech" / f"{name}.csv")
        path = tmp_path / "csv" / "LibriSpeech" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        table[["ID", "duration", "wav", "wrd"]].to_csv(path, index=False)
    yaml, *overrides = tiny.arguments(tmp_path / "csv", tmp_path / "run", tiny.ASR)
    hparams = doctor.cost.load(yaml, overrides)
    found = [*doctor.corpora(hparams), *doctor.opened(hparams)]
    assert "FAIL" not in states(found).values() and states(found)["files"] == "OK"
    text = only(found, "LibriSpeech/test-other").found
    assert text.startswith("4 utterances without speakers (no column spk_id) in ")


@pytest.fixture
def corpus(tiny_corpus, tmp_path):
    """A copy of the tiny corpus's CSVs, to be spoilt."""
    folder = tmp_path / "corpus"
    return shutil.copytree(tiny_corpus, folder, ignore=shutil.ignore_patterns("*.wav"))


def test_sets_are_opened_as_for_a_training(corpus, tmp_path):
    def files(*options):
        yaml, *overrides = tiny.arguments(corpus, tmp_path / "run")
        hparams = doctor.cost.load(yaml, [*overrides, *options])
        return [(one.status, one.found) for one in doctor.opened(hparams)]

    *said, last = files()
    assert last[0] == "OK" and "files of 80 utterances are there" in last[1]
    assert {status for status, _ in said} == {"WARN"}
    assert any("valid.csv: 20 of 20 utterances are trained on" in w for _, w in said)
    (leak,) = files("--allow_leaks=False")
    assert leak[0] == "FAIL" and "trained on, too" in leak[1]
    path = corpus / "LibriSpeech" / "test-other.csv"
    path.write_text(path.read_text().replace("s-13.wav", "s-99.wav"))
    (absent,) = files()
    assert absent[0] == "FAIL" and f"{path}: 1 of 4 rows cannot be used" in absent[1]
    # What is not prepared yet is not looked at.
    for csv in corpus.glob("*/*.csv"):
        csv.unlink()
    assert files() == []


# Training -----------------------------------------------------------------------


@pytest.mark.fault(
    "A11",
    "a container with 64 MB of /dev/shm",
    "FAIL: `64 MB free, loading processes need 205; read with --num_workers=0, or "
    "start the container with --shm-size=1g`",
)
def test_loading_processes_need_shared_memory(tmp_path, monkeypatch):
    free = collections.namedtuple("usage", "free")(64e6)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: free)
    stream = object()
    hparams = {"num_workers": 4, "max_batch_samples": 3_200_000}
    hparams["train_streams"] = {"speech": stream, "speaker": object()}
    needed = doctor.loading(hparams)
    (finding,) = doctor.shared_memory(needed, str(tmp_path))
    assert str(finding).endswith(
        "64 MB free, loading processes need 205; read with --num_workers=0, or start "
        "the container with --shm-size=1g"
    )
    assert finding.status == "FAIL"
    hparams["train_streams"]["speaker"] = stream
    assert doctor.loading(hparams) == needed / 2
    (finding,) = doctor.shared_memory(doctor.loading(hparams | {"num_workers": 0}))
    assert finding.status == "OK"
    assert not list(doctor.shared_memory(folder=tmp_path / "none"))


def test_a_system_ready_to_train(tiny_corpus, tmp_path):
    yaml, *overrides = tiny.arguments(tiny_corpus, tmp_path)
    found = list(doctor.findings(yaml, overrides))
    assert only(found, "n_speakers").status == "OK"
    assert only(found, "VoxCeleb1").status == "OK"
    # The tiny corpus is not the published one.
    assert only(found, "LibriSpeech/test-other").status == "WARN"
    assert "64,000 samples of each task" in only(found, "memory").found
    assert "6 steps of" in only(found, "time").found
    assert only(found, "disk").found.startswith(str(tmp_path))


@pytest.mark.fault(
    "D2",
    "the doctor and a source whose weights are a git-lfs pointer",
    "FAIL: `model.safetensors is a git-lfs pointer, not the file itself; run git lfs "
    "pull in FOLDER`",
)
def test_the_source_is_looked_at(tmp_path):
    assert list(doctor.source(None)) == []
    model = Wav2Vec2Model(Wav2Vec2Config(**tiny.ENCODER))
    model.save_pretrained(tmp_path)
    (finding,) = doctor.source(str(tmp_path))
    assert finding.status == "OK" and f"whole, in {tmp_path}" in finding.found
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    (finding,) = doctor.source(str(tmp_path))
    assert finding.status == "FAIL" and "run git lfs pull" in finding.found


def test_settings_that_do_not_load(tmp_path):
    found = list(doctor.findings(str(tiny.MTL), ["--no_such_key=1"]))
    assert only(found, "settings").status == "FAIL"
    assert "no_such_key" in only(found, "settings").found


def test_a_step_that_does_not_fit(tiny_corpus, tmp_path, monkeypatch):
    yaml, *overrides = tiny.arguments(tiny_corpus, tmp_path)
    hparams = doctor.cost.load(yaml, overrides)
    monkeypatch.setattr(doctor, "products", lambda *_: 1e9)
    sizes = {1: 30e9, 2: 16e9, 4: 9e9}
    costs = {"flops": 1e9, "run_flops": 1e15, "checkpoint": 1, "results": 1}
    costs["needed"] = sizes
    gpu(monkeypatch, total=24e9)
    found = list(doctor.training(hparams, costs, tmp_path))
    assert only(found, "memory").status == "FAIL"
    wanted = "--max_batch_samples=32000 --grad_accumulation_factor=2"
    assert only(found, "memory").remedy == wanted
    assert only(found, "time").status == "WARN"
    gpu(monkeypatch, total=4e9)
    found = list(doctor.training(hparams, costs, tmp_path))
    assert "larger GPU" in only(found, "memory").remedy
    gpu(monkeypatch, total=40e9)
    assert only(doctor.training(hparams, costs, tmp_path), "memory").status == "OK"


def test_products_are_counted():
    assert doctor.products("cpu", "fp32", seconds=0.01) > 1e8
