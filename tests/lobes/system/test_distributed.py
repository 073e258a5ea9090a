"""Two processes (gloo) train as one: fault case F35."""

import json

import pytest
import torch
from speechbrain.utils.run_opts import RunOptions

from lobes.data.utterances import Batch
from lobes.errors import UserError
from lobes.system.distributed import (
    average_gradients,
    gather,
    global_losses,
    join_processes,
)
from tests.helpers import tiny

STEPS, FREEZE_STEPS = 6, 2

#: What each rank runs: train.py's steps, then its parameters in a file.
PROGRAM = """
import json, sys, torch
from pathlib import Path
from lobes.system import distributed
from tests.helpers import tiny
distributed.SMALL = 500  # gradients of both kinds
corpus, output, yaml = map(Path, sys.argv[1:4])
system = tiny.brain(
    corpus, output / "run", yaml, steps=6, valid_interval=3, freeze_steps=2,
    options=["--distributed_backend=gloo"], **json.loads(sys.argv[4]),
)
seen, states = [], {}
fit_batch = system.fit_batch
def record(batch):
    loss = fit_batch(batch)
    ids = {task: b.ids for task, b in batch.items()}
    losses = [float(v) for n, v in system.step_values.items() if n.endswith("_loss")]
    seen.append((ids, losses, float(loss)))
    states[system.optimizer_step] = tiny.parameters(system)
    return loss
system.fit_batch = record
tiny.fit(system)
torch.save({"states": states, "seen": seen}, output / f"rank{system.rank}.pt")
"""

CASES = {
    "mtl": (tiny.MTL, {}),
    "branched": (tiny.MTL, {"shared_layers": 1}),
    "asr": (tiny.ASR, {}),
    "speaker": (tiny.SPEAKER, {}),
}


def test_one_process_needs_no_group():
    losses = {"speech": torch.tensor(1.0, requires_grad=True)}
    assert global_losses(losses, {"speech": 3}) is losses
    assert gather({"a": 1}) == {"a": 1}
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]


def test_a_gpu_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setattr("lobes.system.distributed.ddp_init_group", lambda options: None)
    join_processes({"device": "cuda"})
    monkeypatch.setattr("lobes.system.distributed.rank_and_world_size", lambda: (1, 2))
    with pytest.raises(UserError, match="leave --device out"):
        join_processes(RunOptions(device="cuda"))
    join_processes(RunOptions(device="cuda:1"))


