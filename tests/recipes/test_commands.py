"""The commands as a user runs them: other folders, wrong input, real speech."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from recipes.LibriSpeech_VoxCeleb.MTL import train as mtl
from tests.helpers import tiny


def run(*command, cwd, timeout=280, environment=None):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        check=False,
    )


def error_line(capsys_or_result):
    """The one line that a user error ends in."""
    text = getattr(capsys_or_result, "stderr", None)
    text = capsys_or_result.readouterr().err if text is None else text
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_train_and_evaluate_from_the_recipe_folder_and_from_the_root(
    tiny_corpus, tmp_path, repository
):
    recipe = repository / "recipes" / "LibriSpeech_VoxCeleb" / "MTL"
    output = tmp_path / "run"
    arguments = tiny.arguments(
        tiny_corpus, output, steps=2, valid_interval=2, num_workers=1
    )
    arguments[0] = "hparams/mtl.yaml"
    trained = run("train.py", *arguments, "--device=cpu", cwd=recipe)
    assert trained.returncode == 0, trained.stderr
    assert "WER" in trained.stdout and "EER" in trained.stdout
    assert "steps_per_second" in (output / "train_log.txt").read_text()
    script = recipe.relative_to(repository) / "evaluate.py"
    again = run(
        script, output, "--device=cpu", f"--to={tmp_path / 'again'}", cwd=repository
    )
    assert again.returncode == 0, again.stderr
    first, second = (
        json.loads((folder / "results.json").read_text())["sets"]
        for folder in (output, tmp_path / "again")
    )
    assert first == second


def test_another_checkout_on_the_path_is_refused(tmp_path, repository):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "__init__.py").touch()
    result = run(
        "-c",
        "from lobes.errors import user_errors_exit\n"
        "from lobes.runs.command_line import parse_arguments\n"
        "user_errors_exit(parse_arguments)(['x.yaml'])",
        cwd=tmp_path,
        environment={"PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 2
    assert str(tmp_path) in error_line(result) and "PYTHONPATH" in error_line(result)


WRONG = {
    "unknown key": (["--lamda=0.5"], "--lamda is neither a key"),
    "wrong value": (["--lr=fast"], "--lr must be a number"),
    "word for a boolean": (
        ["--tensorboard=yes"],
        "--tensorboard must be True or False",
    ),
    "abbreviated option": (["--dev=cpu"], "--dev is neither a key"),
    "refused option": (["--jit"], "--jit is not supported"),
    "no corpus": (["--skip_prep=False"], "data_folder"),
    "no hub": (
        ["--encoder.source=no/such-model", "--encoder.config={}"],
        "source: no/such-model is not in the local cache, and the hub cannot be",
    ),
    "both models": (["--encoder.source=x"], "encoder.config"),
    "no csv": (["--librispeech_csv_folder=/nowhere"], "/nowhere/test-other.csv"),
    "speakers": (["--speaker.n_speakers=6"], "--speaker.n_speakers=5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_in_one_line(case, tiny_corpus, tmp_path, capsys):
    extra, message = WRONG[case]
    arguments = tiny.arguments(tiny_corpus, tmp_path / "run")
    replaced = {option.split("=")[0] for option in extra}
    arguments = [a for a in arguments if a.split("=")[0] not in replaced]
    with pytest.raises(SystemExit) as stop:
        mtl.main([*arguments, *extra, "--device=cpu"])
    assert stop.value.code == 2
    assert message in error_line(capsys)
    assert not list(tmp_path.glob("run/save/*")), "training had started"


@pytest.mark.fault(
    "B8",
    "a corpus or a split that is not there, with weights of the hub",
    "told before the hub is asked",
)
def test_corpora_are_looked_for_before_the_hub(tmp_path, capsys):
    speech = tmp_path / "LibriSpeech"
    (speech / "LibriSpeech" / "dev-other").mkdir(parents=True)
    arguments = [
        str(tiny.MTL),
        f"--librispeech_folder={speech}",
        f"--voxceleb2_folder={tmp_path}",
        "--encoder.source=no/such-model",
        f"--output_folder={tmp_path / 'run'}",
    ]
    absent = f"--voxceleb1_folder={tmp_path / 'absent'}"
    for more, told in (
        ([absent], f"librispeech_train_splits: {speech} has no folder train-clean-100"),
        (
            [absent, "--librispeech.tr_splits=[dev-other]"],
            f"librispeech_test_splits: {speech} has no folder test-other",
        ),
        (
            [
                absent,
                "--librispeech.tr_splits=[dev-other]",
                "--librispeech_test_splits=[]",
            ],
            f"voxceleb1_folder: the folder {tmp_path / 'absent'} does not exist",
        ),
        ([absent, "--skip_prep=True"], "source: no/such-model is not in the local"),
    ):
        with pytest.raises(SystemExit):
            mtl.main([*arguments, *more])
        assert told in error_line(capsys)


def test_missing_folders_are_all_named(capsys):
    with pytest.raises(SystemExit):
        mtl.main([str(tiny.MTL)])
    line = error_line(capsys)
    for key in ("librispeech_folder", "voxceleb2_folder", "voxceleb1_folder"):
        assert f"--{key}=..." in line


def test_a_read_only_output_folder_is_named(tiny_corpus, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(SystemExit):
        mtl.main(tiny.arguments(tiny_corpus, blocked / "run"))
    assert str(blocked) in error_line(capsys)


@pytest.fixture(scope="module")
def real_speech(mini_corpora, tmp_path_factory):
    """A few speakers of each of the mini corpora, in their own layouts."""
    out = tmp_path_factory.mktemp("real_speech")
    for source, count in (
        ("LibriSpeech/train-clean-100", 4),
        ("LibriSpeech/dev-other", 2),
        ("LibriSpeech/test-other", 2),
        ("VoxCeleb2/dev/aac", 5),
    ):
        for speaker in sorted((mini_corpora / source).iterdir())[:count]:
            shutil.copytree(speaker, out / source / speaker.name)
    for file in ("LibriSpeech/SPEAKERS.TXT", "VoxCeleb2/vox2_meta.csv"):
        shutil.copy(mini_corpora / file, out / file)
    shutil.copytree(mini_corpora / "VoxCeleb1", out / "VoxCeleb1")
    trials = (out / "VoxCeleb1" / "veri_test2.txt").read_text().splitlines()
    (out / "VoxCeleb1" / "veri_test2.txt").write_text("\n".join(trials[:60]) + "\n")
    return out


def test_the_whole_chain_on_real_speech(real_speech, tmp_path, capsys):
    """flac with transcripts, m4a and wav: prepared, trained, evaluated, resumed."""
    arguments = tiny.arguments(
        tmp_path / "prepared",
        tmp_path / "run",
        skip_prep=False,
        librispeech_folder=real_speech / "LibriSpeech",
        librispeech_train_splits="[train-clean-100]",
        voxceleb2_folder=real_speech / "VoxCeleb2",
        voxceleb1_folder=real_speech / "VoxCeleb1",
        valid_fraction=0.3,
        valid_trials=30,
        max_batch_samples=300_000,
        test_batch_samples=400_000,
        n_speakers=5,
        steps=4,
        valid_interval=2,
    )
    mtl.main([*arguments, "--device=cpu", "--noprogressbar"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < results["wer"] <= 200 and 0 <= results["eer"] <= 100
    assert results["sets"]["speaker"]["veri_test2"]["trials"] == 60
    capsys.readouterr()
    mtl.main([*arguments, "--device=cpu", "--noprogressbar"])
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert again["sets"] == results["sets"], "a finished run changed when run again"
