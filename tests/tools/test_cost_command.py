"""What the command prints of its estimates."""

import re

import pytest

from lobes.system.checkout import ROOT
from tests.helpers import tiny
from tools import cost

DOCUMENT = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["mtl", "branch_3"])
def test_the_document_has_what_the_command_prints(name, capsys):
    cost.main([str(tiny.MTL.parent / f"{name}.yaml"), "--precision=bf16"])
    *_, row = capsys.readouterr().out.splitlines()
    assert row.removeprefix("| ") in DOCUMENT


def test_another_gpu_and_another_encoder(capsys):
    demo = str(tiny.MTL.parent / "demo.yaml")
    cost.main([demo, "--tflops=2", "--steps=300", "--freeze_steps=0"])
    header, _, row = capsys.readouterr().out.splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["| YAML"] == "| `demo`"
    hours = 300 * float(cells["TFLOP"]) / 2 / 3600
    assert float(cells["GPU h"]) == pytest.approx(hours, rel=0.05)
    assert re.fullmatch(r"1: \d\.\d", cells["12 GB"])


def test_a_key_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        cost.main([str(tiny.MTL), "--precison=bf16"])
    assert "--precison is neither a key" in capsys.readouterr().err
