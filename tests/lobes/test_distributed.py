"""Two processes (gloo) train as one: fault case F35."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lobes.distributed import average_gradients, gather, global_losses
from tests import tiny

#: What each rank runs: train.py's steps, then its parameters in a file.
PROGRAM = """
import sys, torch
from pathlib import Path
from tests import tiny
corpus, output = map(Path, sys.argv[1:])
system = tiny.brain(
    corpus, output / "run", steps=6, valid_interval=3, freeze_steps=2,
    options=["--distributed_backend=gloo"],
)
seen = []
fit_batch = system.fit_batch
def record(batch):
    loss = fit_batch(batch)
    ids = {task: b.ids for task, b in batch.items()}
    norm = float(system.step_values["speech_loss"]), float(loss)
    seen.append((ids, norm))
    return loss
system.fit_batch = record
tiny.fit(system)
torch.save(
    {"parameters": tiny.parameters(system), "seen": seen},
    output / f"rank{system.rank}.pt",
)
"""


def test_one_process_needs_no_group():
    losses = {"speech": torch.tensor(1.0, requires_grad=True)}
    assert global_losses(losses, {"speech": 3}) is losses
    assert gather({"a": 1}) == {"a": 1}
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]


@pytest.mark.fault(
    "F35",
    "torchrun with two processes",
    "equal weights on both after the unfreeze and at the end; no shared utterances",
)
@pytest.mark.slow
def test_two_ranks_train_as_one(tiny_corpus, tmp_path, repository):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc_per_node=2", "--no_python", sys.executable, "-c", PROGRAM,
        str(tiny_corpus), str(tmp_path),
    ]  # fmt: skip
    result = subprocess.run(
        command,
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{i}.pt") for i in range(2)]
    first, second = (rank["parameters"] for rank in ranks)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    start = tiny.parameters(tiny.brain(tiny_corpus, tmp_path / "start"))
    moved = {name for name in first if not torch.equal(first[name], start[name])}
    assert any("encoder.model.encoder" in name for name in moved)
    assert not any("feature_extractor" in name for name in moved)
    for ours, theirs in zip(ranks[0]["seen"], ranks[1]["seen"], strict=True):
        for task in ours[0]:
            assert not set(ours[0][task]) & set(theirs[0][task])
        assert ours[1] == theirs[1], "the ranks weighted different losses"


@pytest.mark.fault(
    "F35",
    "unequal batches on two processes",
    "losses and gradients of one process with the same utterances",
)
@pytest.mark.slow
def test_the_gradient_is_that_of_one_process(tmp_path, repository):
    """Unequal batches: a mean of means would be wrong."""
    program = """
import json, os, sys, torch
import torch.distributed as dist
from lobes.distributed import average_gradients, global_losses, join_processes
join_processes({"distributed_backend": "gloo"})
rank = dist.get_rank()
weight = torch.nn.Parameter(torch.tensor(2.0))
# LayerDrop: each rank left out another layer.
dropped = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
dropped[rank].grad = torch.tensor([2.0, 4.0])
data = torch.tensor([[1.0, 2.0, 6.0], [5.0]][rank])
losses = global_losses({"a": (weight * data).square().mean()}, {"a": len(data)})
losses["a"].backward()
average_gradients([weight, *dropped])
assert [d.grad is None for d in dropped] == [False, False, True]
assert all(d.grad.tolist() == [1.0, 2.0] for d in dropped[:2])
found = [float(losses["a"].detach()), float(weight.grad)]
# A file each: the ranks' lines on one standard output can run into each other.
with open(os.path.join(sys.argv[1], f"rank{rank}.json"), "w") as stream:
    json.dump(found, stream)
"""
    result = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc_per_node=2", "--no_python", sys.executable, "-c", program,
            str(tmp_path),
        ],  # fmt: skip
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    squares = [1.0, 4.0, 36.0, 25.0]
    mean = sum(squares) / 4
    assert found == [[pytest.approx(4 * mean), pytest.approx(4 * mean)]] * 2
