"""The corpora's sizes agree with the totals that are published elsewhere."""

from lobes.preparation.published import TRIALS, Count, official_count

HOURS_960 = ["train-clean-100", "train-clean-360", "train-other-500"]


def test_known_totals():
    splits = [f"LibriSpeech/{name}" for name in HOURS_960]
    assert official_count(*splits) == Count(2338, 281_241)
    assert official_count("VoxCeleb1/dev", "VoxCeleb1/test") == Count(1251, 153_516)
    assert official_count("VoxCeleb2/dev") == Count(5994, 1_092_009)
    totals = {name: sum(count) for name, count in TRIALS.items()}
    assert totals == {
        "veri_test.txt": 37_720,
        "veri_test2.txt": 37_611,
        "list_test_all.txt": 581_480,
        "list_test_all2.txt": 579_818,
        "list_test_hard.txt": 552_536,
        "list_test_hard2.txt": 550_894,
    }


def test_an_unknown_split_has_no_total():
    assert official_count("LibriSpeech/dev-other", "LibriSpeech/own") is None
    assert official_count() is None
