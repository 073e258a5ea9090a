"""The examples of docs/extend.md: taken from the page, written beside a YAML, run."""

import json
import re
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pytest
import soundfile
import torch

from lobes.model.encoder import Frames
from lobes.runs.command_line import parse_arguments
from lobes.runs.evaluate import main as evaluate
from lobes.system.checkout import ROOT
from lobes.training.brain import SpeechSpeakerBrain
from recipes.LibriSpeech_VoxCeleb.MTL import train as mtl
from tests.helpers import tiny

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")

#: Content of every code block by the file name in its first line.
BLOCKS = {
    name: text
    for name, text in re.findall(
        r"```(?:python|yaml)\n# (my_\w+\.(?:py|yaml))\n(.*?)```", PAGE, re.DOTALL
    )
}

EXPECTED = ("pooling", "ramp", "uncertainty", "gender", "gender_of", "hubert", "corpus")


@pytest.fixture(autouse=True)
def unchanged_process():
    """Undo what a user's file beside a YAML leaves in this process."""
    path = list(sys.path)
    yield
    forget(path)


def forget(path=None):
    """Forget the user's modules, and the folders that hold them."""
    sys.path[:] = path or [p for p in sys.path if not p.endswith("mine")]
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.fixture
def user(tmp_path):
    """Write the files of an example as its reader would; returns its YAML."""

    def write(*names):
        folder = tmp_path / "mine"
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / f"my_{name}.py").write_text(BLOCKS[f"my_{name}.py"])
            text = BLOCKS[f"my_{name}.yaml"]
            text = text.replace("base: mtl.yaml\n", f"base: {tiny.MTL}\n")
            (folder / f"my_{name}.yaml").write_text(text)
        return folder / f"my_{names[-1]}.yaml"

    return write


def arguments(corpus, output, yaml, **changes):
    """The command line of a tiny run of the user's variant."""
    argv = tiny.arguments(corpus, output, **changes)
    return [str(yaml), *argv[1:], "--device=cpu", "--noprogressbar"]


def train(corpus, output, yaml, **changes):
    """Run train.py's main; returns results.json."""
    mtl.main(arguments(corpus, output, yaml, **changes))
    return json.loads((output / "results.json").read_text())


def checkpoint(output, name):
    """What the newest checkpoint holds of one module."""
    folder = max((output / "save").iterdir())
    return torch.load(folder / f"{name}.ckpt", weights_only=True)


def lines(text):
    return sum(bool(line.strip()) for line in text.splitlines())


def test_the_page_has_every_example():
    assert set(BLOCKS) == {f"my_{n}.{e}" for n in EXPECTED for e in ("py", "yaml")}
    assert len(re.findall(r"```(python|yaml)", PAGE)) == len(BLOCKS)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_an_example_has_at_most_20_lines(name):
    assert 0 < lines(BLOCKS[name]) <= 20
    assert max(map(len, BLOCKS[name].splitlines())) <= 88


def test_pooling(user, tiny_corpus, tmp_path):
    results = train(tiny_corpus, tmp_path / "run", user("pooling"))
    assert 0 <= results["eer"] <= 100
    classes = checkpoint(tmp_path / "run", "speaker")["weight"]
    assert classes.shape == (tiny.SPEAKERS, tiny.ENCODER["hidden_size"])


def test_the_pooling_s_numbers_and_its_mask(user):
    path = user("pooling").with_suffix(".py")
    pooling = runpy.run_path(str(path))["SoftMaxPooling"]()
    hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    mask = torch.tensor([[True, True, False]])
    embedding = pooling(Frames(hidden, hidden, torch.tensor([2]), mask))
    assert torch.allclose(embedding, torch.tensor([[3.126928]]))


def test_a_run_of_a_user_s_class_is_evaluated_from_its_results_folder(
    user, tiny_corpus, tmp_path
):
    """After the folder was moved and the user's own file has gone."""
    yaml = user("pooling")
    expected = train(tiny_corpus, tmp_path / "run", yaml)
    shutil.rmtree(yaml.parent)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    forget()
    options = ["--device=cpu", "--noprogressbar", f"--to={tmp_path / 'again'}"]
    evaluate([str(moved), *options])
    assert sys.modules["my_pooling"].__file__ == str(moved / "my_pooling.py")
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["sets"] == expected["sets"]


