"""Hostile settings: what a user can mistype, tried on the recipes' real parsing.

    python -m tests.helpers.hostile [--count N] [--seed S]

Draws values for the keys of the recipes' YAMLs (out of range, of another kind, empty,
null, nan, huge, words of YAML 1.1) and gives each on the command line, in a variant or
in a whole YAML; then broken files and wrong names. Everything before data are read
runs as in train.py. What must come of a value follows from the table's ranges, read
here apart from the code that enforces them; ``KNOWN_BAD`` was written by hand. The
summary counts tracebacks, values taken in silence and good ones refused: all must be 0.
"""

import argparse
import collections
import contextlib
import copy
import io
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from lobes.errors import UserError
from lobes.runs.command_line import parse_arguments
from lobes.runs.names import check_keys, check_names
from lobes.runs.variants import keys_of, load_variant
from lobes.settings import kinds, yamls
from lobes.settings import table as settings
from lobes.system.checkout import ROOT
from tests.helpers import tiny

#: The three recipes' own YAMLs, and what each train.py prepares.
YAMLS = {
    tiny.MTL: ("librispeech", "voxceleb"),
    tiny.ASR: ("librispeech",),
    tiny.SPEAKER: ("voxceleb",),
}

#: Texts that may stand where any value is expected.
WORDS = (
    "", "null", "~", "None", "no", "off", "yes", "on", "True", "False", "'False'",
    "abc", "0", "1", "-1", "5.5", "1e400", ".nan", ".inf", "-.inf", "nan", "inf",
    "9" * 400, "1e30", "-1e30", "0x10", "[]", "[1]", "[a]", "[a, 5]", "{}", "{a: 1}",
    "{a: .nan}", "{a: b}", "x/<seed>", "<lr>", "run #2", "#x", "a: b", "2024-99-99",
)  # fmt: skip

#: Of these none may stand for text where null may: a file of such a name is `./no`.
OLD_WORDS = {"None", "no", "off", "yes", "on", "True", "False"}

#: Keys whose good values depend on other keys, or on the model: no verdict here.
DEPENDENT = {
    "encoder.shared_layers", "encoder.speaker_dims", "schedule.warmup",
    "schedule.hold", "encoder.mask_feature_length", "encoder.mask_feature_prob",
    "headline_sets", "selection", "encoder.source", "init_from", "encoder.config",
    "encoder.class_token", "voxceleb_trial_lists", "librispeech_test_splits",
    "tensorboard", "output_folder", "speaker.n_speakers", "skip_prep",
}  # fmt: skip

#: (file, words of the command line): from docs of faults, each must be refused.
KNOWN_BAD = [
    (tiny.MTL, word)
    for word in (
        "--schedule.initial_lr=-1", "--schedule.warmup=2", "--schedule.hold=-1",
        "--schedule.final_lr=0", "--lr=.inf", "--lr=0", "--lr=-1", "--lr=.nan",
        "--lr=inf", "--encoder.layerdrop=2", "--encoder.mask_time_prob=-1",
        "--speaker.scale=0", "--speaker.scale=-30", "--speaker.margin=10",
        "--train_streams.speech.length_jitter=5", "--max_grad_norm=.nan",
        "--grad_accumulation_factor=0", "--log_interval=0", "--num_workers=-1",
        "--num_workers=300", "--speaker.n_speakers=-1", "--speaker.n_speakers=1e12",
        "--crop_seconds=.inf", "--threads=100000", "--max_batch_samples=1e30",
        "--strict=", "--steps=5.5", "--skip_prep='False'", "--seed=5000000000",
        "--lr=abc", "--output_folder=x/<seed>", "--encoder.freeze_cnn=no",
        "--encoder.gradient_checkpointing=off", "--schedule.relative_ends=no",
        "--strict=no", "--selection={foo: 1}", "--selection={}",
        "--selection={wer: 1, eerr: 1}", "--selection={wer: .nan}",
        "--headline_sets={foo: test-other}", "--headline_sets={wer: veri_test2}",
        "--encoder.config={hidden_sise: 32}", "--checkpoints_to_keep=0",
        "--precision=fp8", "--debug_batches=0", "--debug_epochs=-1",
        "--optimizer_step_limit=nan", "--ckpt_interval_steps=-1", "--profile_steps=x",
        "--compile_mode=fast", "--eval_precision=half", "--distributed_backend=tcp",
        "--device=", "--encoder.mask_time_length=0", "--freeze_steps=-1",
        "--valid_interval=0", "--encoder.class_token=None", "--speech.dropout=1",
        "--voxceleb_trial_lists=[a/t.txt, b/t.txt]",
        "--librispeech_test_splits=[veri_test2]", "--init_from=",
    )
]  # fmt: skip
KNOWN_BAD += [
    (tiny.ASR, "--selection={eer: 1}"),
    (tiny.SPEAKER, "--selection={wer: 1}"),
    (tiny.SPEAKER, "--headline_sets={wer: veri_test2}"),
]

