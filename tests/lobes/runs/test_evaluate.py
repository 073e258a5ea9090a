"""Evaluation of a trained run: files, metrics that can be recomputed, errors."""

import json
import shutil

import pandas
import pytest
from speechbrain.utils.checkpoints import Checkpointer

from lobes.data.trials import read_scores
from lobes.data.vocabulary import edit_distances
from lobes.errors import UserError
from lobes.evaluation import summary
from lobes.evaluation.ending import DIVERGED
from lobes.evaluation.verification import verification_metrics
from lobes.runs import evaluate as evaluation
from lobes.runs import ledger
from lobes.runs.own_sets import own_folder
from lobes.system import distributed
from lobes.training import stopping
from recipes.LibriSpeech_VoxCeleb.MTL import train as mtl
from tests.helpers import tiny
from tools.make_shards import make_shards


@pytest.fixture(scope="module")
def trained(tiny_corpus, tmp_path_factory, curves):
    """The folder of a finished tiny run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    system = tiny.brain(tiny_corpus, folder, steps=4, valid_interval=2)
    with curves():
        tiny.fit(system)
    evaluation.evaluate(system, vars(system.hparams))
    return folder


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_files_of_a_run(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "hyperparams.yaml", "env.log", "log.txt", "train_log.txt", "progress.jsonl",
        "curves.png", "results.json", "wer_test-other.txt", "det.png",
        "transcripts_test-other.csv", "scores_veri_test2.txt",
        "histogram_veri_test2.png", "encoder_config.json",
    }  # fmt: skip


def test_results_can_be_recomputed_from_the_score_file(trained):
    trials, scores = read_scores(trained / "scores_veri_test2.txt")
    stored = results(trained)["sets"]["speaker"]["veri_test2"]
    assert verification_metrics(scores, trials.labels) == stored
    assert results(trained)["eer"] == stored["eer"]


def test_wer_matches_the_alignments_and_transcripts(trained):
    stored = results(trained)["sets"]["speech"]["test-other"]
    text = (trained / "wer_test-other.txt").read_text()
    assert f"%WER {stored['wer']:.2f}" in text
    table = pandas.read_csv(
        trained / "transcripts_test-other.csv", keep_default_na=False
    )
    assert len(table) == stored["utterances"] == 4
    assert stored["words"] == sum(len(r.split()) for r in table["reference"])


def test_a_results_folder_is_evaluated_without_retyping(trained, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    (moved / "results.json").unlink()
    evaluation.main([str(moved), "--device=cpu", "--noprogressbar"])
    again, first = results(moved), results(trained)
    assert again["sets"] == first["sets"]
    assert again["checkpoint"].startswith(str(moved))
    assert "WER" in capsys.readouterr().out


@pytest.mark.fault(
    "F33",
    "an evaluation one by one and in padded batches",
    "equal scores and transcripts",
)
def test_one_by_one_and_batched_evaluation_agree(trained, tmp_path):
    """Fault case F33, from waveform to score."""
    to = tmp_path / "single"
    evaluation.main(
        [str(trained), f"--to={to}", "--test_batch_samples=null", "--device=cpu"]
    )
    _, many = read_scores(trained / "scores_veri_test2.txt")
    _, one = read_scores(to / "scores_veri_test2.txt")
    assert 0 < abs(one - many).max() < 1e-6, "not the same numbers, or the same batches"
    names = "transcripts_test-other.csv", "wer_test-other.txt"
    assert all((trained / n).read_bytes() == (to / n).read_bytes() for n in names)


def test_own_csv_and_trials(trained, tiny_corpus, tmp_path, caplog):
    distributed.warn_once.cache_clear()
    before = (trained / "results.json").read_text()
    trials = tmp_path / "mine.txt"
    lines = (tiny_corpus / "VoxCeleb/veri_test2.txt").read_text().splitlines()[:40]
    trials.write_text("\n".join(lines))
    evaluation.main(
        [
            str(trained), "--device=cpu",
            f"--speech_csv={tiny_corpus / 'LibriSpeech/train.csv'}",
            f"--speaker_csv={tiny_corpus / 'VoxCeleb/train.csv'}",
            "--trials", str(trials),
        ]
    )  # fmt: skip
    sets = results(trained / "own" / "train")["sets"]
    assert (trained / "results.json").read_text() == before
    assert sets["speech"]["train"]["utterances"] == 12
    assert sets["speaker"]["mine"]["trials"] == 40
    assert "12 of 12 utterances are trained on, too" in caplog.text


def test_own_csvs_in_shards_give_the_same_results(trained, tiny_corpus, tmp_path):
    names = "LibriSpeech/test-other", "VoxCeleb/test"
    files = [tiny_corpus / f"{name}.csv" for name in names]
    make_shards(files, tmp_path / "shards", num_workers=1)
    speech, speaker = (tmp_path / "shards" / path.name for path in files)
    evaluation.main(
        [
            str(trained), "--device=cpu", f"--to={tmp_path / 'to'}",
            f"--speech_csv={speech}", f"--speaker_csv={speaker}",
            "--trials", str(tiny_corpus / "VoxCeleb/veri_test2.txt"),
        ]
    )  # fmt: skip
    assert results(tmp_path / "to")["sets"] == results(trained)["sets"]


def test_last_and_named_checkpoints(trained, tmp_path):
    for which in ("last", *map(str, (trained / "save").glob("CKPT*"))):
        evaluation.main(
            [str(trained), f"--checkpoint={which}", f"--to={tmp_path}", "--device=cpu"]
        )
        found = results(tmp_path)
        assert which in ("last", found["checkpoint"])
        assert which != "last" or found["step"] == 4


@pytest.mark.fault(
    "F30", "evaluation with no checkpoint", "an error in one line, exit status 2"
)
def test_nothing_is_scored_without_a_checkpoint(trained, tmp_path, capsys):
    """Fault case F30."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, message in ((empty, "no hyperparams.yaml"), (None, "train first")):
        if folder is None:
            folder = tmp_path / "unsaved"
            shutil.copytree(trained, folder)
            shutil.rmtree(folder / "save")
        with pytest.raises(SystemExit) as stop:
            evaluation.main([str(folder), "--device=cpu"])
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and message in error
        assert not (folder / "scores_veri_test2.txt").exists() or folder != empty


