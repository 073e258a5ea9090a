"""Evaluate a trained multi-task model: WER, EER, minDCF.

python evaluate.py hparams/mtl.yaml
python evaluate.py ../../../results/LibriSpeech_VoxCeleb/MTL/mtl/42133724
"""

from lobes.runs.evaluate import main

if __name__ == "__main__":
    main()