#: Variants of mtl.yaml that must be refused, and two that must not.
VARIANTS = {
    "encoder.freeze_cnn: no": False,
    "encoder.gradient_checkpointing: off": False,
    "schedule.relative_ends: no": False,
    "strict: no": False,
    "skip_prep: 'False'": False,
    "lr: abc": False,
    "steps: 5.5": False,
    "seed: " + "9" * 400: False,
    "lr: 0x" + "f" * 5000: False,
    "init_from: None": False,
    "output_folder: x/<seed>": False,
    "1: x": False,
    "lr: !foo 1": False,
    "tasks: &t {speech: *t}": False,
    "tasks: mean": False,
    "tasks: {speech: !ref <speech>, speach: !ref <speech>}": False,
    "pooling: null": False,
    "weighting: !new:lobes.model.weighting.StaticWeighting\n"
    "    weights: {speech: 1}": False,
    "weighting.weights: {speech: -1, speaker: 1}": False,
    "weighting: !new:lobes.model.weighting.StaticWeighting\n"
    "    weights: {speech: .nan, speaker: 1}": False,
    "stopping.metrics: [wer, eerr]": False,
    "stopping.limits: {speech_los: 5}": False,
    "encoder.layerdrop: 2": False,
    "train_streams.speech.length_jitter: 5": False,
    "train_streams.speech: null": False,
    "opt_class.betas: (0.9, 2)": False,
    "opt_class.lr: -1": False,
    "schedule.warmup: 0.9": False,
    "encoder.config: {hidden_size: -5}": False,
    "pooling: !new:lobes.model.pooling.NoSuch": False,
    "lr: [1\nsteps: 2": False,
    "lr: 1\nlr: 2": False,
    "lr: 2001-99-99": False,
    "base: [a]": False,
    "lr: 1.0e-3\nsteps: 1e5": True,
    "stopping.patience_steps: null\nmax_grad_norm: 1": True,
}

#: Whole files that are no recipe's YAML.
FILES = {
    "empty": b"",
    "latin-1": "a: b\xe4".encode("latin-1"),
    "binary": bytes(range(256)),
    "a nul": b"a: 'x\0'",
    "a list": b"- a\n- b\n",
    "a word": b"word",
    "deep": b"[" * 5000,
    "two documents": b"a: 1\n---\nb: 2\n",
    "a tab": b"\tx: 1\n",
    "no base": b"base: gone.yaml\n",
    "base of itself": b"base: file.yaml\n",
    "base is a number": b"base: 5\n",
    "base is a list": b"base: [a]\n",
    "base is null": b"base:\n",
    "a fragment": b"source: null\nlayerdrop: 0.0\n",
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "json": b'{"seed": 1, "output_folder": null}',
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
}


# What must come of a value ---------------------------------------------------------


def allowed(row, text, channel):
    """True, False, or None where it is not for the table alone to say."""
    kind = row.kind
    literal = channel == "command line"
    if literal and getattr(kind, "alone", False) and not text.startswith("["):
        kind = kind.kind
    if literal:
        if text == "":
            return False
        if text == "null":
            return row.null
        if isinstance(kind, kinds.Choice):
            return text in kind.words
        if isinstance(kind, kinds.Text):
            return _plain_text(text) and not (row.null and text in OLD_WORDS)
        if text == "~":
            return False
    try:
        value = yamls.value(text)
    except ValueError:
        return False
    if value is None:
        # A comment is no value where a value is to be given.
        return row.null and not literal
    if row.null and isinstance(value, str) and value in OLD_WORDS:
        return False
    return _fits(kind, value)


def _plain_text(text):
    return not ("<" in text and ">" in text) and not text.startswith("(")