def test_a_fixed_weighting(user, tiny_corpus, tmp_path):
    train(tiny_corpus, tmp_path / "run", user("ramp"), steps=4, freeze_steps=4)
    text = (tmp_path / "run" / "progress.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    weights = [row["speaker_weight"] for row in rows if "speaker_weight" in row]
    assert weights == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_a_learnt_weighting(user, tiny_corpus, tmp_path):
    """Its parameters move, are saved, and come back."""
    output = tmp_path / "run"
    train(tiny_corpus, output, user("uncertainty"))
    saved = checkpoint(output, "weighting")
    assert set(saved) == {"log_variances.speech", "log_variances.speaker"}
    assert all(abs(float(value)) > 1e-4 for value in saved.values())
    hparams, run_opts, _ = parse_arguments(
        arguments(tiny_corpus, output, user("uncertainty"))
    )
    brain = SpeechSpeakerBrain(hparams, run_opts, hparams["checkpointer"])
    assert not any(brain.modules.weighting.log_variances.values())
    brain.prepare_training()
    brain.on_fit_start()
    recovered = brain.modules.weighting.state_dict()
    assert brain.optimizer_step == 6
    assert all(torch.equal(recovered[name], saved[name]) for name in saved)
    rows = (output / "progress.jsonl").read_text().splitlines()
    weights = [json.loads(row).get("speech_weight") for row in rows]
    assert len({weight for weight in weights if weight}) == 6


def test_the_learnt_weighting_s_total():
    weighting = {}
    exec(BLOCKS["my_uncertainty.py"], weighting)
    weighting = weighting["Uncertainty"](["speech", "speaker"])
    with torch.no_grad():
        weighting.log_variances["speech"].fill_(1.0)
    losses = {"speech": torch.tensor(2.0), "speaker": torch.tensor(3.0)}
    total, weights = weighting(losses, 0)
    assert float(total.detach()) == pytest.approx(2 * np.exp(-1) + 1 + 3)
    assert float(weights["speech"].detach()) == pytest.approx(np.exp(-1))


def with_gender(corpus, folder):
    """The tiny corpus with a column gender: speakers 0, 2 and 4 are f."""
    shutil.copytree(corpus, folder)
    for path in (folder / "VoxCeleb").glob("*.csv"):
        table = pandas.read_csv(path)
        table["gender"] = ["fm"[int(who[2:]) % 2] for who in table["spk_id"]]
        table.to_csv(path, index=False)
    return folder


#: Enough for a tiny encoder to tell high voices from low ones.
LEARN = {"steps": 150, "valid_interval": 150, "freeze_steps": 0, "lr": 3e-3}


def check_gender(results, output):
    accuracy = results["sets"]["gender"]["voxceleb1"]["gender_accuracy"]
    assert 60 < accuracy <= 100, "two fifths of the utterances are m"
    assert {"wer", "eer"} <= set(results)
    rows = [json.loads(r) for r in (output / "progress.jsonl").read_text().splitlines()]
    training = [row for row in rows if "gender_loss" in row]
    assert training[-1]["gender_loss"] < training[0]["gender_loss"]
    assert "gender_accuracy" in [row for row in rows if row["stage"] == "valid"][-1]
    assert checkpoint(output, "gender")["linear.weight"].shape == (2, 32)


def test_a_head_with_labels_of_a_column(user, tiny_corpus, tmp_path):
    corpus = with_gender(tiny_corpus, tmp_path / "corpus")
    output = tmp_path / "run"
    results = train(corpus, output, user("gender"), **LEARN)
    check_gender(results, output)


def test_the_head_shares_the_speakers_batches(user, tiny_corpus, tmp_path):
    corpus = with_gender(tiny_corpus, tmp_path / "corpus")
    yaml = user("gender")
    hparams, _, _ = parse_arguments(arguments(corpus, tmp_path / "run", yaml))
    streams, sets = hparams["train_streams"], hparams["valid_sets"]
    assert streams["gender"] is streams["speaker"]
    assert set(streams["speaker"].labels) == {"speaker", "gender"}
    assert sets["gender"] is sets["speaker"]
    gender = streams["gender"].labels["gender"]
    assert sets["gender"].labels["gender"] is gender
    assert hparams["test_sets"]["gender"]["voxceleb1"].labels["gender"] is gender


def test_a_head_with_labels_of_the_published_lists(user, tiny_corpus, tmp_path):
    """In both formats: tabs (VoxCeleb1), commas and spaces (VoxCeleb2)."""
    rows = [(f"id{i}", "fm"[i % 2]) for i in range(tiny.SPEAKERS)]
    first = "".join(f"{i}\tA_Name\t{g}\tNew Zealand\tdev\n" for i, g in rows[:2])
    second = "".join(f"{i} ,n000012 ,{g} ,dev\n" for i, g in rows[2:])
    head = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
    (tmp_path / "vox1_meta.csv").write_text(head + first)
    head = "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \n"
    (tmp_path / "vox2_meta.csv").write_text(head + second)
    output = tmp_path / "run"
    yaml = user("gender", "gender_of")
    folders = {f"voxceleb{n}_folder": tmp_path for n in (1, 2)}
    results = train(tiny_corpus, output, yaml, **LEARN, **folders)
    check_gender(results, output)


def test_a_speaker_without_gender_is_named(user, tiny_corpus, tmp_path, capsys):
    for number in (1, 2):
        (tmp_path / f"vox{number}_meta.csv").write_text("head of list\nid0 x f\n")
    folders = {f"voxceleb{n}_folder": tmp_path for n in (1, 2)}
    yaml = user("gender", "gender_of")
    with pytest.raises(SystemExit):
        train(tiny_corpus, tmp_path / "run", yaml, **folders)
    assert "no gender of id1" in capsys.readouterr().err


def test_an_encoder(user, tiny_corpus, tmp_path):
    output = tmp_path / "run"
    settings = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "layerdrop": 0.0}
    encoder = str({**tiny.ENCODER, **settings}).replace("'", "")
    yaml = user("hubert")
    before = parse_arguments(
        arguments(tiny_corpus, output, yaml, encoder_config=encoder)
    )[0]["encoder"].state_dict()
    train(tiny_corpus, output, yaml, encoder_config=encoder)
    assert '"model_type": "hubert"' in (output / "encoder_config.json").read_text()
    after = checkpoint(output, "encoder")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and not any("feature_extractor" in name for name in changed)


