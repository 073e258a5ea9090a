"""What ``results.json`` holds: read with a check, and no set hides another."""

import json

import pytest

from lobes.errors import UserError
from lobes.evaluation.results import measured_sets, read_results, speakers_of


def test_the_speakers_of_an_evaluation(tmp_path):
    assert speakers_of(tmp_path, "veri_test2") == {}
    data = {"voxceleb1": {"lists": ["veri_test2"]}, "test-other": {"lists": []}}
    (tmp_path / "results.json").write_text(json.dumps({"data": data}))
    (tmp_path / "utterances_voxceleb1.csv").write_text("ID,speaker\nNA,nan\nb,s2\n")
    assert speakers_of(tmp_path, "veri_test2") == {"NA": "nan", "b": "s2"}
    assert speakers_of(tmp_path, "test-other") == {}, "its file is not there"


@pytest.mark.parametrize(
    "change",
    [{"sets": []}, {"sets": {"speech": {"test": 1.0}}}, {"data": {"test": None}}],
)
def test_results_of_another_form_are_refused(change, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(change))
    (key,) = change
    with pytest.raises(UserError, match=f"{path}: {key} is none of an evaluation"):
        read_results(tmp_path)
    assert speakers_of(tmp_path, "test") == {}


def test_two_tasks_may_have_a_set_of_one_name():
    """Each keeps its metrics; an interval is of the task that wrote the files."""
    interval = {"low": 1.0, "high": 3.0, "over": "speakers", "count": 9}
    first, second, third = measured_sets(
        {
            "sets": {
                "speech": {"test": {"wer": 1.0, "cer": 0.5}},
                "again": {"test": {"wer": 2.0}, "other": {"wer": 4.0}},
            },
            "intervals": {"test": {"wer": interval, "cer": interval}},
        }
    )
    assert first.metrics == {"wer": 1.0, "cer": 0.5} and second.metrics == {"wer": 2.0}
    assert (first.label, second.label) == ("test (speech)", "test (again)")
    assert (third.label, third.intervals) == ("other", {})
    assert first.intervals == {"cer": interval} and second.intervals == {
        "wer": interval
    }
