"""The start of an experiment: its folder, and what cannot be is refused before it."""

from pathlib import Path

import pytest

from lobes.errors import UserError
from lobes.runs.experiment import start_experiment
from recipes.LibriSpeech_VoxCeleb.MTL import train
from tests.helpers.small_yamls import FOLDERS, MTL, SMALL


def test_start_experiment_writes_what_an_evaluation_needs(mtl, monkeypatch):
    monkeypatch.setattr("speechbrain.utils.logger.setup_logging", lambda *a, **k: None)
    start_experiment(*mtl)
    output = Path(mtl[0]["output_folder"])
    assert (output / "hyperparams.yaml").read_text(encoding="utf-8") == mtl[2]
    assert '"hidden_size": 16' in (output / "encoder_config.json").read_text()
    assert "torch==" in (output / "env.log").read_text()


IMPOSSIBLE = {
    "all channels the speaker's": (
        "mtl", "encoder.speaker_dims=16", "give 1 to 15, or null"
    ),
    "none": ("mtl", "encoder.speaker_dims=0", "a whole number from 1"),
    "a word": ("mtl", "encoder.speaker_dims=half", "a whole number from 1"),
    "half a channel": ("mtl", "encoder.speaker_dims=7.5", "a whole number from 1"),
    "a switch": ("mtl", "encoder.speaker_dims=True", "a whole number from 1"),
    "more layers than there are": (
        "mtl", "encoder.shared_layers=2", "give 0 to 1, or null"
    ),
    "fewer than none": ("mtl", "encoder.shared_layers=-1", "a whole number from 0"),
    "layers in words": ("mtl", "encoder.shared_layers=all", "a whole number from 0"),
    "half a layer": ("mtl", "encoder.shared_layers=0.5", "a whole number from 0"),
    "a token of no kind": (
        "mtl", "encoder.class_token=ones", "constant, learnt or null"
    ),
    "no token": (
        "pool_first_cls", "encoder.class_token=null", "class_token is null; set it to"
    ),
    "a prior of no kind": ("mtl", "speech.letter_prior=flat", "log, relative or null"),
    "no speech task": ("alone", "lr=1", "asks the speech head, which is not among"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_is_refused_before_any_data_are_read(case, tmp_path, capsys):
    """Naming the key and what it may be; none of the folders exists."""
    name, option, expected = IMPOSSIBLE[case]
    yaml = MTL.with_name(f"{name}.yaml")
    if name == "alone":
        yaml = tmp_path / "alone.yaml"
        base = MTL.with_name("pool_ctc_blank.yaml")
        yaml.write_text(
            f"base: {base}\ntasks: {{speaker: !ref <speaker>}}\n"
            "train_streams.speaker.csv: !ref <librispeech_csv_folder>/train.csv\n"
        )
    argv = [str(yaml), *(f"--{name}_folder=x" for name in FOLDERS), "--device=cpu"]
    argv += ["--encoder.source=null", f"--encoder.config={SMALL}"]
    argv += [f"--output_folder={tmp_path / 'out'}", f"--{option}"]
    with pytest.raises(SystemExit) as caught:
        train.main(argv)
    message = capsys.readouterr().err.strip()
    assert caught.value.code == 2
    assert message.startswith("error: ") and "\n" not in message
    assert expected in message
    key = option.partition("=")[0].split(".")[-1]
    assert {"alone": "pooling"}.get(name, key) in message
    assert not (tmp_path / "out" / "hyperparams.yaml").exists()


def test_start_experiment_needs_no_git(mtl, monkeypatch, tmp_path):
    monkeypatch.setattr("speechbrain.utils.logger.setup_logging", lambda *a, **k: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    start_experiment(*mtl)
    env = Path(mtl[0]["output_folder"]) / "env.log"
    assert "Commit unknown" in env.read_text()


def test_an_output_folder_that_cannot_be_written(mtl, tmp_path):
    (tmp_path / "file").write_text("")
    hparams = {**mtl[0], "output_folder": str(tmp_path / "file" / "run")}
    with pytest.raises(UserError, match="--output_folder"):
        start_experiment(hparams, *mtl[1:])