def _fits(kind, value):
    if isinstance(kind, kinds.Flag):
        return value is True or value is False
    if isinstance(kind, kinds.Number):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if isinstance(value, float) and (math.isnan(value) or math.isinf(value)):
            return False
        if isinstance(kind, kinds.Whole) and value != int(value):
            return False
        inside = [
            kind.low is None or kind.low <= value,
            kind.high is None or value <= kind.high,
            kind.above is None or kind.above < value,
            kind.below is None or value < kind.below,
        ]
        return all(inside)
    if isinstance(kind, kinds.Choice):
        return value in kind.words
    if isinstance(kind, kinds.Text):
        return isinstance(value, str) and _plain_text(value) and bool(value.strip())
    if isinstance(kind, kinds.ListOf):
        if kind.alone and not isinstance(value, list):
            return _fits(kind.kind, value)
        fits = isinstance(value, list) and len(value) >= kind.least
        return fits and all(_fits(kind.kind, one) for one in value)
    if isinstance(kind, kinds.MappingOf):
        fits = isinstance(value, dict) and len(value) >= kind.least
        some = not kind.some or any(value.values()) if fits else False
        return fits and some and all(_fits(kind.kind, one) for one in value.values())
    return None


def texts(row, chance):
    """Values for one key: its ends, just beyond them, and any of ``WORDS``."""
    kind = row.kind
    found = [chance.choice(WORDS) for _ in range(4)]
    if isinstance(kind, kinds.Number):
        for low in (kind.low, kind.above):
            if low is not None:
                found += [str(low), str(low - 1)]
        for high in (kind.high, kind.below):
            if high is not None:
                found += [str(high * 10 + 1), str(high)]
    if isinstance(kind, kinds.Choice):
        found += [*kind.words, kind.words[0].upper(), kind.words[0] + "x"]
    if isinstance(kind, kinds.Flag):
        found += ["True", "no"]
    return found


def draw(count, seed):
    """So many ``(yaml, channel, key, text, expected)``."""
    chance = random.Random(seed)
    cases = []
    keys = [
        (yaml, key)
        for yaml in YAMLS
        for key in load_variant(yaml)[0]
        if settings.find(key)
        and not isinstance(settings.find(key).kind, kinds.Object)
    ]
    while len(cases) < count:
        yaml, key = chance.choice(keys)
        row = settings.find(key)
        channel = chance.choice(("command line", "variant", "whole YAML"))
        text = chance.choice(texts(row, chance))
        expected = allowed(row, text, channel)
        if expected and key in DEPENDENT:
            expected = None
        cases.append((yaml, channel, key, text, expected))
    return cases


# Running ---------------------------------------------------------------------------


