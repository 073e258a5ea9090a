"""Evaluate trained speaker embeddings: EER, minDCF, scores.

python evaluate.py hparams/speaker.yaml
python evaluate.py ../../../results/VoxCeleb/SpeakerRec/speaker/42133724
"""

from lobes.runs.evaluate import main

if __name__ == "__main__":
    main()
