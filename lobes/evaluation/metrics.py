"""Metrics: what they are called, how they are written, and what chance reaches."""



from lobes.system.lazy import lazy

pandas = lazy("pandas")


#: A model whose metrics (percent) are all not below these has learnt nothing, as 8 of
#: the paper's 90 (WER 100 %, EER 49.9 to 50.4 %; Tables 4 to 6).
CHANCE = {"wer": 99.0, "eer": 45.0}


# Stands in a table where there is no value.
_NONE = "\N{EN DASH}"


# How the heading of a percentage ends.
_PERCENT = " (%)"


# Heading and format of the metrics that are known; others keep their names.
_METRICS = {
    "wer": ("WER (%)", ".2f"),
    "cer": ("CER (%)", ".2f"),
    "eer": ("EER (%)", ".2f"),
    "min_dcf_0.01": ("minDCF (p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.01)", ".3f"),
    "min_dcf_0.05": ("minDCF (p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.05)", ".3f"),
    "threshold": ("threshold", ".4f"),
    "trials": ("trials", ",d"),
    "positives": ("same-speaker trials", ",d"),
    "words": ("words", ",d"),
    "letters": ("letters", ",d"),
    "frames": ("frames", ",d"),
    "blank_frames": ("blank frames (%)", ".1f"),
    "false_rejections": ("false rejections (%)", ".2f"),
    "false_acceptances": ("false acceptances (%)", ".2f"),
    "utterances": ("utterances", ",d"),
    "insertions": ("insertions", ",d"),
    "deletions": ("deletions", ",d"),
    "substitutions": ("substitutions", ",d"),
    "score": ("selection score", ".2f"),
    "step": ("step", ",d"),
    "lr": ("learning rate", ".2e"),
}


# Error rates that a line of the summary and a tile begin with.
_RATES = ("wer", "cer", "eer")


def _heading(name):
    """What stands above a column of this metric."""
    if name in _METRICS:
        return _METRICS[name][0]
    return name.replace("_", " ")


def _format(name, value):
    """A metric's value without its unit."""
    # Losses and weights: four digits, zeros at the end included.
    form = _METRICS[name][1] if name in _METRICS else "#.4g"
    return format(int(value) if form == ",d" else value, form)


def _value(name, value):
    """A metric's value with its unit."""
    return _format(name, value) + (" %" if _heading(name).endswith(_PERCENT) else "")


def _named(name, value):
    """A metric in running text."""
    return f"{_heading(name).removesuffix(_PERCENT)} {_value(name, value)}"


def _cell(name, value):
    """A table's cell: a dash where there is no value."""
    return _NONE if pandas.isna(value) else _format(name, value)