def test_the_encoder_s_frames_do_not_depend_on_padding(user):
    path = user("hubert").with_suffix(".py")
    hubert = runpy.run_path(str(path))["Hubert"](config=tiny.ENCODER).eval()
    wavs = torch.randn(2, 16000)
    wavs[1, 9000:] = 0.0
    lengths = torch.tensor([16000, 9000])
    with torch.no_grad():
        together = hubert(wavs, lengths)
        alone = hubert(wavs[1:, :9000], lengths[1:])
        whole = hubert.model(wavs[:1]).last_hidden_state
    frames = int(alone.lengths[0])
    assert torch.allclose(together.speech[1, :frames], alone.speech[0], atol=1e-5)
    assert torch.allclose(together.speech[:1], whole, atol=1e-5)


def test_a_corpus(user, tmp_path):
    """A folder of recordings becomes CSVs; their own columns train both tasks."""
    random = np.random.default_rng(3)
    recordings, csvs = tmp_path / "recordings", tmp_path / "csvs"
    csvs.mkdir()
    for who in ("ann", "bob", "cy"):
        (recordings / who).mkdir(parents=True)
        for number in range(10):
            wave = random.normal(0, 0.1, 9000 + 100 * number)
            soundfile.write(recordings / who / f"{number}.wav", wave, 16000)
            (recordings / who / f"{number}.txt").write_text("it's a cat\n")
    yaml = user("corpus")
    script = yaml.with_suffix(".py")
    subprocess.run([sys.executable, script, recordings, csvs], check=True)
    text = yaml.read_text().replace("/my/csvs", str(csvs))
    yaml.write_text(text)
    small = arguments(None, tmp_path / "run", yaml)
    keep = ("encoder.config", "encoder.source", "steps", "freeze_steps")
    keep += ("valid_interval", "max_batch_samples", "crop_seconds", "num_workers")
    keep += ("threads", "device", "output_folder", "stopping.limits.speech_loss")
    keep += ("noprogressbar", "skip_prep")
    small = [a for a in small[1:] if a[2:].split("=")[0] in keep]
    mtl.main([str(yaml), *small, "--speaker.n_speakers=3"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["sets"]["speech"]["test"]["utterances"] == 6
    assert results["sets"]["speaker"]["test_trials"]["trials"] == 15
    assert results["sets"]["speaker"]["test_trials"]["positives"] == 3
    table = pandas.read_csv(csvs / "train.csv")
    assert len(table) == 18 and {"who", "text"} <= set(table)