def test_trials_need_their_csv(trained):
    with pytest.raises(SystemExit):
        evaluation.main([str(trained), "--trials", "x.txt"])


def test_an_unknown_checkpoint_is_named(trained):
    with pytest.raises(UserError, match="no nowhere checkpoint"):
        evaluation.load_checkpoint(Checkpointer(trained / "save"), "nowhere")


def test_a_task_that_the_run_lacks_is_named(tiny_corpus, tmp_path, capsys):
    run = tmp_path / "asr"
    tiny.brain(tiny_corpus, run, yaml=tiny.ASR)
    own = [f"--speaker_csv={tiny_corpus / 'VoxCeleb/test.csv'}"]
    own += ["--trials", str(tiny_corpus / "VoxCeleb/veri_test2.txt")]
    with pytest.raises(SystemExit):
        evaluation.main([str(run), "--device=cpu", *own])
    assert "this run has no speaker task" in capsys.readouterr().err


def test_test_sets_are_read_before_training(tiny_corpus, tmp_path):
    wrong = {"headline_sets": "{wer: test-clean}"}
    with pytest.raises(
        UserError, match="headline_sets: wer is to be that of test-clean"
    ):
        tiny.brain(tiny_corpus, tmp_path / "a", **wrong)
    wrong = {
        "voxceleb_trial_lists": "[missing.txt]",
        "headline_sets": "{wer: test-other}",
    }
    with pytest.raises(UserError, match="missing.txt"):
        tiny.brain(tiny_corpus, tmp_path / "b", **wrong).open_sets()


def test_a_list_given_by_its_path_is_read_as_prepared(tiny_corpus, tmp_path):
    """Preparation turns file names into IDs and writes the list beside the CSV."""
    lists = {"voxceleb_trial_lists": "[/elsewhere/veri_test2.txt]"}
    system = tiny.brain(tiny_corpus, tmp_path / "run", **lists)
    system.open_sets()
    trials = system.hparams.test_sets["speaker"]["voxceleb1"].trials["veri_test2"]
    assert trials.path == str(tiny_corpus / "VoxCeleb" / "veri_test2.txt")


# Found by trying -----------------------------------------------------------------


@pytest.mark.fault(
    "C6",
    "evaluate.py RUN --speech_csv=A/my.csv, then B/my.csv",
    "two folders, own/my and own/my-<8 digits>; A again overwrites only its own",
)
def test_own_csvs_of_one_name_have_folders_of_their_own(tmp_path):
    first = {"speech_csv": "/a/my.csv"}
    folder = own_folder(tmp_path, first)
    assert folder == tmp_path / "own" / "my"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"own": first}))
    other = own_folder(tmp_path, {"speech_csv": "/b/my.csv"})
    assert other.parent == folder.parent and other.name.startswith("my-")
    assert own_folder(tmp_path, first) == folder
    speaker = {"speaker_csv": "/a/my.csv", "trials": ["/a/x.txt"]}
    more = own_folder(tmp_path, speaker)
    assert more not in (folder, other)
    (folder / "results.json").write_text("{")
    assert own_folder(tmp_path, first) != folder


@pytest.mark.fault("B9", "an evaluation that fails", "no empty folder own/<name> stays")
def test_a_failed_evaluation_leaves_no_folder(trained, tiny_corpus, monkeypatch):
    def fail(*_):
        raise UserError("no")

    monkeypatch.setattr(evaluation.brains.SpeechSpeakerBrain, "test", fail)
    csv = tiny_corpus / "LibriSpeech/dev-other.csv"
    with pytest.raises(SystemExit):
        evaluation.main([str(trained), "--device=cpu", f"--speech_csv={csv}"])
    assert not (trained / "own" / "dev-other").exists()


