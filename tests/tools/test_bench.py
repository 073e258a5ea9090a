"""The benchmark at tiny size: what it compares is equal, what it reports is there."""

import json
import multiprocessing

import numpy as np
import pytest
import torch

from lobes.system.checkout import ROOT
from recipes.LibriSpeech.librispeech_prepare import prepare_librispeech
from recipes.VoxCeleb.voxceleb_prepare import prepare_voxceleb
from tools import bench
from tools.benchmark import corpora, measures, systems


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    made = systems.Setup(str(folder), "tiny", seconds=4.0, crop=0.9, threads=1)
    corpora.prepare(made, 64)
    prepared = folder / "prepared"
    prepare_librispeech(
        folder / "LibriSpeech",
        prepared / "LibriSpeech",
        tr_splits=["train-clean-100"],
        num_workers=1,
    )
    prepare_voxceleb(
        folder / "VoxCeleb2",
        None,
        prepared / "VoxCeleb",
        valid_fraction=0.1,
        num_workers=1,
    )
    return made


@pytest.fixture(scope="module")
def batches(setup):
    hparams, _ = systems.load(setup)
    return list(systems.train_batches(setup, hparams, 2))


@pytest.fixture
def compared(setup):
    return {name: build(setup) for name, build in systems.SYSTEMS.items()}


def gradients(system, batches):
    """Those of the transformer, as the optimizers see them at a step."""
    found = {}
    modules = getattr(system.modules.encoder, "model", system.modules.encoder)

    def keep(*_):
        for name, parameter in modules.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.clone()

    optimizers = getattr(system, "optimizers_dict", None) or {"": system.optimizer}
    for optimizer in optimizers.values():
        optimizer.register_step_pre_hook(keep)
    # Of the stock one they are clipped.
    system.max_grad_norm = 1e9 if isinstance(system, systems.Stock) else 0.0
    loss = systems.step(system, batches)
    return float(loss), found


def test_the_three_compute_the_same_step(compared, batches):
    losses, found = {}, {}
    batch = systems.trimmed(batches[0])
    assert min(map(len, batch.values())) > 1
    for name, system in compared.items():
        losses[name], found[name] = gradients(system, batch)
    for name in ("stock", "paper"):
        assert losses[name] == pytest.approx(losses["ours"], rel=1e-5)
        assert found[name].keys() == found["ours"].keys()
        for key, gradient in found["ours"].items():
            scale = float(gradient.abs().max())
            close = torch.allclose(found[name][key], gradient, 1e-3, 1e-4 * scale)
            assert close, (name, key)
    assert compared["paper"].seen[1] > 0


def test_each_runs_the_cnn_as_it_is_said_to(compared, batches):
    """Ours once and without a graph, the stock one with, the paper's twice."""
    passes = {}
    for name, system in compared.items():
        seen = passes[name] = []
        encoder = getattr(system.modules.encoder, "model", system.modules.encoder)
        encoder.feature_extractor.conv_layers[0].conv.register_forward_hook(
            lambda _, inputs, output, seen=seen: seen.append(output.requires_grad)
        )
        systems.step(system, {"speech": batches[0]["speech"]})
    assert passes["ours"] == [False]
    assert passes["stock"] == [True]
    assert len(passes["paper"]) == 2 and passes["paper"][-1]


@pytest.mark.parametrize("name", ["ours", "stock"])
def test_the_warm_up_leaves_the_encoder_alone(setup, batches, name):
    system = systems.SYSTEMS[name](setup)
    encoder = system.modules.encoder

    def state():
        return torch.cat([p.detach().flatten() for p in encoder.parameters()])

    before, head = state(), system.modules.speech.linear.weight.detach().clone()
    systems.step(system, batches[0], frozen=True)
    assert torch.equal(state(), before)
    assert not torch.equal(system.modules.speech.linear.weight, head)
    piled_up = any(p.grad is not None for p in encoder.parameters())
    assert piled_up == (name == "stock")
    systems.step(system, batches[1])
    assert not torch.equal(state(), before)


def test_other_losses_stop_it(compared, batches):
    options = bench.parse(["--size=tiny", "--threads=1"])
    with torch.no_grad():
        compared["stock"].modules.speech.linear.bias += 1.0 * torch.arange(32)
    with pytest.raises(RuntimeError, match="different things"):
        measures.first_losses(compared, batches[0], options)