class Trial:
    """Runs command lines up to where data would be read, in a folder of its own."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.number = 0

    def words(self, yaml):
        """What makes a recipe small and independent of what is installed."""
        tree = load_variant(yaml)[0]
        given = {
            "librispeech_folder": "x",
            "voxceleb2_folder": "x",
            "voxceleb1_folder": "x",
            "encoder.source": "null",
            "encoder.config": str(tiny.ENCODER).replace("'", ""),
            "output_folder": self.folder / "out",
            "speaker.n_speakers": 5,
        }
        keys = set(keys_of(tree))
        return {key: f"--{key}={value}" for key, value in given.items() if key in keys}

    def file(self, content):
        """A file that is there for one trial."""
        folder = self.folder / str(self.number)
        self.number += 1
        folder.mkdir()
        path = folder / "file.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def arguments(self, yaml, channel, key, text):
        """The command line that gives a value in one of the three ways."""
        words = self.words(yaml)
        words.pop(key, None)
        if channel == "command line":
            return [str(yaml), *words.values(), f"--{key}={text}"]
        if channel == "variant":
            path = self.file(f"base: {yaml}\n{key}: {text}\n")
        else:
            tree = copy.copy(load_variant(yaml)[0])
            # In its place: HyperPyYAML's references look back only.
            tree[key] = "given below"
            path = self.file(yamls.dump(tree).replace("given below", text))
        return [str(path), *words.values()]

    def outcome(self, argv, corpora=None):
        """``(kind, message)``: accepted, refused, or a traceback."""
        threads = torch.get_num_threads()
        try:
            # A checkpointer makes the folder that a drawn output_folder names.
            with (
                contextlib.chdir(self.folder),
                contextlib.redirect_stderr(io.StringIO()) as said,
            ):
                hparams, run_opts, _ = parse_arguments(argv, corpora=corpora)
                check_keys(hparams, run_opts["param_file"])
                check_names(hparams)
        except UserError as error:
            text = str(error)
            return ("refused" if "\n" not in text else "traceback"), text
        except SystemExit:
            return "traceback", f"usage: {said.getvalue()}"
        except BaseException as error:
            return "traceback", repr(error)
        finally:
            torch.set_num_threads(threads)
        return "accepted", ""


def verdict(outcome, expected):
    """What is wrong with an outcome, or None."""
    if outcome == "traceback":
        return "traceback"
    if outcome == "accepted" and expected is False:
        return "silent"
    if outcome == "refused" and expected is True:
        return "wrongly refused"
    return None


def attempts(trial, count, seed):
    """Yield ``(group, title, expected, arguments, corpora)`` of all inputs."""
    for yaml, channel, key, text, expected in draw(count, seed):
        shown = kinds.shown(text)
        yield (
            channel,
            f"{yaml.stem}: {key}: {shown}",
            expected,
            trial.arguments(yaml, channel, key, text),
            YAMLS[yaml],
        )
    for yaml, word in KNOWN_BAD:
        words = trial.words(yaml)
        words.pop(word[2:].partition("=")[0], None)
        yield "known", word, False, [str(yaml), *words.values(), word], YAMLS[yaml]
    for text, expected in VARIANTS.items():
        # The same key may not stand on the command line, where it would win.
        words = trial.words(tiny.MTL)
        words.pop(text.partition(":")[0], None)
        base = "" if text.startswith("base:") else f"base: {tiny.MTL}\n"
        argv = [str(trial.file(f"{base}{text}\n")), *words.values()]
        yield "variants", kinds.shown(text), expected, argv, YAMLS[tiny.MTL]
    for name, content in FILES.items():
        yield "files", name, False, [str(trial.file(content))], None
    for yaml in YAMLS:
        for other, corpora in YAMLS.items():
            if other is not yaml:
                argv = [str(yaml), *trial.words(yaml).values()]
                title = f"{yaml.stem} to the train.py of {other.stem}"
                yield "files", title, False, argv, corpora


def in_a_process(yaml, word, trial):
    """``(status, what it said)`` of the real train.py with one more word."""
    words = trial.words(yaml)
    words.pop(word[2:].partition("=")[0], None)
    script = yaml.parent.parent / "train.py"
    result = subprocess.run(
        [sys.executable, str(script), str(yaml), *words.values(), word],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    return result.returncode, result.stderr


def main(argv=None):
    """The command; see the module's docstring. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Try hostile settings.")
    parser.add_argument("--count", type=settings.COUNT, default=400)
    parser.add_argument("--seed", type=settings.SEED, default=0)
    parser.add_argument("--processes", type=kinds.Whole(0, 1000), default=6)
    options = parser.parse_args(argv)
    table = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(folder)
        for group, title, expected, words, corpora in attempts(
            trial, options.count, options.seed
        ):
            outcome, message = trial.outcome(words, corpora)
            wrong = verdict(outcome, expected)
            table[group].update(["inputs", outcome, *([wrong] if wrong else [])])
            if wrong:
                print(f"{wrong}: {group}: {title}: {message}", flush=True)
        chance = random.Random(options.seed)
        for yaml, word in chance.sample(
            KNOWN_BAD, min(options.processes, len(KNOWN_BAD))
        ):
            status, said = in_a_process(yaml, word, trial)
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            good = status == 2 and len(lines) == 1 and "Traceback" not in said
            table["processes"].update(["inputs", "refused" if good else "traceback"])
            if not good:
                print(f"traceback: {word}: {said}")
    columns = (
        "inputs",
        "refused",
        "accepted",
        "traceback",
        "silent",
        "wrongly refused",
    )
    print(f"| given in | {' | '.join(columns)} |\n|{'---|' * 7}")
    total = collections.Counter()
    for group, counts in table.items():
        print(f"| {group} | {' | '.join(str(counts[c]) for c in columns)} |")
        total.update(counts)
    print(f"| all | {' | '.join(str(total[c]) for c in columns)} |")
    return int(any(total[c] for c in columns[3:]))


if __name__ == "__main__":
    sys.exit(main())
