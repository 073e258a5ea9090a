"""Examples of transcripts: utterances whose errors are shown to people."""

import logging
from collections import Counter

import numpy as np

from lobes.system.lazy import lazy

edit_distance = lazy("speechbrain.utils.edit_distance")
pandas = lazy("pandas")
logger = logging.getLogger(__name__)


# Utterances whose WER differs by less (percent points) are examples of one kind.
_ALIKE = 10


def _aligned(folder, name):
    """Every utterance of a set aligned by SpeechBrain, the worst first.

    An empty list when the set has no transcripts that can be read.
    """
    path = folder / f"transcripts_{name}.csv"
    try:
        texts = pandas.read_csv(path, dtype=str, keep_default_na=False)
        identities = texts["ID"].tolist()
        references = [text.split() for text in texts["reference"]]
        hypotheses = [text.split() for text in texts["hypothesis"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError) as error:
        logger.warning("%s cannot be read: %r", path, error)
        return []
    rows = edit_distance.wer_details_for_batch(
        identities, references, hypotheses, compute_alignments=True
    )
    return sorted(rows, key=lambda row: (-row["WER"], row["key"]))


def _examples(rows, count, speakers=None):
    """``count`` of the sorted utterances, evenly spread over the error rate.

    The worst is among them. Evenly spread over the utterances, a good system's
    examples would hardly have an error to see. Of about equal ones those are taken
    whose speakers were shown least.
    """
    speakers, shown = speakers or {}, Counter()
    count, left, chosen = min(count, len(rows)), list(rows), []
    for rate in np.linspace(rows[0]["WER"], rows[-1]["WER"], count):

        def distance(row, rate=rate):
            off = abs(row["WER"] - rate)
            seen = shown[speakers.get(row["key"])] if speakers else 0
            return off // _ALIKE, seen, off

        nearest = min(left, key=distance)
        shown[speakers.get(nearest["key"])] += 1
        left.remove(nearest)
        chosen.append(nearest)
    return sorted(chosen, key=lambda row: (-row["WER"], row["key"]))


def _words(row):
    """Pairs (reference word, hypothesis word) in order; None where there is none."""
    reference, hypothesis = row["ref_tokens"], row["hyp_tokens"]
    for _, i, j in row["alignment"]:
        yield (
            None if i is None else reference[i],
            None if j is None else hypothesis[j],
        )