def test_a_compilation_that_fails_costs_no_other(compared, batches, monkeypatch):
    step = systems.step

    def fail(system, *args):
        if system is None:
            raise RuntimeError("no compiler")
        return step(system, *args)

    monkeypatch.setattr(systems, "step", fail)
    options = bench.parse(["--size=tiny", "--threads=1"])
    compared["compiled"] = None
    losses, failed = measures.first_losses(compared, batches[0], options)
    assert failed == {"error": "compiled: RuntimeError: no compiler"}
    assert set(losses) == set(compared) == {"ours", "stock", "paper"}


def test_batches_of_a_stated_length(setup):
    setup = setup.but(seconds=4.0, crop=0.3)
    hparams, _ = systems.load(setup)
    whole = systems.plain_batches(hparams, setup)
    assert systems.audio_seconds(whole) == pytest.approx(8.0, abs=0.3)
    parts = [systems.share(whole, rank, 2) for rank in range(2)]
    alone = systems.share(whole, 0, 1)
    assert len(whole["speaker"]) % 2
    for task, batch in systems.trimmed(whole).items():
        halves = torch.cat([part[task].wavs for part in parts])
        assert torch.equal(halves, batch.wavs[: len(halves)])
        assert len(batch) - len(halves) < 2
        assert len({len(part[task]) for part in parts}) == 1
        # Both sides of the comparison do the same.
        assert torch.equal(halves, alone[task].wavs)


@pytest.mark.parametrize("crop", [0.9, 30.0])
def test_two_processes_have_a_crop_each(setup, monkeypatch, crop):
    asked, joined = [], []

    def measure(_, setup, number, port, rounds, ranks):
        asked.append(setup)
        joined.append((number, ranks, port is not None))
        return [1.0] if ranks == 1 else [[1.0], [0.5]]

    monkeypatch.setattr(measures, "in_new_process", measure)
    options = bench.parse(["--size=tiny", "--rounds=1", "--threads=1"])
    found = measures.measure_scaling(setup.but(crop=crop), options)
    assert {r["median"] for r in found["ratios"].values()} == {0.5}
    assert joined == [(1, 1, False), (2, 2, True), (2, 2, False)]
    hparams, _ = systems.load(setup)
    parts = systems.share(systems.plain_batches(hparams, asked[1]), 1, 2)
    assert all(len(part) for part in parts.values())


def test_the_corpus_is_as_long_as_librispeech():
    lengths = corpora.speech_lengths(
        np.random.default_rng(0), 5000, 1.0, 35.0
    )
    assert lengths.mean() == pytest.approx(12.3, abs=0.2)
    assert lengths.std() == pytest.approx(3.84, abs=0.2)
    assert lengths.max() == 35.0 and lengths.min() >= 1.4


def test_slopes():
    rows = [{"audio": a, "peak": 5 + 3 * a} for a in (1, 2, 4)]
    assert measures.slopes_between(rows) == [3, 3, 3]


def test_rounds_take_turns():
    order = []
    options = bench.parse(["--size=tiny", "--rounds=3", "--threads=1"])
    functions = {name: lambda r, name=name: order.append((r, name)) for name in "abc"}
    seconds = measures.interleaved(functions, options)
    assert [name for _, name in order] == list("abcbcacab")
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(
        "abc", 3
    )


@pytest.mark.parametrize("fault", [None, "transcript", "embedding"])
def test_batches_that_change_a_result_are_an_error(setup, monkeypatch, fault):
    def evaluate(brain, lists, budget):
        apart = budget is not None
        embedding = np.array([1.0, 3e-3 * (apart and fault == "embedding")])
        text = "A" + "B" * (apart and fault == "transcript")
        return {"speaker": {"u": embedding}, "speech": {"u": ("A", text)}}

    monkeypatch.setattr(measures, "evaluate", evaluate)
    options = bench.parse(["--size=tiny", "--rounds=1", "--threads=1"])
    found = measures.measure_evaluation(setup, options)
    assert ("error" in found) == (fault is not None)
    assert found["other_transcripts"] == (fault == "transcript")


