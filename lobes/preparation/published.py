"""What the published corpora hold, to compare a preparation with."""

from typing import NamedTuple


class Count(NamedTuple):
    """Speakers and utterances of a split."""

    speakers: int
    utterances: int


class ListCount(NamedTuple):
    """Positive and negative trials of a list."""

    positives: int
    negatives: int


#: ``corpus/split`` to ``Count``.
#:
#: LibriSpeech: speakers from Panayotov et al., "Librispeech" (ICASSP 2015), table 1;
#: utterances from the dataset card of openslr/librispeech_asr.
#: VoxCeleb: Chung et al., "VoxCeleb2" (arXiv:1806.05622), and the summary table of
#: PaddleSpeech's examples/voxceleb; all of VoxCeleb1 is its dev and test together.
COUNTS = {
    "LibriSpeech/train-clean-100": Count(251, 28_539),
    "LibriSpeech/train-clean-360": Count(921, 104_014),
    "LibriSpeech/train-other-500": Count(1_166, 148_688),
    "LibriSpeech/dev-clean": Count(40, 2_703),
    "LibriSpeech/dev-other": Count(33, 2_864),
    "LibriSpeech/test-clean": Count(40, 2_620),
    "LibriSpeech/test-other": Count(33, 2_939),
    "VoxCeleb1/dev": Count(1_211, 148_642),
    "VoxCeleb1/test": Count(40, 4_874),
    "VoxCeleb2/dev": Count(5_994, 1_092_009),
}

#: Name of a VoxCeleb1 list to ``ListCount``; a 2 at the end of a name marks the cleaned
#: list. From the summary table of PaddleSpeech's examples/voxceleb.
TRIALS = {
    "veri_test.txt": ListCount(18_860, 18_860),
    "veri_test2.txt": ListCount(18_802, 18_809),
    "list_test_all.txt": ListCount(290_743, 290_737),
    "list_test_all2.txt": ListCount(289_921, 289_897),
    "list_test_hard.txt": ListCount(276_270, 276_266),
    "list_test_hard2.txt": ListCount(275_488, 275_406),
}


def official_count(*splits: str) -> Count | None:
    """``Count`` of several splits together, or None where one is unknown.

    No two published splits share a speaker.
    """
    if not splits or any(split not in COUNTS for split in splits):
        return None
    return Count(*map(sum, zip(*(COUNTS[split] for split in splits), strict=True)))
