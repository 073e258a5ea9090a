"""SpeechBrain's run options keep their meaning, or are refused with a reason."""

import json
import logging

import pytest
import torch
from speechbrain.utils.run_opts import RunOptions
from tqdm import tqdm

from lobes.errors import UserError
from lobes.runs import command_line as recipe
from recipes.LibriSpeech_VoxCeleb.MTL import train as mtl
from tests.helpers import tiny

#: What acts here, and a word that is accepted. test_distributed.py starts processes
#: with --distributed_backend.
SUPPORTED = {
    "test_only": "",
    "debug": "",
    "debug_batches": "3",
    "debug_epochs": "1",
    "debug_persistently": "",
    "log_config": __file__,
    "device": "cpu",
    "distributed_backend": "gloo",
    "compile": "",
    "compile_module_keys": "encoder",
    "compile_mode": "max-autotune",
    "compile_using_fullgraph": "",
    "compile_using_dynamic_shape_tracing": "",
    "precision": "bf16",
    "eval_precision": "bf16",
    "max_grad_norm": "1.5",
    "nonfinite_patience": "4",
    "noprogressbar": "",
    "ckpt_interval_minutes": "2",
    "ckpt_interval_steps": "2",
    "grad_accumulation_factor": "2",
    "optimizer_step_limit": "3",
    "tqdm_colored_bar": "",
    "profile_training": "",
    "profile_warmup": "1",
    "profile_steps": "2",
}

#: SpeechBrain sets these itself; its parser does not offer them.
NOT_ON_THE_COMMAND_LINE = {
    "data_parallel_count",
    "distributed_launch",
    "tqdm_barcolor",
    "param_file",
    "overridden_args",
}


@pytest.fixture
def make(tiny_corpus, tmp_path):
    """A tiny Brain in the folder ``name``, with run options."""

    def make(*options, name="run", **changes):
        return tiny.brain(tiny_corpus, tmp_path / name, options=options, **changes)

    return make


def train(corpus, output, *options, **changes):
    argv = tiny.arguments(corpus, output, **changes)
    mtl.main([*argv, "--device=cpu", "--noprogressbar", *options])


