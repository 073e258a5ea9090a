"""A small YAML with a value of every kind, and how its command lines are tried."""

from pathlib import Path

import pytest

from lobes.errors import UserError
from lobes.runs.command_line import parse_arguments
from lobes.system.checkout import ROOT

MTL = ROOT / "recipes" / "LibriSpeech_VoxCeleb" / "MTL" / "hparams" / "mtl.yaml"
FOLDERS = ("librispeech", "voxceleb2", "voxceleb1")
SMALL = (
    "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
    "intermediate_size: 16, conv_dim: [8, 8, 8, 8, 8, 8, 8], "
    "num_conv_pos_embeddings: 16, num_conv_pos_embedding_groups: 2}"
)

BASE = """\
seed: 7
data_folder: !PLACEHOLDER   # where the corpus is
output_folder: null
prepared_folder: null
csv_folder: !ref <prepared_folder>/X
lr: 1.0e-4
steps: 100
name: base
shuffle: True
threads: null
tensorboard: False
splits: [a, b]
size: 3
sizes: {x: 1}
nothing: null
thing: !new:types.SimpleNamespace
    lr: !ref <lr>
user: !new:types.SimpleNamespace
    thing: !ref <thing>
maker: !name:types.SimpleNamespace
    lr: 1
"""


def load(path, *options, changes=None):
    """The hparams of a command line, its placeholder filled."""
    argv = [str(path), "--data_folder=d", *options]
    return parse_arguments(argv, changes)[0]


def problem(path, *options):
    """The one-line message of a wrong command line."""
    with pytest.raises(UserError) as caught:
        load(path, *options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def folder(path, *options):
    """The computed output folder, relative to ``results``."""
    return Path(load(path, *options)["output_folder"]).relative_to(ROOT / "results")
