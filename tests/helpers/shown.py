"""Transcripts to judge, and changes to the files of an evaluated run."""

import json

from lobes.evaluation.significance import Words, error_counts


def words(references, hypotheses):
    """``Words`` of some transcripts."""
    return Words(
        [f"u{i}" for i in range(len(references))],
        references,
        hypotheses,
        wer=error_counts(*([t.split() for t in s] for s in (references, hypotheses))),
        cer=error_counts(references, hypotheses),
    )


def change_results(folder, **values):
    """Set keys of ``results.json``; returns what it then holds."""
    path = folder / "results.json"
    results = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps(results))
    return results


def write_transcripts(folder, *rows):
    """Write pairs (reference, hypothesis) as the transcripts of test-other."""
    lines = [f"u{n},{reference},{hyp}" for n, (reference, hyp) in enumerate(rows)]
    text = "\n".join(["ID,reference,hypothesis", *lines]) + "\n"
    (folder / "transcripts_test-other.csv").write_text(text, encoding="utf-8")