def rows(output, stage="train"):
    text = (output / "progress.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    return [row for row in found if row["stage"] == stage]


def checkpoints(output):
    return sorted(path.name for path in (output / "save").iterdir())


def test_every_option_is_supported_or_refused():
    groups = [set(SUPPORTED), set(recipe.REFUSED_RUN_OPTIONS), NOT_ON_THE_COMMAND_LINE]
    assert set().union(*groups) == set(RunOptions().keys())
    assert sum(map(len, groups)) == len(set().union(*groups)), "one stands twice"


def test_the_parser_offers_all_but_those_that_it_sets_itself():
    offered = {action.dest for action in RunOptions._create_parser()._actions}
    assert offered - {"help", "param_file"} == set(SUPPORTED) | set(
        recipe.REFUSED_RUN_OPTIONS
    )


@pytest.mark.parametrize("option", SUPPORTED)
def test_a_supported_option_reaches_the_brain(option, make, monkeypatch):
    monkeypatch.setattr("speechbrain.utils.logger.setup_logging", lambda *_: None)
    word = SUPPORTED[option]
    if option == "device":
        return  # tiny.brain gives --device=cpu to every Brain
    system = make(f"--{option}" + (f"={word}" if word else ""))
    value = getattr(system, option)
    kind = {"compile_module_keys": lambda w: [w]}.get(option, type(value))
    assert value == (kind(word) if word else True)


@pytest.mark.parametrize("option", ["auto_mix_prec", "bfloat16_mix_prec"])
def test_a_deprecated_option_names_its_replacement(option, make):
    with pytest.raises(UserError, match="is not supported: use --precision="):
        make(f"--{option}")


def test_an_option_that_the_yaml_sets_is_a_setting(make, tmp_path):
    """Stored with the run, checked, and part of the computed folder's name."""
    system = make("--max_grad_norm=0.25", "--nonfinite_patience", "3")
    assert (system.max_grad_norm, system.nonfinite_patience) == (0.25, 3)
    stored = (tmp_path / "run" / "hyperparams.yaml").read_text()
    assert "max_grad_norm: 0.25" in stored and "nonfinite_patience: 3" in stored
    yaml = tmp_path / "small.yaml"
    yaml.write_text("seed: 7\noutput_folder: null\nmax_grad_norm: 0.0\n")
    hparams, _, _ = recipe.parse_arguments([str(yaml), "--max_grad_norm=2"])
    assert "small,max_grad_norm=2.0/7" in hparams["output_folder"]
    with pytest.raises(UserError, match="max_grad_norm must be a number"):
        recipe.parse_arguments([str(yaml), "--max_grad_norm=much"])


def test_max_grad_norm_clips(make):
    """Over the whole step: Adam hides the size of a gradient, SGD does not."""
    moved = []
    for norm in (1e-3, 2e-3):
        system = make(f"--max_grad_norm={norm}", freeze_steps=0, initial_lr=1e-3)
        system.opt_class = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
        batch = next(iter(system.prepare_training()))
        system.on_fit_start()
        before = torch.nn.utils.parameters_to_vector(system.parameters).clone()
        system.step = 1
        system.fit_batch(batch)
        after = torch.nn.utils.parameters_to_vector(system.parameters)
        moved.append(float((after - before).detach().norm()))
    assert moved[0] == pytest.approx(1e-3 * 1e-3, rel=0.02)
    assert moved[1] == pytest.approx(2e-3 * 1e-3, rel=0.02)


@pytest.mark.parametrize(
    "option, named",
    [
        ("--precision=fp16", "fp16"),
        ("--device=cuda:99", "--device"),
        ("--optimizer_step_limit=few", "whole number"),
        ("--optimizer_step_limit=0", "whole number"),
        ("--log_config=nowhere.yaml", "nowhere.yaml"),
        ("--noprogressbar=True", "takes no value"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(option, named, make):
    with pytest.raises(UserError, match=named) as caught:
        make(option) if "device" not in option else _on(option, make)
    assert "\n" not in str(caught.value)


def _on(option, make):
    """A Brain on a device that is not there."""
    system = make()
    hparams = vars(system.hparams)
    run_opts = {"device": option.partition("=")[2]}
    type(system)(hparams, run_opts, hparams["checkpointer"])


def test_eval_precision_acts_in_evaluation_only(make):
    system = make("--eval_precision=bf16")
    kinds = []
    layer = system.modules.encoder.model.encoder.layers[0]
    linear = layer.feed_forward.intermediate_dense
    linear.register_forward_hook(lambda m, i, out: kinds.append(out.dtype))
    tiny.fit(system)
    assert {torch.float32, torch.bfloat16} == set(kinds)
    assert kinds[0] is torch.float32 and kinds[-1] is torch.bfloat16


def test_precision_acts_in_training_only(make):
    system = make("--precision=bf16")
    kinds = []
    layer = system.modules.encoder.model.encoder.layers[0]
    linear = layer.feed_forward.intermediate_dense
    linear.register_forward_hook(lambda m, i, out: kinds.append(out.dtype))
    tiny.fit(system)
    assert kinds[0] is torch.bfloat16 and kinds[-1] is torch.float32


def test_debug_leaves_a_finished_run_alone(tiny_corpus, tmp_path):
    """Few batches and epochs, in a folder of its own."""
    output = tmp_path / "run"
    train(tiny_corpus, output)
    files = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    # Still open in this process, for the first run's logger.
    del files[output / "log.txt"]
    options = ("--debug", "--debug_batches=1", "--debug_epochs=1")
    train(tiny_corpus, output, *options)
    assert {p: p.read_bytes() for p in files} == files
    found = rows(output / "debug")
    assert [row["step"] for row in found] == [1]
    train(tiny_corpus, output, "--debug")
    assert [row["step"] for row in rows(output / "debug")] == [1, 2, 3]


def test_test_only_evaluates_without_training(tiny_corpus, tmp_path, capsys):
    output = tmp_path / "run"
    train(tiny_corpus, output)
    expected = json.loads((output / "results.json").read_text())["sets"]
    saved = checkpoints(output)
    (output / "results.json").unlink()
    train(tiny_corpus, output, "--test_only", "--allow_changes", steps=60)
    found = json.loads((output / "results.json").read_text())
    assert found["sets"] == expected and checkpoints(output) == saved
    with pytest.raises(SystemExit):
        train(tiny_corpus, tmp_path / "none", "--test_only")
    assert "holds no best checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [2, 3, 4])
def test_a_run_may_end_at_a_limit_and_go_on(limit, make):
    """Bit for bit as if there had been none, wherever in an epoch the limit is."""
    settings = {"steps": 6, "valid_interval": 3, "hidden_dropout": 0.1}
    whole = make(name="whole", **settings)
    expected = tiny.fit(whole)
    first = make(f"--optimizer_step_limit={limit}", name="parts", **settings)
    found = tiny.fit(first)
    assert first.optimizer_step == limit
    assert found[-1]["stage"] == "valid" and found[-1]["step"] == limit
    second = make(name="parts", **settings)
    found = tiny.fit(second)
    names = ("step", "speech_loss", "speaker_loss", "speech_weight", "lr")
    found, expected = (
        [[row[name] for name in names] for row in some if row["stage"] == "train"]
        for some in (found, expected)
    )
    assert found == expected
    ours, theirs = tiny.parameters(second), tiny.parameters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_limit_counts_optimizer_steps(make):
    options = ("--optimizer_step_limit=2", "--grad_accumulation_factor=3")
    system = make(*options, steps=6, valid_interval=6)
    tiny.fit(system)
    stream = system.checkpointer.recoverables["train_stream"]
    assert (system.optimizer_step, stream.total_steps) == (2, 6)


def test_checkpoints_between_validations(make):
    """The intra-epoch ones replace each other; those of validations stay."""
    system = make("--ckpt_interval_steps=1", steps=6, valid_interval=6)
    saved = []
    save = system._save_intra_epoch_ckpt
    system._save_intra_epoch_ckpt = lambda: (saved.append(system.step), save())
    tiny.fit(system)
    assert saved == [1, 2, 3, 4, 5, 6]
    metas = [c.meta for c in system.checkpointer.list_checkpoints()]
    assert sum("intra-epoch_ckpt" in meta for meta in metas) <= 1
    assert sum("score" in meta for meta in metas) == 1


def test_checkpoints_by_the_clock(make, monkeypatch):
    system = make("--ckpt_interval_minutes=1")
    clock = iter(range(0, 10**6, 120))
    monkeypatch.setattr("speechbrain.core.time.time", lambda: next(clock))
    assert system._should_save_intra_epoch_ckpt(0.0, 1) is False
    assert system._should_save_intra_epoch_ckpt(0.0, 1) is True


def test_an_interval_in_steps_takes_the_place_of_the_minutes(make):
    """SpeechBrain refuses to have both."""
    assert make().ckpt_interval_minutes == 15
    system = make("--ckpt_interval_minutes=1", "--ckpt_interval_steps=7")
    assert (system.ckpt_interval_minutes, system.ckpt_interval_steps) == (0, 7)


def test_log_config_is_used(make, tmp_path):
    path = tmp_path / "log.yaml"
    path.write_text(
        "version: 1\ndisable_existing_loggers: False\n"
        "formatters: {plain: {format: 'MINE %(message)s'}}\n"
        "handlers:\n    file_handler:\n        class: logging.FileHandler\n"
        "        formatter: plain\n        filename: unused\n"
        "root: {level: INFO, handlers: [file_handler]}\n"
    )
    make(f"--log_config={path}")
    logging.getLogger("lobes").info("hello")
    assert "MINE hello" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("coloured", [False, True])
def test_the_bar(coloured, make, monkeypatch):
    bars = []

    def bar(title, total, unit="utt", **settings):
        if total is not None:
            bars.append(settings)
        return tqdm(total=total, disable=True)

    monkeypatch.setattr("lobes.training.brain.progress_bar", bar)
    system = make(*["--tqdm_colored_bar"] * coloured)
    system.noprogressbar = False
    tiny.fit(system)
    system.noprogressbar = True
    tiny.fit(system)
    assert [bar["disable"] for bar in bars] == [False, True]
    assert bars[0]["colour"] == ("GREEN" if coloured else None)


def test_compile_takes_the_encoder_and_its_options(make, monkeypatch):
    """The wiring; what it computes is tested in tests/recipes/test_loss_curves.py."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda m, **k: calls.append((m, k)) or m)
    options = ("--compile", "--compile_mode=reduce-overhead")
    system = make(*options, "--compile_using_dynamic_shape_tracing")
    tiny.fit(system)
    assert [module for module, _ in calls] == [system.hparams.encoder]
    settings = {"mode": "reduce-overhead", "fullgraph": False, "dynamic": True}
    assert calls[0][1] == settings
    calls.clear()
    tiny.fit(make("--compile", "--compile_module_keys", "speech", name="other"))
    assert [type(module).__name__ for module, _ in calls] == ["SpeechRecognition"]


@pytest.mark.slow
def test_new_lengths_compile_nothing_new(make, monkeypatch):
    """After a few shapes the graphs are for any; of each phase there are a handful."""
    compile_ = torch.compile

    def with_eager_backend(module, mode=None, **settings):
        return compile_(module, backend="eager", **settings)

    monkeypatch.setattr(torch, "compile", with_eager_backend)
    torch._dynamo.reset()
    # Without this, torch would compile nothing more and say nothing.
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch._dynamo.utils.counters.clear()
    settings = {"steps": 36, "valid_interval": 36, "freeze_steps": 12}
    system = make("--compile", max_batch_samples=24_000, **settings)
    graphs, shapes = [], set()
    fit_batch = system.fit_batch

    def count(batch):
        loss = fit_batch(batch)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        shapes.add(batch["speech"].wavs.shape)
        return loss

    system.fit_batch = count
    tiny.fit(system)
    assert graphs[0] > 0 and len(shapes) > 5
    assert graphs[8] == graphs[11] < 30, "a frozen encoder still compiles"
    assert graphs[24] == graphs[35] < 60, "a trained encoder still compiles"


def test_profile_training_writes_a_trace_and_ends(tiny_corpus, tmp_path):
    options = ("--profile_training", "--profile_warmup=1", "--profile_steps=2")
    with pytest.raises(SystemExit):
        train(tiny_corpus, tmp_path / "run", *options)
    traces = list((tmp_path / "run" / "profiler_logs").iterdir())
    assert len(traces) == 1 and traces[0].stat().st_size > 1000
    assert len(rows(tmp_path / "run")) == 3
