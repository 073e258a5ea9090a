"""Weights that are no weights: one line each, before anything is loaded."""

import io
import os
import pickle
import socket
import subprocess
import sys

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from lobes.errors import UserError
from lobes.model import source_check
from lobes.model.encoder import Wav2Vec2Encoder
from lobes.model.source_check import check_source
from tests.helpers import tiny

SAFE, BIN = source_check.WEIGHTS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder as save_pretrained writes it; its files by name."""
    folder = tmp_path_factory.mktemp("source")
    Wav2Vec2Model(Wav2Vec2Config(**tiny.ENCODER)).save_pretrained(folder)
    state = io.BytesIO()
    torch.save(Wav2Vec2Model.from_pretrained(folder).state_dict(), state)
    files = {name: (folder / name).read_bytes() for name in (SAFE, "config.json")}
    return {**files, BIN: state.getvalue()}


class Code:
    """What a pickle may do."""

    def __reduce__(self):
        return os._exit, (9,)


def without(name):
    return lambda files: files.pop(name)


def with_file(name, change):
    return lambda files: files.update({name: change(files[name])})


def pickled(files):
    del files[SAFE]
    state = io.BytesIO()
    torch.save({"a": Code()}, state)
    files[BIN] = state.getvalue()


POINTER = b"version https://git-lfs.example/spec/v1\noid sha256:ab\nsize 380267417\n"
CASES = {
    "a git-lfs pointer": (with_file(SAFE, lambda _: POINTER), "run git lfs pull in "),
    "half a download": (with_file(SAFE, lambda b: b[: len(b) // 2]), "it is cut"),
    "ten bytes less": (with_file(SAFE, lambda b: b[:-10]), "it is cut or was changed"),
    "an empty file": (with_file(SAFE, lambda _: b""), "is empty; download it again"),
    "five bytes": (with_file(SAFE, lambda b: b[:5]), "is cut, or no safetensors"),
    "a page": (with_file(SAFE, lambda _: b"<!DOCTYPE html>" * 9), "no safetensors"),
    "a pickle": (with_file(SAFE, lambda _: pickle.dumps(Code())), "holds a pickle"),
    "a zip": (with_file(SAFE, lambda b: b"PK\x03\x04" + b), "holds a pickle"),
    "no weights": (without(SAFE), "has no model.safetensors and no pytorch_model.bin"),
    "no config.json": (without("config.json"), "has no config.json"),
    "an empty config.json": (with_file("config.json", lambda _: b""), "it is empty"),
    "a number as config.json": (with_file("config.json", lambda _: b"5"), "5 is not"),
    "a text where a number stands": (
        with_file("config.json", lambda b: b.replace(b'_size": 32', b'_size": []')),
        "describes no model",
    ),
    "other sizes": (
        with_file("config.json", lambda b: b.replace(b'_size": 32', b'_size": 48')),
        "has the size 32, but with config.json it is 48",
    ),
}


def written(folder, files):
    """The folder with these files."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.fault("D2", name, f"refused: {told}"))
        for name, (_, told) in CASES.items()
    ],
)
def test_what_is_no_model(name, whole, tmp_path):
    change, told = CASES[name]
    files = {n: content for n, content in whole.items() if n != BIN}
    change(files)
    with pytest.raises(UserError) as caught:
        Wav2Vec2Encoder(source=str(written(tmp_path / "model", files)))
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path / "model") in str(caught.value)


@pytest.mark.fault("D2", "weights in torch's format that hold code", "not loaded")
def test_code_is_not_run_and_not_recommended(whole, tmp_path):
    files = dict(whole)
    pickled(files)
    with pytest.raises(UserError, match="maybe code, and were not loaded") as caught:
        Wav2Vec2Encoder(source=str(written(tmp_path / "model", files)))
    assert "weights_only" not in str(caught.value)


def test_whole_ones_are_loaded(whole, tmp_path):
    files = dict(whole)
    both = Wav2Vec2Encoder(source=str(written(tmp_path / "both", files)))
    del files[SAFE]
    torchs = Wav2Vec2Encoder(source=str(written(tmp_path / "torch", files)))
    states = [one.state_dict() for one in (both, torchs)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    files[BIN] = files[BIN][: len(files[BIN]) // 2]
    with pytest.raises(UserError, match="is cut, or no file of torch's"):
        check_source(written(tmp_path / "cut", files))


def test_the_configuration_alone(whole, tmp_path):
    folder = written(tmp_path / "model", {"config.json": whole["config.json"]})
    assert check_source(folder, weights=False) == str(folder)
    with pytest.raises(UserError, match="the folder ./absent does not exist"):
        check_source("./absent")


@pytest.fixture
def hub_cache(whole, tmp_path):
    """A cache of the hub that has a model, as its library lays it out."""
    model = tmp_path / "hub" / "models--owner--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("a" * 40)
    (model / "snapshots").mkdir()
    written(model / "snapshots" / ("a" * 40), whole)
    return tmp_path / "hub"


def in_new_process(name, cache, **environment):
    """What ``check_source`` does where the hub is nowhere; and seconds of it."""
    program = (
        "import sys, time\nfrom lobes.model.source_check import check_source\n"
        "from lobes.errors import UserError\nimport huggingface_hub\n"
        "began = time.monotonic()\ntry:\n    print(check_source(sys.argv[1]))\n"
        "except UserError as error:\n    print('error:', error)\n"
        "print(time.monotonic() - began)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), **environment}
    done = subprocess.run(
        [sys.executable, "-c", program, name],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, seconds = done.stdout.splitlines()
    return said, float(seconds)


@pytest.mark.fault(
    "B8",
    "a hub model while the hub answers nothing",
    "asked once, shortly: not in the local cache, and the hub cannot be reached",
)
def test_the_hub_is_asked_once_and_the_cache_before_it(hub_cache):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silence = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HUB_OFFLINE": "",
        }
        said, _ = in_new_process("owner/model", hub_cache, **silence)
        assert said.endswith(f"snapshots/{'a' * 40}")
        said, seconds = in_new_process("owner/other", hub_cache, **silence)
    assert said.startswith("error: source: owner/other is not in the local cache, and")
    assert "connect to it once, or name a folder with --encoder.source=FOLDER" in said
    # One try, however slow this machine is: the library alone takes over a minute.
    assert seconds < 4 * source_check.HUB_TIMEOUT
    said, _ = in_new_process("owner/other", hub_cache, HF_HUB_OFFLINE="1")
    assert "(HF_HUB_OFFLINE is set)" in said
