"""The paper's parameter counts, exactly, from the recipes' own YAML files.

On the meta device: wav2vec2-base as it is, without its weights.
"""

import pytest
import torch

from lobes.runs.command_line import parse_arguments
from lobes.runs.variants import load_variant
from lobes.system.checkout import ROOT
from lobes.training.brain import SpeechSpeakerBrain

CNN = 4_200_448

#: All parameters, and those of the heads; 5,994 speakers.
COUNTS = {
    "LibriSpeech/ASR/hparams/asr": (94_396_320, 24_608),
    "VoxCeleb/SpeakerRec/hparams/speaker": (98_975_104, 4_603_392),
    "VoxCeleb/SpeakerRec/hparams/speaker_first_cls": (98_975_104, 4_603_392),
    "LibriSpeech_VoxCeleb/MTL/hparams/mtl": (98_999_712, 4_628_000),
    "LibriSpeech_VoxCeleb/MTL/hparams/pool_first_cls": (98_999_712, 4_628_000),
    "LibriSpeech_VoxCeleb/MTL/hparams/pool_ctc_blank": (98_999_712, 4_628_000),
    "LibriSpeech_VoxCeleb/MTL/hparams/branch_9": (120_263_328, 4_628_000),
    "LibriSpeech_VoxCeleb/MTL/hparams/branch_6": (141_526_944, 4_628_000),
    "LibriSpeech_VoxCeleb/MTL/hparams/branch_3": (162_790_560, 4_628_000),
    "LibriSpeech_VoxCeleb/MTL/hparams/split_192": (95_541_024, 1_169_312),
    "LibriSpeech_VoxCeleb/MTL/hparams/split_384": (96_685_728, 2_314_016),
    "LibriSpeech_VoxCeleb/MTL/hparams/split_576": (97_830_432, 3_458_720),
}


@pytest.fixture
def load(tmp_path):
    """The settings of a recipe's file, with wav2vec2-base on the meta device."""

    def load(name):
        path = ROOT / "recipes" / f"{name}.yaml"
        folders = [k for k in load_variant(path)[0] if k.endswith("_folder")]
        given = [f"--{folder}={tmp_path}" for folder in folders]
        with torch.device("meta"):
            return parse_arguments([str(path), *given, "--encoder.source=null"])[0]

    return load


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize("name", COUNTS)
def test_totals(name, load):
    """Facts section 1: all, those that train, and those that train at first."""
    brain = SpeechSpeakerBrain(load(name), {"device": "meta"})
    brain.init_optimizers()
    total, heads = COUNTS[name]
    assert count(brain.modules.parameters()) == total
    assert count(brain.parameters) == total - CNN
    trainable = []
    for brain.optimizer_step in (0, 9_999, 10_000):
        brain.on_fit_batch_start({}, True)
        parameters = brain.modules.parameters()
        trainable.append(count(p for p in parameters if p.requires_grad))
    assert trainable == [heads, heads, total - CNN]


def test_pieces(load):
    """What the totals are made of."""
    hparams = load("LibriSpeech_VoxCeleb/MTL/hparams/mtl")
    encoder, tasks = hparams["encoder"], hparams["tasks"]
    model = encoder.model
    assert model.encoder.layers[0].attention.q_proj.weight.is_meta
    pieces = {
        encoder: 94_371_712,
        model.feature_extractor: CNN,
        model.feature_projection: 395_008,
        model.encoder.pos_conv_embed: 4_719_488,
        model.encoder.layer_norm: 1_536,
        **dict.fromkeys(model.encoder.layers, 7_087_872),
        tasks["speech"]: 24_608,
        tasks["speaker"]: 4_603_392,
    }
    assert {piece: count(piece.parameters()) for piece in pieces} == pieces
    assert len(model.encoder.layers) == 12
    assert model.masked_spec_embed.numel() == 768
