"""Metrics: what they are called, how they are written, and what chance reaches."""

import math

#: Error rates in percent, in the order in which they are shown.
RATES = ("wer", "cer", "eer")

#: Metrics whose lowest value is the best.
LOWER_IS_BETTER = (*RATES, "score")

#: A model whose metrics (percent) are all not below these has learnt nothing, as 8 of
#: the paper's 90 (WER 100 %, EER 49.9 to 50.4 %; Tables 4 to 6).
CHANCE = {"wer": 99.0, "eer": 45.0}

#: Stands in a table where there is no value.
NONE = "\N{EN DASH}"

# The heading of a percentage ends like this.
_PERCENT = " (%)"

# Headings of the metrics that are shown under another name than their own.
_HEADINGS = {
    "wer": "WER (%)",
    "cer": "CER (%)",
    "eer": "EER (%)",
    "min_dcf_0.01": "minDCF (p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.01)",
    "min_dcf_0.05": "minDCF (p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.05)",
    "positives": "same-speaker trials",
    "blank_frames": "blank frames (%)",
    "false_rejections": "false rejections (%)",
    "false_acceptances": "false acceptances (%)",
    "score": "selection score",
    "lr": "learning rate",
}

# How numbers are written; losses and weights, which are not here, get four digits.
_FORMATS = {
    **dict.fromkeys((*LOWER_IS_BETTER, "false_rejections", "false_acceptances"), ".2f"),
    **dict.fromkeys(("min_dcf_0.01", "min_dcf_0.05"), ".3f"),
    **dict.fromkeys(("step", "trials", "positives", "words", "letters"), ",d"),
    **dict.fromkeys(("frames", "utterances"), ",d"),
    **dict.fromkeys(("insertions", "deletions", "substitutions"), ",d"),
    "threshold": ".4f",
    "blank_frames": ".1f",
    "lr": ".2e",
}


def heading(metric: str) -> str:
    """What stands above a column, or beside an axis, of a metric."""
    return _HEADINGS.get(metric) or metric.replace("_", " ")


def title(metric: str) -> str:
    """The metric's heading without its unit."""
    return heading(metric).removesuffix(_PERCENT)


def number(metric: str, value: float | None) -> str:
    """A metric's value without its unit; a dash for None or NaN."""
    if value is None or math.isnan(value):
        return NONE
    form = _FORMATS.get(metric, "#.4g")
    return format(int(value) if form == ",d" else value, form)


def quantity(metric: str, value: float) -> str:
    """A metric's value with its unit."""
    return number(metric, value) + " %" * heading(metric).endswith(_PERCENT)


def phrase(metric: str, value: float) -> str:
    """A metric in running text: its name, its value and its unit."""
    return f"{title(metric)} {quantity(metric, value)}"
