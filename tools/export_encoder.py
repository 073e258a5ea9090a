"""Write the encoder of a trained run as a HuggingFace model folder.

    python tools/export_encoder.py RESULTS_FOLDER OUT [--checkpoint best|last|FOLDER]

The folder (config.json, model.safetensors) serves as `--source=OUT` of any recipe,
and loads with transformers' Wav2Vec2Model.from_pretrained.
"""

import argparse
import json
from pathlib import Path

from lobes.errors import UserError, user_errors_exit
from lobes.evaluation import load_checkpoint, load_run
from lobes.files import write_atomically


@user_errors_exit
def main(argv=None):
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description="Write the encoder of a trained run as a HuggingFace model folder.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="output folder of a training")
    parser.add_argument("out", help="folder to write; must not hold another model")
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last, or a folder"
    )
    options = parser.parse_args(argv)
    out = Path(options.out)
    if (out / "model.safetensors").exists():
        raise UserError(f"{out} holds a model already; name another folder")
    brain, hparams = load_run(options.run)
    found = load_checkpoint(brain.checkpointer, options.checkpoint)
    model = hparams["encoder"].model
    model.save_pretrained(out)
    provenance = {
        "made_by": "tools/export_encoder.py",
        "step": found.meta.get("step"),
        "validation": {
            n: v for n, v in found.meta.items() if n in brain_metrics(brain)
        },
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    text = json.dumps(provenance, indent=2) + "\n"
    write_atomically(out / "provenance.json", text)
    size = (out / "model.safetensors").stat().st_size / 1e6
    print(
        f"{out}: step {provenance['step']}, {size:.1f} MB; use it with --source={out}"
    )


def brain_metrics(brain):
    """Names of the validation metrics that a checkpoint of this run carries."""
    return (*brain.hparams.selection, "score")


if __name__ == "__main__":
    main()
