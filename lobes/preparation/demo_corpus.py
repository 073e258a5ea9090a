"""A small LibriSpeech, VoxCeleb1 and VoxCeleb2, spoken by espeak-ng."""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from lobes.data.audio import SAMPLE_RATE
from lobes.errors import UserError
from lobes.preparation.demo_plan import GROUPS, SEED, Sizes, plan
from lobes.preparation.demo_voices import installed_espeak, speak_all
from lobes.system.files import write_atomically
from lobes.system.locks import one_writer
from lobes.system.machine import usable_cores

#: File in the corpus folder that says what it holds; written last.
MARKER = "corpus.json"

#: Goes up when the same options make other files, so that old ones are rebuilt.
GENERATOR = 3

TOOL = "tools/demo_corpus.py"


def make_demo_corpus(
    out: str | Path,
    seed: int = SEED,
    jobs: int | None = None,
    sizes: Sizes | None = None,
    progress: bool = False,
    pretraining: bool = False,
) -> dict:
    """Make the corpus in ``out`` unless it is there already.

    The files are a function of ``seed`` and ``sizes`` (and of the versions of
    espeak-ng and numpy), not of ``jobs``. They are written to a folder
    ``<out>.part`` that takes its final name when all is there.

    Arguments:
        out: Gets the folders ``LibriSpeech``, ``VoxCeleb1``, ``VoxCeleb2``. A folder
            that this function made with other options is replaced.
        seed: Not negative; all voices, sentences and channels follow from it.
        jobs: Processes at a time; None for one per usable core.
        sizes: None for the defaults; ``SMALL`` for tests.
        progress: Show a progress bar on standard error.
        pretraining: Say sentences that no corpus without this option has.

    Returns:
        The content of ``<out>/corpus.json``: options, versions, speakers, utterances
        and hours of each data set; with ``made`` True where the corpus was made by this
        call and False where it was there.

    Raises ``UserError`` when ``out`` holds anything else than a corpus of this
    function, when espeak-ng is not installed, and for impossible sizes.
    """
    started = time.monotonic()
    sizes = sizes or Sizes()
    jobs = jobs or usable_cores()
    _check_options(seed, jobs, sizes)
    out = Path(os.path.abspath(out))
    options = {"tool": TOOL, "generator": GENERATOR, "seed": seed}
    options |= {"pretraining": pretraining, "sizes": dataclasses.asdict(sizes)}
    # The marker of an older run went through JSON, too.
    options = json.loads(json.dumps(options))
    if existing := _existing_marker(out):
        made = existing.get("utterances"), existing.get("audio_bytes")
        if existing.get("options") == options and _audio_files(out) == made:
            return existing | {"made": False}
        _check_nothing_added(out, existing)
    espeak = installed_espeak()
    speakers = plan(seed, sizes, pretraining)
    with _part_of(out) as part:
        lengths = speak_all(speakers, espeak, part, jobs, progress)
        _write_lists(part, speakers, lengths, seed, sizes)
        marker = {
            "options": options,
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            **_counts(speakers, lengths),
            "audio_bytes": _audio_files(part)[1],
            "seconds": round(time.monotonic() - started, 1),
        }
        write_atomically(part / MARKER, json.dumps(marker, indent=2) + "\n")
        (part / _LOCK).unlink()
        _replace(part, out)
    return marker | {"made": True}


#: On their versions the bytes of the corpus depend.
_PACKAGES = ("espeakng-loader", "numpy", "soundfile")

#: Marks the .part folder while a process works on it.
_LOCK = "making.json"

_FOLDERS = ("LibriSpeech", "VoxCeleb1", "VoxCeleb2")

# All that there is in a corpus.
_AUDIO = (".flac", ".wav")
_ENDINGS = (*_AUDIO, ".trans.txt")
_LISTS = (
    MARKER,
    "SPEAKERS.TXT",
    "vox1_meta.csv",
    "vox2_meta.csv",
    "veri_test2.txt",
    "list_test_hard2.txt",
)


