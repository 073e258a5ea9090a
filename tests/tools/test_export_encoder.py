"""The exported encoder is the trained one, for us and for HuggingFace."""

import json

import pandas
import pytest
import soundfile
import torch
from transformers import Wav2Vec2Model, pipeline

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


def test_with_the_speech_head_it_writes_the_same_letters(tiny_corpus, tmp_path):
    """Through transformers' pipeline, which reads, decodes and joins by itself."""
    run, out = tmp_path / "run", tmp_path / "ctc"
    system = tiny.brain(tiny_corpus, run, steps=30, freeze_steps=0, valid_interval=30)
    tiny.fit(system)
    system.test(system.hparams.test_sets, str(tmp_path))
    table = pandas.read_csv(tmp_path / "transcripts_test-other.csv", index_col="ID")
    texts = table["hypothesis"].fillna("")
    assert texts.any()
    export_encoder.main([str(run), str(out), "--ctc", "--checkpoint=last"])
    recognise = pipeline("automatic-speech-recognition", str(out), device="cpu")
    for identity, text in texts.items():
        wave, rate = soundfile.read(tiny_corpus / f"{identity}.wav", dtype="float32")
        found = recognise({"raw": wave, "sampling_rate": rate})["text"]
        assert " ".join(found.split()) == text, identity


def test_a_split_run_has_no_ctc_model(tiny_corpus, tmp_path, capsys):
    system = tiny.brain(tiny_corpus, tmp_path / "run", speaker_dims=8)
    tiny.fit(system)
    with pytest.raises(SystemExit):
        export_encoder.main([str(tmp_path / "run"), str(tmp_path / "out"), "--ctc"])
    assert "speaker_dims" in capsys.readouterr().err
