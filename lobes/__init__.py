"""Building blocks shared by the recipes: one flat package, one topic per file."""

import os
import sys

# Figures are drawn into files alone. A backend that a notebook left in the environment
# of a command may not be installed here, and matplotlib would fail at import; within
# the notebook itself it stays the notebook's.
if not {"matplotlib", "IPython"} & sys.modules.keys():
    os.environ["MPLBACKEND"] = "agg"