def _check_options(seed, jobs, sizes):
    """Refuse what cannot be made."""
    if seed < 0 or jobs < 1:
        raise UserError(f"seed {seed}, jobs {jobs}: choose a seed >= 0 and jobs >= 1")
    # Speaker numbers of the groups must not run into one another.
    for name in ("train", "dev", "test"):
        speakers, utterances = getattr(sizes, name)
        if not (1 <= speakers <= 3000 and 1 <= utterances <= 200):
            raise UserError(
                f"{name} {speakers} {utterances}: choose 1 to 3000 speakers and 1 to "
                f"200 utterances of each"
            )
    for name in ("vox2", "vox1"):
        speakers, videos, utterances = getattr(sizes, name)
        if min(speakers, videos, utterances) < 1 or videos * utterances > 100:
            raise UserError(
                f"{name} {speakers} {videos} {utterances}: choose at least 1 of each, "
                f"and at most 100 utterances a speaker"
            )
        if speakers > 9000:
            raise UserError(f"{name}: {speakers} speakers; choose at most 9000")
    speakers, videos, utterances = sizes.vox1
    positives = speakers * math.comb(videos, 2) * utterances**2
    # The hard list's negatives are the fewest: women's and men's apart.
    of_a_sex = math.comb(speakers // 2, 2) + math.comb(speakers - speakers // 2, 2)
    negatives = of_a_sex * (videos * utterances) ** 2
    # Negatives are drawn until they suffice, hence the margin.
    most = 2 * min(positives, negatives // 2)
    if not 2 <= sizes.trials <= most or sizes.trials % 2:
        raise UserError(
            f"trials {sizes.trials}: choose an even number from 2 to {most}, which is "
            f"what {speakers} speakers, {videos} videos and {utterances} utterances of "
            f"vox1 allow, or make those more"
        )


def _existing_marker(out):
    """The marker of the corpus in ``out``; None where there is none to replace."""
    if not out.exists() and not out.is_symlink():
        return None
    try:
        inside = {path.name for path in out.iterdir()}
        if not inside:
            return None
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
        ours = marker["options"]["tool"] == TOOL and not inside - {MARKER, *_FOLDERS}
    except (OSError, ValueError, LookupError, TypeError):
        ours = False
    if not ours:
        raise UserError(
            f"{out}: it exists and is not, or not only, a corpus of {TOOL}; name "
            f"another folder or move this one away"
        )
    return marker


def _check_nothing_added(out, marker):
    """Raise ``UserError`` for files in a corpus that another one must not replace."""
    audio = _audio_files(out)[0] - marker.get("utterances", 0)
    added = f"{audio} more recordings than it was made with" if audio > 0 else None
    for path in out.rglob("*"):
        known = path.name in _LISTS or path.name.endswith(_ENDINGS)
        if not known and not path.is_dir():
            added = path.relative_to(out)
            break
    if added:
        raise UserError(
            f"{out}: it would be made anew, but holds {added}, which {TOOL} did not "
            "write; move that away or name another folder"
        )


def _audio_files(out):
    """Number and total size in bytes of the flac and wav files."""
    audio = [path for path in out.rglob("*") if path.name.endswith(_AUDIO)]
    return len(audio), sum(path.stat().st_size for path in audio)


@contextlib.contextmanager
def _part_of(out):
    """The empty folder ``<out>.part``, held by this process; it goes with an error."""
    part = out.with_name(f"{out.name}.part")
    names = {path.name for path in part.iterdir()} if part.is_dir() else set()
    if _LOCK not in names and MARKER in names:
        # Killed between its last file and its new name, it is a whole corpus.
        _check_nothing_added(part, _existing_marker(part))
    elif _LOCK not in names and (names or part.is_file()):
        raise UserError(f"{part}: it exists and was not left by {TOOL}; move it away")
    with one_writer(part / _LOCK):
        try:
            for name in names - {_LOCK}:
                left = part / name
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield part
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _replace(part, out):
    """Give ``part`` the name ``out``; an old corpus there is removed afterwards."""
    if not out.exists():
        part.rename(out)
        return
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as old:
        out.rename(Path(old, "corpus"))
        part.rename(out)


def _counts(speakers, lengths):
    """Speakers, utterances and hours: of all, and of each data set."""
    sets, keys = {}, ("speakers", "utterances", "hours")
    for speaker in speakers:
        samples = [lengths[file] for file in speaker.files]
        entry = sets.setdefault(GROUPS[speaker.group].name, dict.fromkeys(keys, 0))
        entry["speakers"] += 1
        entry["utterances"] += len(samples)
        entry["hours"] += sum(samples) / SAMPLE_RATE / 3600
    total = {key: sum(entry[key] for entry in sets.values()) for key in keys}
    for entry in (total, *sets.values()):
        entry["hours"] = round(entry["hours"], 4)
    return total | {"sets": sets}


# Lists and tables --------------------------------------------------------------


def _write_lists(out, speakers, lengths, seed, sizes):
    """Transcripts, speaker tables and trial lists."""
    by_group = {name: [s for s in speakers if s.group == name] for name in GROUPS}
    table = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for name in ("train", "dev", "test"):
        for speaker in by_group[name]:
            minutes = sum(lengths[file] for file in speaker.files) / SAMPLE_RATE / 60
            subset = Path(GROUPS[name].name).name
            table.append(
                f"{speaker.id:<5}| {speaker.sex} | {subset:<17}| {minutes:5.2f} "
                f"| Voice {speaker.id}"
            )
            for recording in speaker.recordings:
                _write_transcripts(out, speaker, recording)
    _write(out / "LibriSpeech" / "SPEAKERS.TXT", table, "\n")
    table = ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set"]
    for s in by_group["vox2"]:
        table.append(f"{s.id} ,n0{s.id.removeprefix('id')} ,{s.sex.lower()} ,dev")
    _write(out / "VoxCeleb2" / "vox2_meta.csv", table, "\r\n")
    table = ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet"]
    for s in by_group["vox1"]:
        nation = "USA" if s.accent.endswith("US") else "UK"
        name = f"Voice_{s.id.removeprefix('id')}"
        table.append(f"{s.id}\t{name}\t{s.sex.lower()}\t{nation}\ttest")
    _write(out / "VoxCeleb1" / "vox1_meta.csv", table, "\r\n")
    for number, name in (1, "veri_test2.txt"), (2, "list_test_hard2.txt"):
        rng = np.random.default_rng((seed, 0, number))
        hard = number == 2
        trials = _trials(rng, by_group["vox1"], sizes.trials, same_sex=hard)
        _write(out / "VoxCeleb1" / name, trials, "\n")


def _write_transcripts(out, speaker, recording):
    """``<speaker>-<chapter>.trans.txt`` beside the chapter's files."""
    lines = [
        " ".join((Path(file).stem, *texts))
        for file, texts in zip(recording.files, recording.texts, strict=True)
    ]
    folder = out / Path(recording.files[0]).parent
    _write(folder / f"{speaker.id}-{recording.name}.trans.txt", lines, "\n")


def _write(path, lines, end):
    """A text file, every line ended by ``end``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode("utf-8"))


def _trials(rng, speakers, count, same_sex):
    """Shuffled lines ``label enrolment test``, half of them positive.

    Positive trials are from two videos of a speaker, negative ones from two
    speakers, with ``same_sex`` of one sex; no pair occurs twice.
    """
    positives = [
        (1, *pair)
        for speaker in speakers
        for one, other in itertools.combinations(speaker.recordings, 2)
        for pair in itertools.product(one.files, other.files)
    ]
    positives = [positives[i] for i in rng.permutation(len(positives))[: count // 2]]
    pairs = [
        (one, other)
        for one, other in itertools.combinations(speakers, 2)
        if one.sex == other.sex or not same_sex
    ]
    negatives = {}
    while len(negatives) < count - count // 2:
        pair = pairs[rng.integers(len(pairs))]
        first, second = (one.files[rng.integers(len(one.files))] for one in pair)
        negatives[0, first, second] = None
    trials = positives + list(negatives)
    prefix = f"{GROUPS['vox1'].name}/wav/"
    return [
        f"{label} {first.removeprefix(prefix)} {second.removeprefix(prefix)}"
        for label, first, second in (trials[i] for i in rng.permutation(len(trials)))
    ]
