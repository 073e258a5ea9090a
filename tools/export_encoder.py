"""Write the encoder of a trained run as a HuggingFace model folder.

    python tools/export_encoder.py RESULTS_FOLDER OUT [--checkpoint best|last|FOLDER]
                                                      [--ctc]

Any recipe takes the folder (config.json, model.safetensors) as `--encoder.source=OUT`,
and transformers' Wav2Vec2Model.from_pretrained loads it. With `--ctc` it also holds the
speech head and a processor: Wav2Vec2ForCTC and transformers' pipelines load it. Its
README.md says how to use the model, and what padding does to it in transformers.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from lobes.data.audio import SAMPLE_RATE
from lobes.errors import ArgumentParser, UserError, explanation, user_errors_exit
from lobes.runs.evaluate import load_checkpoint, load_run
from lobes.system.files import write_atomically
from lobes.system.lazy import lazy

torch = lazy("torch")
transformers = lazy("transformers")

#: The folder's README.
CARD = """# {title}

{what} of a training with speech-speaker-mtl, step {step}; `provenance.json` has its
validation. Load it with transformers' `{model}.from_pretrained`. Its input is 16 kHz
mono, every utterance with zero mean and unit variance.
{padding}"""

#: The README's warning if the first convolution has a group norm, as in wav2vec2-base.
PADDING = """
**Give it one utterance at a time.** The group norm of its first layer takes an
utterance's whole length, in transformers with the zeros that pad a batch: another
output{letters}. The model was trained without that effect: in speech-speaker-mtl
padding changes nothing. Utterances of one length may share a batch.
"""


@user_errors_exit
def main(argv: Sequence[str] | None = None):
    """The command; see the module's docstring."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="output folder of a training")
    parser.add_argument("out", help="folder to write; must not hold another model")
    which = "best (default), last, or a folder"
    parser.add_argument("--checkpoint", default="best", help=which)
    ctc = "with the speech head, as Wav2Vec2ForCTC"
    parser.add_argument("--ctc", action="store_true", help=ctc)
    options = parser.parse_args(argv)
    out = Path(options.out)
    if (out / "model.safetensors").exists():
        raise UserError(f"{out} holds a model already; name another folder")
    brain, hparams = load_run(options.run)
    meta = load_checkpoint(brain.checkpointer, options.checkpoint).meta
    model = hparams["encoder"].model
    if options.ctc:
        model = with_speech_head(hparams, out)
    _save(model, out)
    selecting = (*hparams["selection"], "score")
    provenance = {
        "made_by": "tools/export_encoder.py",
        "step": meta.get("step"),
        "validation": {name: v for name, v in meta.items() if name in selecting},
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    write_atomically(out / "provenance.json", json.dumps(provenance, indent=2) + "\n")
    write_atomically(out / "README.md", _card(model, options.ctc, meta.get("step")))
    size = (out / "model.safetensors").stat().st_size / 1e6
    told = f"{out}: step {provenance['step']}, {size:.1f} MB"
    print(f"{told}; use it with --encoder.source={out}")
    if _pads_badly(model):
        print(
            f"{out}/README.md: in transformers give it one utterance at a time; in a "
            "padded batch its group norm takes the padding for audio"
        )


def _save(model, out):
    """Write the model; an error of the disk becomes one line that names the folder."""
    try:
        model.save_pretrained(out)
    except Exception as error:
        # The library names no file when a disk is full.
        told = explanation(error)
        if told is None:
            raise
        raise UserError(told if str(out) in told else f"{out}: {told}") from error


def _pads_badly(model):
    """Whether a padded batch in transformers gives another output."""
    return model.config.feat_extract_norm == "group"


def _card(model, ctc, step):
    """The README of a folder."""
    title, what, letters = (
        ("A CTC model", "Encoder and speech head", ", and often other words")
        if ctc
        else ("A wav2vec2 encoder", "The encoder", "")
    )
    padding = PADDING.format(letters=letters) if _pads_badly(model) else ""
    return CARD.format(
        title=title, what=what, model=type(model).__name__, step=step, padding=padding
    )


def with_speech_head(hparams: dict, out: Path) -> "transformers.Wav2Vec2ForCTC":
    """The trained encoder and speech head in one; writes its processor into ``out``.

    Raises ``UserError`` for a run that HuggingFace's model cannot express.
    """
    encoder, speech = hparams["encoder"], hparams["tasks"].get("speech")
    if speech is None or encoder.class_token is not None or encoder.speaker_dims:
        raise UserError(
            f"{hparams['output_folder']}: --ctc needs a speech task on whole frames "
            "without a class token (speaker_dims and class_token null); export the "
            "encoder alone"
        )
    symbols = speech.vocabulary.symbols
    config = encoder.model.config
    config.vocab_size = len(symbols)
    config.pad_token_id = speech.vocabulary.blank_index
    with torch.device("meta"):
        model = transformers.Wav2Vec2ForCTC(config)
    model.wav2vec2 = encoder.model
    model.lm_head = speech.linear
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    write_atomically(out / "vocab.json", json.dumps(vocabulary) + "\n")
    transformers.Wav2Vec2Processor(
        # wav2vec2's own models with group norm were trained without a mask, too.
        transformers.Wav2Vec2FeatureExtractor(
            sampling_rate=SAMPLE_RATE,
            return_attention_mask=config.feat_extract_norm == "layer",
        ),
        transformers.Wav2Vec2CTCTokenizer(str(out / "vocab.json")),
    ).save_pretrained(out)
    return model


if __name__ == "__main__":
    main()