#: As torchrun starts the second of four processes on one machine.
LAUNCHED = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def launch(monkeypatch):
    """``launch(environment, gpus, **run_options)``: join with nobody to join."""

    def launch(environment, gpus=0, **options):
        for name in (*LAUNCHED, "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        monkeypatch.setattr("lobes.system.distributed.ddp_init_group", lambda _: None)
        join_processes(RunOptions(**options))

    return launch


@pytest.mark.parametrize(
    "gpus, told",
    [
        (2, "4 processes, 2 GPUs: --nproc_per_node=2, or --distributed_backend=gloo"),
        (1, "4 processes, 1 GPU: --nproc_per_node=1, or --distributed_backend=gloo"),
        (0, "4 processes, no GPU: --distributed_backend=gloo --device=cpu"),
    ],
)
@pytest.mark.fault(
    "D6",
    "more processes than GPUs",
    "4 processes, 2 GPUs: --nproc_per_node=2, or --distributed_backend=gloo "
    "--device=cpu",
)
def test_more_processes_than_gpus(launch, gpus, told):
    with pytest.raises(UserError) as caught:
        launch(LAUNCHED, gpus)
    assert told in str(caught.value)


def test_launches_that_are_right(launch):
    launch(LAUNCHED, 4)
    # Two machines of two GPUs each.
    launch({**LAUNCHED, "LOCAL_WORLD_SIZE": "2"}, 2)
    launch(LAUNCHED, 2, distributed_backend="gloo", device="cpu")
    launch(LAUNCHED, 0, distributed_backend="gloo")
    launch({})
    launch({"WORLD_SIZE": "1"})
    launch({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})


@pytest.mark.parametrize(
    "environment, told",
    [
        ({"RANK": "0"}, "RANK=0 in the environment, without LOCAL_RANK, WORLD_SIZE, "),
        ({"RANK": "0", "LOCAL_RANK": "0"}, "or one after unset RANK LOCAL_RANK"),
        ({"LOCAL_RANK": "0"}, "start several processes with torchrun, or"),
        ({"WORLD_SIZE": "4"}, "or one after unset WORLD_SIZE"),
        ({**LAUNCHED, "RANK": "first"}, "which is no number: RANK: start"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x"}, "without LOCAL_RANK"),
    ],
)
@pytest.mark.fault(
    "D6",
    "RANK, LOCAL_RANK or WORLD_SIZE in the environment of a plain train.py",
    "RANK=0 in the environment, without LOCAL_RANK, ...: start several processes with "
    "torchrun, or one after unset RANK",
)
def test_what_is_left_in_the_environment(launch, environment, told):
    with pytest.raises(UserError) as caught:
        launch(environment)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_group_that_cannot_be_made(monkeypatch):
    def fail(_):
        raise RuntimeError("the address is in use\nand more")

    monkeypatch.setattr("lobes.system.distributed.ddp_init_group", fail)
    with pytest.raises(UserError, match="cannot join each other .the address is in us"):
        join_processes(RunOptions())


@pytest.mark.fault(
    "F35",
    "torchrun with two processes",
    "equal weights on both, before and after the unfreeze and at the end, equal to "
    "those of one process with the same batches; no shared utterances",
)
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(case, tiny_corpus, tmp_path, torchrun):
    """Equal weights on both, and those of one process with the same batches."""
    yaml, changes = CASES[case]
    arguments = (tiny_corpus, tmp_path, yaml, json.dumps(changes))
    done = torchrun(PROGRAM, *arguments, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{i}.pt") for i in range(2)]
    for step, first in ranks[0]["states"].items():
        second = ranks[1]["states"][step]
        assert all(torch.equal(first[name], second[name]) for name in first), step
    for ours, theirs in zip(ranks[0]["seen"], ranks[1]["seen"], strict=True):
        for task in ours[0]:
            assert not set(ours[0][task]) & set(theirs[0][task])
        assert ours[1:] == theirs[1:], "the ranks weighted different losses"
    one, losses = one_process(yaml, changes, tiny_corpus, tmp_path)
    moved = set()
    for step, found in ranks[0]["states"].items():
        ours = ranks[0]["seen"][step - 1][1]
        assert ours == pytest.approx(losses[step - 1], rel=1e-5)
        # As a whole: where a gradient is rounding noise (the keys' bias, which the
        # softmax ignores), Adam makes steps of it.
        ours, theirs = (flat(state) for state in (found, one[step]))
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()
        moved = {n for n in found if not torch.equal(found[n], one[0][n])}
        frozen = step <= FREEZE_STEPS
        assert frozen != any("encoder.model.encoder" in name for name in moved)
    assert not any("feature_extractor" in name for name in moved)


def one_process(yaml, changes, corpus, folder):
    """States by step, and losses, of one process with the batches of both ranks."""
    settings = {"steps": STEPS, "valid_interval": STEPS, "freeze_steps": FREEZE_STEPS}
    settings.update(changes)
    parts = []
    for rank in range(2):
        system = tiny.brain(corpus, folder / f"part{rank}", yaml, **settings)
        system.rank, system.world_size = rank, 2
        parts.append(iter(system.prepare_training()))
    whole = tiny.brain(corpus, folder / "whole", yaml, **settings)
    whole.prepare_training()
    whole.on_fit_start()
    whole.modules.train()
    states, losses = {0: tiny.parameters(whole)}, []
    for step in range(1, STEPS + 1):
        batches = [next(part) for part in parts]
        whole.step = step
        tasks = batches[0]
        whole.fit_batch({task: joined([b[task] for b in batches]) for task in tasks})
        states[step] = tiny.parameters(whole)
        values = whole.step_values.items()
        losses.append([float(v) for n, v in values if n.endswith("_loss")])
    return states, losses


#: What each rank runs where gradients are accumulated as well.
DIVIDED = """
import json, sys, torch
from pathlib import Path
from tests.helpers import tiny
corpus, output, yaml = map(Path, sys.argv[1:4])
settings = json.loads(sys.argv[4])
system = tiny.brain(
    corpus, output / "run", yaml, options=["--distributed_backend=gloo"], **settings
)
# Not Adam, which makes steps of gradients that are rounding noise.
system.opt_class = torch.optim.SGD
sizes = []
fit_batch = system.fit_batch
def record(batch):
    sizes.append({task: len(b) for task, b in batch.items()})
    return fit_batch(batch)
system.fit_batch = record
tiny.fit(system)
torch.save({"weights": tiny.flat(system), "sizes": sizes}, output / f"{system.rank}.pt")
"""


@pytest.mark.fault(
    "A5",
    "two processes and a factor of 2 or 5, parts of different sizes",
    "the weights of one process without accumulation",
)
@pytest.mark.slow
@pytest.mark.parametrize(
    "variant, factor",
    # Batch norm and dynamic weights follow the parts, and want a factor of 1.
    [("pool_attentive", 1), *(("static_0.88_9s", factor) for factor in (1, 2, 5))],
)
def test_a_step_of_two_ranks_is_that_of_one(
    variant, factor, tiny_corpus, tmp_path, torchrun
):
    yaml = tiny.MTL.with_name(f"{variant}.yaml")
    settings = {"steps": 4, "valid_interval": 4, "freeze_steps": 1}
    settings |= {"lr": 0.01, "initial_lr": 0.01}
    budget = 250_000  # 12 utterances, 39 crops
    whole = tiny.brain(
        tiny_corpus, tmp_path / "one", yaml, max_batch_samples=budget, **settings
    )
    whole.opt_class = torch.optim.SGD
    start = tiny.flat(whole)
    tiny.fit(whole)
    settings |= {
        "max_batch_samples": budget // factor,
        "grad_accumulation_factor": factor,
    }
    arguments = (tiny_corpus, tmp_path, yaml, json.dumps(settings))
    done = torchrun(DIVIDED, *arguments, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    sizes = [rank["sizes"] for rank in ranks]
    assert len(sizes[0]) == 4 * factor
    crops = {step["speaker"] for rank in sizes for step in rank}
    assert len(crops) > 1, "all parts were of one size: nothing is shown"
    expected = tiny.flat(whole)
    moved = (expected - start).norm()
    assert moved > 0.1
    assert (ranks[0]["weights"] - expected).norm() < 1e-4 * moved


def flat(state):
    """All weights but the keys' biases in one vector."""
    names = [name for name in sorted(state) if not name.endswith("k_proj.bias")]
    return torch.cat([state[name].flatten().double() for name in names])


def joined(batches):
    """One batch of the utterances of several."""
    rows = [row for batch in batches for row in batch.wavs]
    labels = {}
    for name, label in batches[0].labels.items():
        found = [batch.labels[name] for batch in batches]
        if isinstance(label, tuple):
            texts = [row for text, _ in found for row in text]
            padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
            labels[name] = padded, torch.cat([lengths for _, lengths in found])
        else:
            labels[name] = torch.cat(found)
    return Batch(
        [name for batch in batches for name in batch.ids],
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        torch.cat([batch.lengths for batch in batches]),
        labels,
    )


@pytest.mark.slow
def test_the_gradient_is_that_of_one_process(tmp_path, torchrun):
    """Unequal batches: a mean of means would be wrong."""
    program = """
import json, os, sys, torch
import torch.distributed as dist
from lobes.system import distributed
from lobes.system.distributed import average_gradients, global_losses, join_processes
join_processes({"distributed_backend": "gloo"})
distributed.SMALL = 2  # one of each kind
# As beside nccl: a group of its own for what lies on the host.
distributed._host_group = dist.new_group(backend="gloo")
rank = dist.get_rank()
weight = torch.nn.Parameter(torch.tensor(2.0))
# LayerDrop: each rank left out another layer.
dropped = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
dropped[rank].grad = torch.tensor([2.0, 4.0])
data = torch.tensor([[1.0, 2.0, 6.0], [5.0]][rank])
losses = global_losses({"a": (weight * data).square().mean()}, {"a": len(data)})
losses["a"].backward()
average_gradients([weight, *dropped])
assert distributed.of_first_process(rank == 0) is True
assert distributed.of_first_process(rank == 1) is False
assert [d.grad is None for d in dropped] == [False, False, True]
assert all(d.grad.tolist() == [1.0, 2.0] for d in dropped[:2])
found = [float(losses["a"].detach()), float(weight.grad)]
# A file each: the ranks' lines on one standard output can run into each other.
with open(os.path.join(sys.argv[1], f"rank{rank}.json"), "w") as stream:
    json.dump(found, stream)
"""
    done = torchrun(program, tmp_path, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    squares = [1.0, 4.0, 36.0, 25.0]
    mean = sum(squares) / 4
    assert found == [[pytest.approx(4 * mean), pytest.approx(4 * mean)]] * 2
