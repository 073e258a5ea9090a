"""Train one wav2vec2 encoder for speech and speaker recognition.

    python train.py hparams/mtl.yaml --librispeech_folder=... \
        --voxceleb2_folder=... --voxceleb1_folder=...

Every step takes a LibriSpeech and a VoxCeleb batch. Paper: "Multi-task learning
of speech and speaker recognition" (Vaessen and van Leeuwen).
"""

from collections.abc import Sequence

from lobes.errors import user_errors_exit
from lobes.runs.command_line import parse_arguments
from lobes.runs.experiment import start_experiment
from recipes.LibriSpeech.librispeech_prepare import prepare_librispeech
from recipes.VoxCeleb.voxceleb_prepare import check_voxceleb, prepare_voxceleb

#: Keys of the corpora that are prepared here.
CORPORA = ("librispeech", "voxceleb")


@user_errors_exit
def main(argv: Sequence[str] | None = None) -> None:
    """Prepare, train, evaluate."""
    hparams, run_opts, settings = parse_arguments(argv, corpora=CORPORA)
    # These take seconds: a wrong option is told before.
    from speechbrain.utils.distributed import run_on_main

    from lobes.runs import ledger
    from lobes.runs.evaluate import conclude, evaluate
    from lobes.training.brain import SpeechSpeakerBrain

    start_experiment(hparams, run_opts, settings)
    with ledger.entry(hparams, run_opts) as results:
        # LibriSpeech may take hours: what VoxCeleb lacks must not show up after them.
        check_voxceleb(**hparams["voxceleb"])
        run_on_main(prepare_librispeech, kwargs=hparams["librispeech"])
        run_on_main(prepare_voxceleb, kwargs=hparams["voxceleb"])

        brain = SpeechSpeakerBrain(hparams, run_opts, hparams["checkpointer"])
        brain.open_sets()
        brain.train()
        results.update(evaluate(brain, hparams))
    conclude(results, hparams)


if __name__ == "__main__":
    main()
