"""The page of results and the summary: complete, safe, alone, and never in the way."""

import base64
import html.parser
import json
import os
import re
import shlex
import sys

import pytest
from markupsafe import escape

from lobes.evaluation import examples, report, summary
from lobes.runs import evaluate as evaluation
from lobes.runs.command_line import shell_command
from lobes.system.checkout import ROOT
from tests.helpers import tiny
from tests.helpers.shown import change_results, write_transcripts


def page(folder, **arguments):
    return report.write_report(folder, **arguments).read_text(encoding="utf-8")


class Elements(html.parser.HTMLParser):
    """All elements of a page; fails where one is not closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_evaluation_writes_a_page_with_everything(trained):
    text = (trained / "report.html").read_text(encoding="utf-8")
    results = json.loads((trained / "results.json").read_text())
    assert "<h1>tiny/7</h1>" in text
    for title in ("Results", "Transcripts", "Speaker verification", "Training",
                  "How to reproduce it", "Settings and environment"):  # fmt: skip
        assert f"<h2>{title}</h2>" in text
    speech = results["sets"]["speech"]["test-other"]
    speaker = results["sets"]["speaker"]["veri_test2"]
    assert f"{results['wer']:.2f} %" in text and f"{results['eer']:.2f} %" in text
    assert f"{speech['utterances']} utterances, {speech['words']} words" in text
    assert f"{speaker['trials']} trials" in text
    assert f"minDCF {speaker['min_dcf_0.01']:.3f} (p 0.01)" in text
    assert f"threshold {speaker['threshold']:.4f}" in text
    weights = ("speech loss", "speaker loss", "speech weight", "speaker weight")
    for name in (*weights, "learning rate", "Skipped steps", "steps/s", "audio/s"):
        assert name in text
    assert results["checkpoint"].rsplit("/", 1)[1] in text.replace("&#39;", "'")
    assert text.count("(best)") == 1
    assert "max_batch_samples: 64000" in text and "torch==" in text


def test_pictures_are_inside_and_nothing_is_loaded_or_run(trained):
    text = (trained / "report.html").read_text(encoding="utf-8")
    elements = Elements(text).found
    pictures = [attributes["src"] for tag, attributes in elements if tag == "img"]
    head = "data:image/png;base64,"
    stored = {base64.b64decode(picture.removeprefix(head)) for picture in pictures}
    names = ("curves.png", "det.png", "histogram_veri_test2.png")
    assert stored == {(trained / name).read_bytes() for name in names}
    tags = {tag for tag, _ in elements}
    assert not tags & {"script", "link", "iframe", "object", "base", "a"}
    for _, attributes in elements:
        for name, value in attributes.items():
            assert name != "href" and not name.startswith("on")
            assert name != "src" or value.startswith(head)
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    assert "color" in style and "url(" not in style and "@import" not in style


def test_every_text_of_others_is_escaped(run):
    evil = "<script>alert('&')</script>"
    write_transcripts(run, (evil, "<b>"), ("A", evil))
    (run / "hyperparams.yaml").write_text(f"# {evil}\n")
    (run / "env.log").write_text(f"Commit {evil}\n")
    (run / "command.txt").write_text(f"python train.py '{evil}'\n")
    results = change_results(run, checkpoint=f"/x/{evil}")
    results["sets"]["speaker"][evil] = {evil: 1.0}
    change_results(run, sets=results["sets"])
    text = page(run)
    assert "<script" not in text and "<b>" not in text
    # Its closing tag, a folder further, is the checkpoint's name.
    assert text.count("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;") >= 7
    Elements(text)


SUB = '<span class="sub"><del>{}</del> <ins>{}</ins></span>'


@pytest.mark.parametrize(
    "reference, hypothesis, wer, plain, marked",
    [
        ("A B C", "A B C", 0, "A B C", "A B C"),
        ("A B C", "A C", 100 / 3, "A [-B-] C", "A <del>B</del> C"),
        ("A C", "A B C", 50, "A {+B+} C", "A <ins>B</ins> C"),
        ("A B", "A X", 50, "A [-B-]{+X+}", f"A {SUB.format('B', 'X')}"),
        ("A B", "", 100, "[-A-] [-B-]", "<del>A</del> <del>B</del>"),
        ("", "A", 100, "{+A+}", "<ins>A</ins>"),
        # The shortest path keeps B and D: one of each kind of error.
        (
            "A B C D",
            "X B D E",
            75,
            "[-A-]{+X+} B [-C-] D {+E+}",
            f"{SUB.format('A', 'X')} B <del>C</del> D <ins>E</ins>",
        ),
    ],
)
def test_errors_are_marked(reference, hypothesis, wer, plain, marked, run):
    write_transcripts(run, (reference, hypothesis))
    (row,) = examples.aligned(run, "test-other")
    assert row["WER"] == pytest.approx(wer)
    assert summary.marked(row).plain == plain
    assert f"<td>{marked}<br>" in page(run)


def test_tables_over_time_are_thinned_and_keep_the_best(run):
    training = {"speaker_loss": 2.0, "speech_weight": 1.0, "speaker_weight": 0.25}
    training |= {"lr": 1e-4, "audio_per_second": 80.0}
    rows = []
    for step in range(1, 101):
        changing = {"speech_loss": 1 / step, "steps_per_second": float(step)}
        changing["skipped_steps"] = step // 50
        rows.append({"stage": "train", "step": step, **training, **changing})
        score = 3.0 if step == 42 else 7.25
        rows.append({"stage": "valid", "step": step, "wer": 9.0, "score": score})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "progress.jsonl").write_text(text)
    text = page(run)
    assert "12 of the 100 rows" in text and "13 of the 100 rows" in text
    assert "<td>42 (best)</td>" in text
    assert "<dd>2</dd>" in text, "skipped steps"
    assert "50.5 steps/s, 80 s of audio/s" in text
    assert "0.2500" in text and "0.01000" in text


@pytest.mark.fault(
    "B6",
    "an evaluation of trials, by train.py or evaluate.py",
    "console, results.json and report show the MFCC baseline with its 95 % interval",
)
def test_the_baseline_stands_beside_every_list(run, capsys):
    results = json.loads((run / "results.json").read_text())
    found = results["baselines"]["veri_test2"]
    assert results["baseline_eer"] == found["eer"]
    text = page(run)
    assert f"{found['eer']:.2f} %" in text and "EER of a baseline on veri_test2" in text
    found.update(eer=13.125, eer_raw=33.25, interval={"low": 11.0, "high": 15.26})
    change_results(run, baselines=results["baselines"], seconds=231.4)
    assert report.publish(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "13.12 %" in text and "33.25 %" in text and "MFCC baseline" in text
    assert "95 % interval 11.0 to 15.3 %" in text
    summary.print_summary(run)
    printed = capsys.readouterr().out
    row = r"EER +13\.12 % +11\.0 to 15\.3 +MFCC baseline, z-normalised"
    assert re.search(row, printed)
    assert "33.25 %" in printed and "231 seconds" in printed
    assert "95 % intervals: bootstrap, 1,000 replicates" in printed


@pytest.mark.fault(
    "B6",
    "the report of a run",
    "hours and speakers of the data, time, memory, device, steps, errors by group",
)
def test_the_page_says_what_the_figures_are_made_of(trained):
    text = (trained / "report.html").read_text(encoding="utf-8")
    results = json.loads((trained / "results.json").read_text())
    data = results["data"]
    assert data["train speech"]["utterances"] == 12
    assert data["train speaker"]["speakers"] == tiny.SPEAKERS
    assert data["voxceleb1"]["lists"] == ["veri_test2"]
    hours = data["test-other"]["hours"]
    assert f"<dt>test-other</dt><dd>{hours:.2f} hours, 4 utterances" in text
    assert f"<dt>Device</dt><dd>{results['device']}</dd>" in text
    assert "Most memory (host)" in text and "Time of the test" in text
    assert "<dt>Training</dt><dd>4 of 4 steps</dd>" in text
    assert "Time in training steps" in text
    assert "<h2>Errors by sex, length and speaker</h2>" in text
    assert "by the utterance&#39;s length" in text
    assert "the speakers in whose trials most decisions are wrong" in text


@pytest.mark.fault(
    "B5",
    "a model that says nothing",
    "CER beside WER; console and report warn: 4 of 4 hypotheses are empty",
)
def test_warnings_are_seen(run, capsys):
    warning = "test-other: 4 of 4 hypotheses are empty"
    change_results(run, warnings=[warning])
    assert f"<li>{warning}</li>" in page(run)
    summary.print_summary(run)
    printed = capsys.readouterr().out
    assert f"warning: {warning}" in printed
    assert re.search(
        r"CER +\d+\.\d\d %.* letters; \d+\.\d % of the frames blank", printed
    )


@pytest.mark.fault(
    "B2",
    "20 of 1,200 steps, then the limit; or the loss above its bound",
    "a block in the console and a box in the report: NOT ALL STEPS WERE TRAINED: 20 of "
    "1,200 steps, stopped: ...",
)
@pytest.mark.parametrize(
    "kind, reason, told",
    [
        ("step limit", None, "20 of 1,200 steps: --optimizer_step_limit"),
        (
            "diverged",
            "diverged: speech_loss is 12.00, above 10",
            "20 of 1,200 steps, stopped: diverged: speech_loss is 12.00, above 10",
        ),
        ("unfinished", None, "20 of 1,200 steps"),
    ],
)
def test_a_part_of_a_training_says_so(kind, reason, told, run, capsys):
    training = {"kind": kind, "steps": 20, "planned": 1200, "reason": reason}
    change_results(run, training=training)
    summary.print_summary(run)
    printed = capsys.readouterr().out
    assert f"NOT ALL STEPS WERE TRAINED: {told}" in printed
    block = printed[printed.index("=" * 72) :].splitlines()
    assert len(block) == 4 and printed.rstrip().endswith("=" * 72)
    assert f'<p class="stopped">NOT ALL STEPS WERE TRAINED: {told}' in page(run)
    training = {"kind": "complete", "steps": 1200, "planned": 1200, "reason": None}
    change_results(run, training=training)
    summary.print_summary(run)
    assert "NOT ALL" not in capsys.readouterr().out + page(run)


@pytest.mark.fault(
    "B9",
    "an evaluation of a CSV of one's own",
    "its report has the CSV's name in the title, and cards of its sets",
)
def test_a_page_of_one_s_own_files(run):
    own = {"speech_csv": "/a/mine.csv", "speaker_csv": "/b/theirs.csv"}
    change_results(run, own=own, headline_sets={})
    text = page(run)
    assert "<h1>mine.csv and theirs.csv, tested with run</h1>" in text
    assert "WER on test-other" in text and "EER on veri_test2" in text


@pytest.mark.fault(
    "C7",
    "report.html cannot be written, and an old one is there",
    "warning: .../report.html could not be written (the log tells why)",
)
def test_an_old_page_is_not_announced(run, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    os.utime(run / "report.html", (1, 1))
    monkeypatch.setattr(report, "write_atomically", refuse)
    assert not report.publish(run)
    summary.print_summary(run)
    printed = capsys.readouterr().out
    assert "report.html could not be written" in printed and "Report: " not in printed


@pytest.mark.parametrize("yaml", [tiny.ASR, tiny.SPEAKER], ids=lambda path: path.stem)
def test_single_task_runs(yaml, tiny_corpus, tmp_path, capsys):
    metric = {tiny.ASR: "wer", tiny.SPEAKER: "eer"}[yaml]
    name = {"wer": "test-other", "eer": "veri_test2"}[metric]
    system = tiny.brain(
        tiny_corpus, tmp_path / "run", yaml, steps=2, valid_interval=2,
        headline_sets=f"{{{metric}: {name}}}",
    )  # fmt: skip
    tiny.fit(system)
    evaluation.evaluate(system, vars(system.hparams))
    summary.print_summary(tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    Elements(text)
    speech = metric == "wer"
    assert ("<h2>Transcripts</h2>" in text) == speech
    assert ("<h2>Speaker verification</h2>" in text) != speech
    assert f"{metric.upper()} on {name}" in text
    assert "weight</th>" not in text, "a single task's weight is always 1"
    printed = capsys.readouterr().out
    assert ("WER" in printed) == speech and ("EER" in printed) != speech


def test_what_is_not_there_is_left_out(run):
    for path in run.iterdir():
        if path.is_file() and path.name != "results.json":
            path.unlink()
    text = page(run)
    Elements(text)
    assert "<h2>Results</h2>" in text and "CKPT" in text
    assert "<img" not in text and "<pre>" not in text and "<h2>Transcripts" not in text


def test_an_unknown_task_is_shown_with_its_metrics(run, capsys):
    gender = {"gender": {"test": {"accuracy": 97.5, "gender_loss": 0.125}}}
    change_results(run, sets=gender, headline_sets={"accuracy": "test"}, accuracy=97.5)
    text = page(run)
    assert "accuracy on test" in text and "97.50" in text and "gender loss" in text
    summary.print_summary(run)
    assert "accuracy 97.50, gender loss 0.1250" in capsys.readouterr().out


@pytest.mark.fault(
    "C7",
    "report.html cannot be written, an older one is there",
    "it is said to be of an earlier evaluation, and is not announced",
)
def test_a_broken_piece_does_not_end_the_evaluation(run, caplog, capsys, monkeypatch):
    (run / "transcripts_test-other.csv").write_text("ID,other\nu1,A\n")
    (run / "report.html").unlink()
    assert report.publish(run)
    summary.print_summary(run)
    assert "transcripts_test-other.csv has no column reference" in caplog.text
    assert f"{run}/report.html" in capsys.readouterr().out

    def full(*_):
        raise OSError(28, "No space left on device", str(run / "report.html"))

    monkeypatch.setattr(report, "write_atomically", full)
    change_results(run)
    assert not report.publish(run)
    assert "could not be written; the one that is there is of an ear" in caplog.text
    assert "No space left on device; make room" in caplog.text
    assert "Traceback" not in caplog.text
    summary.print_summary(run)
    printed = capsys.readouterr().out
    assert "Report:" not in printed
    assert f"warning: {run}/report.html could not be written" in printed
    assert len(re.findall("^test-other +WER", printed, re.MULTILINE)) == 1


def test_the_commands_that_reproduce_it(trained, tiny_corpus, monkeypatch, tmp_path):
    train, evaluate = (trained / "command.txt").read_text().splitlines()
    folder, line = train.removeprefix("cd ").split(" && ", 1)
    python, script, *arguments = shlex.split(line)
    assert python == "python" and script == str(tiny.MTL.parents[1] / "train.py")
    assert shlex.split(folder) and f"--output_folder={trained}" in arguments
    assert "--headline_sets={wer: test-other, eer: veri_test2}" in arguments
    assert shlex.split(evaluate)[-1] == str(trained)
    text = (trained / "report.html").read_text(encoding="utf-8")
    assert escape(train) in text and escape(evaluate) in text
    # From a command line, evaluate.py's own arguments stand there.
    script = str(ROOT / "recipes" / "LibriSpeech_VoxCeleb" / "MTL" / "evaluate.py")
    csv = tiny_corpus / "LibriSpeech" / "dev-other.csv"
    to = tmp_path / "my own"
    arguments = [str(trained), f"--to={to}", f"--speech_csv={csv}", "--device=cpu"]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    evaluation.main()
    command = json.loads((to / "results.json").read_text())["command"]
    assert shlex.split(command.split(" && ", 1)[1]) == ["python", script, *arguments]
    text = (to / "report.html").read_text(encoding="utf-8")
    assert escape(train) in text and escape(command) in text
    assert f"<pre>{escape(evaluate)}</pre>" not in text
    assert "dev-other" in text and "<h2>Training</h2>" in text


def test_several_processes_are_started_by_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    line = shell_command("train.py", ["hparams/mtl.yaml", "--lr=1e-4"])
    assert line.endswith(
        "&& torchrun --standalone --nproc_per_node=4 train.py hparams/mtl.yaml "
        "--lr=1e-4"
    )


def test_two_tasks_with_a_set_of_one_name_are_both_shown(run, capsys):
    results = json.loads((run / "results.json").read_text())
    sets = {"gender": {"test-other": {"accuracy": 97.5}}, **results["sets"]}
    sets["accent"] = {"test-other": {"accuracy": 12.5}}
    change_results(run, sets=sets)
    text = page(run)
    Elements(text)
    summary.print_summary(run)
    printed = capsys.readouterr().out
    wer = f"WER {results['wer']:.2f} %"
    assert "WER on test-other (speech)" in text
    assert f"CER {results['cer']:.2f} %" in text
    assert text.count("<td>test-other</td>") == 3, "a row in the table of each task"
    for told in ("97.50", "12.50", wer):
        assert told in text and told in printed
    for task in ("gender", "speech", "accent"):
        assert f"test-other ({task})" in printed
    assert printed.count("utterances, worst first") == 1
