"""Train a wav2vec2 encoder for speaker recognition alone (AAM-softmax).

    python train.py hparams/speaker.yaml --voxceleb2_folder=... --voxceleb1_folder=...

The single-task baseline of the multi-task recipe, with the same Brain.
"""

from collections.abc import Sequence

from lobes.errors import user_errors_exit
from lobes.runs.command_line import parse_arguments
from lobes.runs.experiment import start_experiment
from recipes.VoxCeleb.voxceleb_prepare import prepare_voxceleb

#: Keys of the corpora that are prepared here.
CORPORA = ("voxceleb",)


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
        run_on_main(prepare_voxceleb, kwargs=hparams["voxceleb"])

        brain = SpeechSpeakerBrain(hparams, run_opts, hparams["checkpointer"])
        brain.open_sets()
        brain.train()
        results.update(evaluate(brain, hparams))
    conclude(results, hparams)


if __name__ == "__main__":
    main()
