"""The report on what a preparation made of a corpus, as JSON and as a table."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lobes.preparation.folders import LeftOut
from lobes.preparation.outputs import CsvCounts, TrialCounts
from lobes.preparation.published import TRIALS, official_count
from lobes.system.files import read_rows, write_atomically
from lobes.system.terminal import say

FILE_NAME = "prepare_report.json"


def write_report(
    save_folder: str | Path,
    corpus: str,
    counts: Mapping[str, CsvCounts | TrialCounts],
    parts: Mapping[str, Sequence[str]],
    official: Mapping[tuple[str, ...], Sequence[str]],
    left_out: Mapping[str, LeftOut],
) -> None:
    """Write ``prepare_report.json`` and say it as a table on standard error.

    The report is that of the last call: the same files give the same report.

    Arguments:
        counts: By file name.
        parts: The outputs of each part; where there is a ``<part>.skipped.csv``, it
            lists what is not in them.
        official: Names of published splits by the CSVs that hold them. Trial lists are
            known by their names.
        left_out: What lies in the corpus and is no utterance, by part.
    """
    report = {
        "corpus": corpus,
        "files": counts,
        "skipped": {
            part: _reasons(path)
            for part, names in parts.items()
            if any(counts.get(name, {}).get("skipped") for name in names)
            and (path := Path(save_folder) / f"{part}.skipped.csv").is_file()
        },
        "left_out": {
            part: kinds for part, rest in left_out.items() if (kinds := rest.counts())
        },
        "official": _compared(counts, official),
    }
    path = Path(save_folder) / FILE_NAME
    text = json.dumps(report, indent=1) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
    say(report_table(report))


def report_table(report: dict) -> str:
    """A report as lines of text.

    What is not of the published size is no fault: it may be a part of the corpus, or
    another one in its layout.
    """
    lines = [
        f"{'file':<24} {'speakers':>8} {'utterances':>10} {'hours':>9} {'skipped':>7}"
    ]
    for name, count in report["files"].items():
        if "trials" in count:
            lines.append(
                f"{name:<24} {count['trials']} trials "
                f"({count['positives']} positive, {count['negatives']} negative)"
            )
        else:
            lines.append(
                f"{name:<24} {count['speakers']:>8} {count['utterances']:>10} "
                f"{count['hours']:>9.2f} {count['skipped']:>7}"
            )
    for part, reasons in report["skipped"].items():
        for reason, number in reasons.items():
            lines.append(f"skipped of {part}: {number:,}: {reason}")
    for part, kinds in report["left_out"].items():
        for kind, number in kinds.items():
            lines.append(f"left out of {part}: {number:,} {kind}")
    for one in report["official"]:
        numbers = [
            f"{prepared:,} of {published:,} {what}"
            for what, (prepared, published) in one["counts"].items()
        ]
        lines.append(f"{one['files']}: {', '.join(numbers)} of {one['published']}")
    return "\n".join(lines)


def reason_kind(reason: str) -> str:
    """A reason without what differs between files: numbers, details, the remedy.

    >>> reason_kind("it has 399 samples, fewer than the 400 needed; leave it out")
    'it has N samples, fewer than the N needed'
    """
    reason = re.sub(r" \([^()]*\)", "", reason)
    return re.sub(r"\b\d+\b", "N", re.split("[;:] ", reason, maxsplit=1)[0])


def _reasons(path):
    """How often each kind of reason stands in a list of the skipped."""
    rows = read_rows(path, ["reason"], "delete the list, and prepare again")
    kinds = sorted(reason_kind(row["reason"]) for row in rows)
    return dict(Counter(kinds).most_common())


def _compared(counts, official):
    """Entries ``{files, published, counts: {what: [prepared, published]}}``."""
    compared = []
    for files, splits in official.items():
        if published := official_count(*splits):
            names = [split.rpartition("/")[2] for split in splits]
            title = f"{splits[0].partition('/')[0]} {' + '.join(names)}"
            held = {
                "utterances": sum(counts[name]["utterances"] for name in files),
                # A validation split has speakers of its training split.
                "speakers": counts[files[0]]["speakers"],
            }
            compared.append((files, title, held, published))
    for name, count in counts.items():
        if "trials" in count and name in TRIALS:
            held = {"positives": count["positives"], "negatives": count["negatives"]}
            compared.append(((name,), f"VoxCeleb1's {name}", held, TRIALS[name]))
    return [
        {
            "files": " + ".join(files),
            "published": title,
            "counts": {what: [held[what], getattr(published, what)] for what in held},
        }
        for files, title, held, published in compared
    ]