@pytest.mark.fault(
    "B5", "an evaluation", "results.json holds CER, intervals and warnings"
)
def test_results_hold_what_belongs_beside_the_metrics(trained):
    found = results(trained)
    speech = found["sets"]["speech"]["test-other"]
    table = pandas.read_csv(
        trained / "transcripts_test-other.csv", keep_default_na=False
    )
    distances = edit_distances(table["reference"], table["hypothesis"])
    letters = table["reference"].str.len().sum()
    assert found["cer"] == speech["cer"]
    assert speech["cer"] == pytest.approx(100 * distances.sum() / letters)
    assert speech["letters"] == letters and 0 <= speech["blank_frames"] <= 100
    for name, rates in (("test-other", ("wer", "cer")), ("veri_test2", ("eer",))):
        for rate in rates:
            interval = found["intervals"][name][rate]
            assert interval["low"] <= interval["high"]
    interval = found["intervals"]["veri_test2"]["eer"]
    assert (interval["over"], interval["count"]) == ("speakers", tiny.SPEAKERS)
    assert interval["low"] <= found["eer"] <= interval["high"]
    assert found["training"]["kind"] == "complete" and found["validation"]["cer"] > 0
    assert any(text.startswith("test-other: ") for text in found["warnings"])


@pytest.mark.fault(
    "C7",
    "the summary of a complete run cannot be printed (| head -1)",
    "the ledger says finished",
)
def test_the_ledger_has_its_line_before_anything_is_printed(
    tiny_corpus, tmp_path, monkeypatch
):
    def fail(*_):
        raise BrokenPipeError

    monkeypatch.setattr(summary, "print_summary", fail)
    monkeypatch.setattr(ledger, "CHANCE", {})
    arguments = tiny.arguments(tiny_corpus, tmp_path, steps=2, valid_interval=2)
    with pytest.raises(BaseException):  # noqa: B017, whatever an end of a pipe gives
        mtl.main([*arguments, "--device=cpu", "--noprogressbar"])
    (row,) = ledger.read(tmp_path / "ledger.jsonl")
    assert row["state"] == "finished" and row["cer"] > 0


@pytest.mark.fault(
    "B2",
    "a run whose loss rises above max_valid_loss",
    "tested and told, then exit status 2: error: 2 of 6 steps, stopped: diverged: ...",
)
def test_a_diverged_run_ends_with_2_after_it_was_told(
    tiny_corpus, tmp_path, monkeypatch, capsys
):
    def judge(self):
        self.kind = DIVERGED
        return "diverged: speech_loss is 12.00, above 10"

    monkeypatch.setattr(stopping.EarlyStopping, "_judge", judge)
    arguments = tiny.arguments(tiny_corpus, tmp_path, steps=6, valid_interval=2)
    with pytest.raises(SystemExit) as end:
        mtl.main([*arguments, "--device=cpu", "--noprogressbar"])
    assert end.value.code == 2
    printed = capsys.readouterr()
    told = "2 of 6 steps, stopped: diverged: speech_loss is 12.00, above 10"
    assert f"NOT ALL STEPS WERE TRAINED: {told}" in printed.out
    assert f"error: {told}; lower --lr" in printed.err
    (row,) = ledger.read(tmp_path / "ledger.jsonl")
    assert row["state"] == "diverged" and row["steps"] == 2
    assert results(tmp_path)["training"]["kind"] == "diverged"
    # To test it again is no failure.
    evaluation.main([str(tmp_path), "--device=cpu", "--noprogressbar"])
    assert told in capsys.readouterr().out


@pytest.mark.fault(
    "B2",
    "--optimizer_step_limit=2 of 4, then the same command without it",
    "exit status 0 and 2 of 4 steps; then 4 of 4",
)
def test_a_limited_run_goes_on(tiny_corpus, tmp_path, capsys):
    arguments = tiny.arguments(tiny_corpus, tmp_path, steps=4, valid_interval=4)
    arguments += ["--device=cpu", "--noprogressbar"]
    mtl.main([*arguments, "--optimizer_step_limit=2"])
    assert "NOT ALL STEPS WERE TRAINED: 2 of 4 steps" in capsys.readouterr().out
    assert results(tmp_path)["training"]["steps"] == 2
    evaluation.main([str(tmp_path), "--device=cpu", "--noprogressbar"])
    assert "NOT ALL STEPS WERE TRAINED: 2 of 4 steps" in capsys.readouterr().out
    mtl.main(arguments)
    assert "NOT ALL" not in capsys.readouterr().out
    rows = ledger.read(tmp_path / "ledger.jsonl")
    states = [row["state"] for row in rows if row["kind"] == "training"]
    assert states[0] == "pre-empted" and states[1] != "pre-empted"
