"""What the demo's corpus says, and with which voices."""

import dataclasses
import itertools
import string
import zlib

import numpy as np

SEED = 1234


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything: speakers, [recordings,] utterances of each.

    ``train``, ``dev`` and ``test`` (LibriSpeech's train-clean-100, dev-other and
    test-other) are (speakers, utterances per speaker); ``vox2`` and ``vox1`` are
    (speakers, videos per speaker, utterances per video). ``trials`` is the length
    of each of the two lists, half of which are positive.
    """

    train: tuple = (40, 40)
    dev: tuple = (8, 8)
    test: tuple = (10, 10)
    vox2: tuple = (100, 4, 4)
    vox1: tuple = (40, 4, 3)
    trials: int = 4000


#: A corpus for tests, made in a few seconds.
SMALL = Sizes((4, 6), (2, 3), (2, 3), (6, 3, 2), (4, 2, 3), 40)

# ---------------------------------------------------------------- sentences

# "A" fits before every word that may follow it: none starts with a vowel.
_WHO = ("I", "WE", "THEY")
_THE = ("THE", "A", "MY", "HIS")
_KIND = ("YOUNG", "SMALL", "QUIET", "LAZY")
_PERSON = ("MAN", "WOMAN", "DOCTOR", "FARMER", "JUDGE")
_LOOK = ("RED", "SMALL", "LONG")
_THING = ("BOOK", "DOG", "HORSE", "BOAT", "FOX", "LAMP")
_PLACE = ("RIVER", "HOUSE", "GARDEN", "VILLAGE")
_DID = ("SAW", "FOUND", "BOUGHT", "PAINTED")
_NOT = ("DON'T NEED", "DON'T SEE", "CAN'T SEE", "CAN'T FIND")
_WENT = ("WALKED", "RAN")
_NEAR = ("TO", "NEAR")
_WHEN = ("TODAY", "AGAIN")

_TEMPLATES = (
    (_WHO, _DID, _THE, _THING),
    (_WHO, _DID, _THE, _LOOK, _THING),
    (_WHO, _DID, _THE, _THING, _WHEN),
    (_WHO, _NOT, _THE, _THING),
    (_WHO, _NOT, _THE, _LOOK, _THING),
    (_WHO, _WENT, _NEAR, _THE, _PLACE),
    (_THE, _PERSON, _WENT, _NEAR, _THE, _PLACE),
    (_THE, _PERSON, _DID, _THE, _THING),
    (_THE, _KIND, _PERSON, _DID, _THE, _THING),
)

#: Where a sentence belongs is a matter of its letters alone, so no choice of
#: seed or sizes can carry one from training into a test. ``pretraining`` is
#: what the demo's own encoder was made from.
PARTS = ("pretraining", "train", "dev", "test")


def part_of(sentence: str) -> str:
    """``pretraining``, ``train`` (four of ten), ``dev`` or ``test`` (one of ten)."""
    tenth = zlib.crc32(sentence.encode("ascii")) % 10
    return {8: "dev", 9: "test"}.get(tenth, "pretraining" if tenth < 4 else "train")


def sentences() -> dict[str, list[list[str]]]:
    """All sentences: ``{part: [[sentence, ...] of each template]}``."""
    parts = {part: [[] for _ in _TEMPLATES] for part in PARTS}
    for number, template in enumerate(_TEMPLATES):
        for sentence in map(" ".join, itertools.product(*template)):
            parts[part_of(sentence)][number].append(sentence)
    return parts


def _draw(rng, templates, count, clauses):
    """``count`` different utterances, tuples of ``clauses`` sentences.

    Each template is as likely as any other; the longest are not put together.
    """
    if clauses > 1:
        templates = [t for t in templates if len(t[0].split()) < 6]
    drawn = {}
    while len(drawn) < count:
        picked = (templates[i] for i in rng.integers(len(templates), size=clauses))
        drawn[tuple(t[rng.integers(len(t))] for t in picked)] = None
    return list(drawn)


# --------------------------------------------------------------------- plan


@dataclasses.dataclass(frozen=True)
class Group:
    """Speakers of one data set, and what their recordings are like."""

    name: str
    key: int  # enters the random seeds; voices of two groups never coincide
    part: str
    first_id: int
    clauses: int  # sentences in an utterance
    rate: tuple  # range of the speakers' usual words per minute
    channel: float  # strength of the channel simulation, 1 for the full one


# LibriSpeech is read: slower and cleaner than what people say to VoxCeleb's
# cameras. In an utterance of two sentences a short pause divides them.
_READ, _TALK = (1, (121, 146), 0.5), (2, (137, 158), 1.0)
GROUPS = {
    "train": Group("LibriSpeech/train-clean-100", 1, "train", 101, *_READ),
    "dev": Group("LibriSpeech/dev-other", 2, "dev", 4001, *_READ),
    "test": Group("LibriSpeech/test-other", 3, "test", 7001, *_READ),
    "vox2": Group("VoxCeleb2/dev", 4, "train", 12, *_TALK),
    "vox1": Group("VoxCeleb1", 5, "test", 10270, *_TALK),
}


@dataclasses.dataclass(frozen=True)
class Recording:
    """What one chapter or video holds: files relative to the corpus, and texts."""

    name: str
    files: tuple
    texts: tuple


@dataclasses.dataclass(frozen=True)
class Speaker:
    """One voice and everything it says."""

    group: str
    id: str
    sex: str
    seed: tuple
    accent: str
    variant: str
    recordings: tuple[Recording, ...]

    @property
    def variant_name(self) -> str:
        """The name of the voice variant.

        espeak-ng takes a name of digits alone for no variant at all, without a word:
        all LibriSpeech readers would have its default voice.
        """
        return f"v{self.id}"

    @property
    def files(self) -> list[str]:
        """All that it says, relative to the corpus."""
        return [file for recording in self.recordings for file in recording.files]


def plan(seed: int, sizes: Sizes, pretraining: bool = False) -> list[Speaker]:
    """All speakers of a corpus; none depends on how many others there are.

    With ``pretraining`` everybody says sentences that no other corpus has.
    """
    spoken = sentences()
    speakers = []
    for name, group in GROUPS.items():
        size = getattr(sizes, name)
        for index in range(size[0]):
            key = (seed, group.key, index)
            rng = np.random.default_rng(key)
            sex = "FM"[index % 2]
            variant = _voice(rng, sex)
            accent = "gmw/en-US" if rng.random() < 0.75 else "gmw/en"
            layout = _librispeech if len(size) == 2 else _voxceleb
            identity, names = layout(rng, group, index, size[1:])
            files = [file for _, inside in names for file in inside]
            part = "pretraining" if pretraining else group.part
            drawn = iter(_draw(rng, spoken[part], len(files), group.clauses))
            recordings = tuple(
                Recording(recording, tuple(inside), tuple(next(drawn) for _ in inside))
                for recording, inside in names
            )
            speakers.append(
                Speaker(name, identity, sex, key, accent, variant, recordings)
            )
    return speakers


def _librispeech(rng, group, index, size):
    """Speaker, and chapters of at most about ten files, at least two chapters."""
    speaker = str(group.first_id + index)
    (count,) = size
    chapters = min(count, max(2, round(count / 10)))
    names = []
    for number, part in enumerate(np.array_split(np.arange(count), chapters)):
        # Unique over all speakers and subsets, as LibriSpeech's are.
        chapter = str(100000 + 10000 * number + int(speaker))
        folder = f"{group.name}/{speaker}/{chapter}"
        files = [f"{folder}/{speaker}-{chapter}-{n:04d}.flac" for n in range(len(part))]
        names.append((chapter, files))
    return speaker, names


def _voxceleb(rng, group, index, size):
    """Speaker, and videos with names of eleven characters."""
    speaker = f"id{group.first_id + index:05d}"
    videos, utterances = size
    letters = list(string.ascii_letters + string.digits)
    names = []
    for _ in range(videos):
        video = "".join(rng.choice(letters, 11))
        folder = f"{group.name}/wav/{speaker}/{video}"
        names.append((video, [f"{folder}/{n + 1:05d}.wav" for n in range(utterances)]))
    return speaker, names


def _voice(rng, sex):
    """An espeak-ng voice variant: pitch, vocal tract and voice quality.

    Pitch is in Hz, all that concerns formants in percent of the base voice's,
    which is a man's.
    """
    female = sex == "F"
    pitch = rng.uniform(155, 235) if female else rng.uniform(78, 138)
    # A shorter vocal tract moves all formants up.
    tract = rng.uniform(106, 122) if female else rng.uniform(91, 107)
    lines = [
        "language variant",
        f"gender {'female' if female else 'male'}",
        f"pitch {pitch:.0f} {pitch * rng.uniform(1.2, 1.55):.0f}",
        f"formant 0 {tract:.0f} {rng.uniform(85, 115):.0f} 100",
    ]
    for number in range(1, 9):
        place = tract * rng.normal(1, 0.025 if number < 3 else 0.045)
        height = rng.uniform(75, 120) if number < 6 else rng.uniform(40, 120)
        width = rng.uniform(75, 150)
        lines.append(f"formant {number} {place:.0f} {height:.0f} {width:.0f}")
    lines += [
        f"roughness {rng.integers(0, 4)}",
        f"flutter {rng.integers(0, 9)}",
        f"voicing {rng.uniform(75, 115):.0f}",
        f"consonants {rng.uniform(70, 120):.0f} {rng.uniform(80, 120):.0f}",
        f"intonation {rng.integers(1, 4)}",
        # Amplitude at three frequencies: dark to bright voices.
        f"tone 600 {rng.uniform(140, 200):.0f} 1300 {rng.uniform(90, 170):.0f} "
        f"2800 {rng.uniform(60, 150):.0f}",
    ]
    if rng.random() < 0.4:
        breath = rng.uniform(1, 8)
        values = [0, *(breath * rng.uniform(0.5, 1.2, 7))]
        lines.append("breath " + " ".join(f"{value:.0f}" for value in values))
    return "\n".join(lines) + "\n"
