"""Evaluate a trained speech recogniser: WER with alignments.

python evaluate.py hparams/asr.yaml
python evaluate.py ../../../results/LibriSpeech/ASR/asr/42133724
"""

from lobes.runs.evaluate import main

if __name__ == "__main__":
    main()
