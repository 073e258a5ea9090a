"""An evaluation's files, as those who show or compare them read them."""

import csv
import json
from pathlib import Path

from lobes.system.lazy import lazy

csgraph = lazy("scipy.sparse.csgraph")
sparse = lazy("scipy.sparse")


def speakers_of(folder, name):
    """``{ID: speaker}`` of the utterances of a set or trial list of an evaluation.

    Empty where the evaluation's ``results.json`` and ``utterances_<set>.csv`` do not
    tell, as those made before there were such files.
    """
    folder = Path(folder)
    try:
        data = json.loads((folder / "results.json").read_text(encoding="utf-8"))["data"]
        known = [n for n, d in data.items() if name == n or name in d.get("lists", ())]
        with open(
            folder / f"utterances_{known[0]}.csv", encoding="utf-8", newline=""
        ) as stream:
            return {row["ID"]: row["speaker"] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError):
        return {}