def test_goals_hold_for_their_own_size():
    step = {"median": 0.08}
    found = {
        "machine": {"peak_tflops": 600.0},
        "ratios": {
            "main_vs_stock": {"median": 1.4},
            "memory_vs_stock": {"median": 0.5},
            "evaluation_vs_single": {"median": 4.0},
        },
        "steps": {
            "rows": [
                {
                    "crop": 3.0,
                    "seconds": {"main": {"stock": step, "ours": {"median": 0.125}}},
                    "tflops": {"ours": 150.0},
                    "hours_of_100k": 4.0,
                },
                {
                    "crop": 9.0,
                    "seconds": {"main": {"stock": step, "compiled": step}},
                    "tflops": {"ours": 150.0, "compiled": 240.0},
                    "hours_of_100k": 2.5,
                },
            ]
        },
        "memory": {
            "points": {
                "ours": [{"audio": 100.0, "peak": 2e9}, {"audio": 400.0, "peak": 1e10}],
                "stock": [{"audio": 400.0, "peak": 4e10}],
            }
        },
    }

    def rows(device, size):
        options = {"device": device, "size": size}
        return [
            list(row.values()) for row in bench.judged(found | {"options": options})
        ]

    assert rows("cpu", "base") == [
        ["main_vs_stock", 1.4, ">= 1.15", True],
        ["memory_vs_stock", 0.5, "<= 0.55", True],
    ]
    assert rows("cpu", "tiny") == [["evaluation_vs_single", 4.0, ">= 3", True]]
    assert rows("cuda:0", "base") == [
        ["main_vs_stock", 1.4, ">= 1.5", False],
        ["steps_per_second, ours, crop 3 s", 8.0, ">= 10", False],
        ["hours_of_100k, crop 3 s", 4.0, "<= 3", False],
        ["steps_per_second, compiled, crop 9 s", 12.5, ">= 10", True],
        ["fraction_of_peak, compiled, crop 9 s", 0.4, ">= 0.35", True],
        ["hours_of_100k, crop 9 s", 2.5, "<= 3", True],
        ["peak_gb, 400 s of audio", 10.0, "<= 16", True],
    ]
    assert rows("cuda", "tiny") == []


def test_a_part_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    path = tmp_path / "bench.json"
    written = []

    def fail(setup, options):
        raise ValueError("no room")

    def keep(setup, options):
        written.append(json.loads(path.read_text(encoding="utf-8")))
        return {"total": 2.0}

    monkeypatch.setattr(corpora, "prepare", lambda *_: None)
    monkeypatch.setattr(bench, "draw", lambda *_: None)
    for name, part in ("preparation", fail), ("scoring", fail), ("startup", keep):
        monkeypatch.setitem(bench.SECTIONS, name, part)
    ratio = {"min": 1.0, "median": 2.0, "max": 3.0}
    monkeypatch.setitem(
        bench.SECTIONS, "memory", lambda *_: {"points": {}, "ratios": {"some": ratio}}
    )
    argv = ["--size=tiny", "--threads=1", f"--output={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        bench.main([*argv, "--only", "memory", "scoring", "startup"])
    assert ended.value.code == 1
    assert written[0]["ratios"] == {"some": ratio}
    assert written[0]["scoring"] == {"error": "ValueError: no room"}
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["startup"] == {"total": 2.0}
    assert "FAIL scoring: ValueError: no room" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command(tmp_path, capsys):
    bench.main(["--size=tiny", "--rounds=1", "--threads=1", f"--output={tmp_path}"])
    assert not multiprocessing.active_children()
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert found["ratios"].keys() == {
        *("main_vs_stock", "main_vs_paper", "warmup_vs_stock", "memory_vs_stock"),
        *("evaluation_vs_single", "efficiency_of_two", "efficiency_of_two_apart"),
    }
    for ratio in found["ratios"].values():
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert set(bench.SECTIONS) <= found.keys()
    assert found["machine"]["torch"] == torch.__version__.split("+")[0]
    assert str(ROOT) not in json.dumps(found["machine"])
    assert [row["crop"] for row in found["steps"]["rows"]] == pytest.approx([0.3, 0.9])
    losses = found["steps"]["losses"]
    assert losses["stock"] == pytest.approx(losses["ours"], rel=1e-4)
    assert losses["paper"] == pytest.approx(losses["ours"], rel=1e-4)
    assert found["evaluation"]["lowest_cosine"] > 1 - 1e-6
    assert found["evaluation"]["other_transcripts"] == 0
    assert [row["name"] for row in found["goals"]] == ["evaluation_vs_single"]
    assert (tmp_path / "bench.png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "main_vs_stock" in printed and "steps/s" in printed
