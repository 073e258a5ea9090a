"""The exported encoder is the trained one, for us and for HuggingFace."""

import json

import pytest
import torch
from transformers import Wav2Vec2Model

from lobes.encoder import Wav2Vec2Encoder
from tests import tiny
from tools import export_encoder


@pytest.mark.parametrize("norm", [{}, tiny.LAYER_NORM], ids=["group", "layer"])
def test_it_is_the_trained_encoder(tiny_corpus, tmp_path, norm, capsys):
    run, out = tmp_path / "run", tmp_path / "encoder"
    system = tiny.brain(tiny_corpus, run, encoder=norm, steps=3, freeze_steps=0)
    tiny.fit(system)
    expected = system.hparams.encoder.model.state_dict()
    export_encoder.main([str(run), str(out), "--checkpoint=last"])
    assert "--source=" in capsys.readouterr().out
    ours = Wav2Vec2Encoder(source=str(out)).model.state_dict()
    theirs = Wav2Vec2Model.from_pretrained(out).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name
        if name in theirs:
            assert torch.equal(theirs[name], tensor), name
    assert len(ours) == len(expected)
    assert json.loads((out / "provenance.json").read_text())["step"] == 3
    with pytest.raises(SystemExit):
        export_encoder.main([str(run), str(out)])
    assert "holds a model already" in capsys.readouterr().err
