"""The exported encoder is the trained one, for us and for HuggingFace."""

import json

import pandas
import pytest
import soundfile
import torch
from transformers import Wav2Vec2ForCTC, Wav2Vec2Model, pipeline

from lobes.model.encoder import Wav2Vec2Encoder
from tests.helpers import tiny
from tools import export_encoder


@pytest.mark.parametrize("norm", [{}, tiny.LAYER_NORM], ids=["group", "layer"])
def test_it_is_the_trained_encoder(tiny_corpus, tmp_path, norm, capsys):
    run, out = tmp_path / "run", tmp_path / "encoder"
    system = tiny.brain(tiny_corpus, run, encoder=norm, steps=3, freeze_steps=0)
    tiny.fit(system)
    expected = system.hparams.encoder.model.state_dict()
    export_encoder.main([str(run), str(out), "--checkpoint=last"])
    printed = capsys.readouterr().out
    assert "--encoder.source=" in printed
    card = (out / "README.md").read_text()
    assert "Wav2Vec2Model.from_pretrained" in card and "step 3" in card
    # Layer norm has no such trouble.
    assert ("one utterance at a time" in card) == (norm == {})
    assert ("one utterance at a time" in printed) == (norm == {})
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


@pytest.mark.fault(
    "D9",
    "an exported group-norm CTC model in HuggingFace's padded batches",
    "the tool and the folder's README.md say: one utterance at a time",
)
def test_the_card_says_what_padding_does(tiny_corpus, tmp_path, capsys):
    """And it is true: in transformers padding changes the output, here it does not."""
    run, out = tmp_path / "run", tmp_path / "ctc"
    tiny.fit(tiny.brain(tiny_corpus, run, steps=3, freeze_steps=0))
    export_encoder.main([str(run), str(out), "--ctc", "--checkpoint=last"])
    assert "takes the padding for audio" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "one utterance at a time" in card and "other words" in card
    model = Wav2Vec2ForCTC.from_pretrained(out).eval()
    wavs = torch.randn(1, 9000)
    padded = torch.nn.functional.pad(wavs, (0, 7000))
    ours = Wav2Vec2Encoder(source=str(out)).eval()
    with torch.no_grad():
        alone, together = model(wavs).logits[0], model(padded).logits[0]
        frames = [
            ours(w, torch.tensor([9000])).speech[0, : len(alone)]
            for w in (wavs, padded)
        ]
    assert (together[: len(alone)] - alone).abs().max() > 1e-2
    torch.testing.assert_close(*frames, rtol=0, atol=1e-5)


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
