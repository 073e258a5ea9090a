"""The building blocks of all recipes, one room per subject.

    errors.py     errors that a user can cause, and the line that each ends in
    system/       the machine: files, locks, signals, processes, the terminal
    settings/     every setting: kind, range and unit, and what it counts for
    data/         audio, utterance CSVs and trial lists; streams of batches from them
    preparation/  a corpus as published becomes CSVs and trial lists; the demo's corpus
    evaluation/   transcripts and scores become metrics, intervals, figures, a report
    model/        the encoder, poolings, heads with their losses, weights of the losses
    training/     the Brain and its step, learning rate, stopping, checkpoints
    runs/         a command line becomes a run; its evaluation, ledger, grid and cost

A room imports only from the rooms above it; preparation and evaluation do not know
each other, nor do model and training. ``docs/architecture.md`` shows how they work
together.
"""

import os
import sys

# We draw figures into files only. A notebook leaves its backend in the environment of
# the commands that it starts. That backend may not be installed here, and matplotlib
# would then fail at import. Within the notebook itself the backend stays.
if not {"matplotlib", "IPython"} & sys.modules.keys():
    os.environ["MPLBACKEND"] = "agg"
