"""Speak a small LibriSpeech, VoxCeleb1 and VoxCeleb2 with espeak-ng.

    python tools/demo_corpus.py data/demo            # about 3 hours of speech
    python tools/demo_corpus.py data/tiny --small    # for tests

Every speaker is a synthetic voice of its own that says sentences of a grammar
of about 40 words. Folders, names, transcripts, meta files and trial lists have
the layouts of the real corpora, so what prepares those prepares this one.
"""

import ctypes
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import selectors
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path

import numpy as np
import soundfile
from rich.progress import Progress

from lobes.data.audio import SAMPLE_RATE
from lobes.errors import ArgumentParser, UserError, user_errors_exit
from lobes.settings.table import COUNT, option
from lobes.system.files import write_atomically
from lobes.system.machine import usable_cores
from lobes.system.terminal import console

#: File in the corpus folder that says what it holds; written last.
MARKER = "corpus.json"

#: Goes up when the same options make other files, so that old ones are rebuilt.
GENERATOR = 3

TOOL = "tools/demo_corpus.py"

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


def part_of(sentence):
    """``pretraining``, ``train`` (four of ten), ``dev`` or ``test`` (one of ten)."""
    tenth = zlib.crc32(sentence.encode("ascii")) % 10
    return {8: "dev", 9: "test"}.get(tenth, "pretraining" if tenth < 4 else "train")


def sentences():
    """All sentences: ``{part: [[sentence, ...] of each template]}``."""
    found = {part: [] for part in PARTS}
    for template in _TEMPLATES:
        spoken = {part: [] for part in PARTS}
        for words in itertools.product(*template):
            sentence = " ".join(words)
            spoken[part_of(sentence)].append(sentence)
        for part in PARTS:
            found[part].append(spoken[part])
    return found


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
    recordings: tuple


def plan(seed, sizes, pretraining=False):
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


# -------------------------------------------------------------------- sound


class Espeak:
    """The espeak-ng library in this process; one voice, seeded once.

    espeak-ng's noise depends on everything that its process has said before, so
    a voice is reproducible only in a process that has not spoken yet.

    Arguments
    ---------
    library, data : str
        The shared library, and the folder that holds ``espeak-ng-data``.
    voice : str
        Language file and voice variant, as in ``gmw/en-US+v101``.
    seed : int
    """

    _RATE, _VOLUME, _PITCH = 1, 2, 3

    def __init__(self, library, data, voice, seed):
        self._library = ctypes.CDLL(library)
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        # The library keeps only the address: the object must not be collected.
        self._callback = callback(self._receive)
        self._chunks = []
        synchronous_retrieval, dont_exit = 2, 0x8000
        self.sample_rate = self._library.espeak_Initialize(
            synchronous_retrieval, 0, os.fsencode(data), dont_exit
        )
        self._library.espeak_SetSynthCallback(self._callback)
        if (
            self.sample_rate <= 0
            or self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
            or self._library.espeak_SetVoiceByName(voice.encode())
        ):
            raise UserError(
                f"espeak-ng cannot use the voice {voice} in {data}; install its data "
                f"again with `pip install --force-reinstall espeakng-loader`, and "
                f"point TMPDIR to a folder with a short name"
            )
        # Full volume clips voices with high formants.
        self._library.espeak_SetParameter(self._VOLUME, 50, 0)

    def say(self, text, rate, pitch):
        """Samples of ``text``, float64 ``[time]`` in [-1, 1).

        ``rate`` is in words per minute; ``pitch`` is 0 to 100, 50 the voice's own.
        """
        self._chunks.clear()
        self._library.espeak_SetParameter(self._RATE, int(rate), 0)
        self._library.espeak_SetParameter(self._PITCH, int(pitch), 0)
        data = text.encode("ascii") + b"\0"
        utf8 = 1
        status = self._library.espeak_Synth(
            data, ctypes.c_size_t(len(data)), 0, 0, 0, utf8, None, None
        )
        if status or not self._chunks:
            raise RuntimeError(f"espeak-ng said nothing for {text!r} (status {status})")
        return np.concatenate(self._chunks) / 32768

    def _receive(self, samples, count, events):
        """Called by the library with 16-bit samples; 0 asks for more."""
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


class Channel:
    """Equaliser, room and noise of one recording.

    Without it a speaker's long-term spectrum would be the same in every
    recording, and the mean spectrum alone would verify speakers.

    Arguments
    ---------
    rng : numpy.random.Generator
    strength : float
        1 for equaliser gains of 6.5 dB (standard deviation), 20-40 dB of
        signal-to-noise ratio, and reverberation 6-16 dB below the direct sound.
    """

    def __init__(self, rng, strength):
        self._filter = np.convolve(
            _equaliser(rng, 6.5 * strength), _room(rng, 16 - 10 * strength)
        )
        self._noise_db = -rng.uniform(40 - 20 * strength, 40)
        self._tilt = rng.uniform(0, 1)
        self._level_db = rng.uniform(-29, -22)

    def __call__(self, rng, speech):
        """Speech as this recording has it, float64 ``[time]``, peak below 1."""
        size = _fast(len(speech) + len(self._filter), 1)
        spectrum = np.fft.rfft(speech, size) * np.fft.rfft(self._filter, size)
        heard = np.fft.irfft(spectrum, size)[: len(speech)]
        noise = _noise(rng, size, self._tilt)[: len(speech)]
        mixed = heard / _rms(heard) + 10 ** (self._noise_db / 20) * noise
        mixed *= 10 ** (self._level_db / 20)
        return mixed * min(1, 0.95 / np.abs(mixed).max())


def _equaliser(rng, deviation):
    """Filter with random gains (dB) below, between and above two frequencies."""
    low, high = rng.uniform(300, 600), rng.uniform(1800, 3200)
    gains = rng.normal(0, deviation, 3).clip(-2 * deviation, 2 * deviation)
    taps = 512
    frequencies = np.fft.rfftfreq(taps, 1 / SAMPLE_RATE)
    # Two slopes on a scale of octaves, two octaves and one octave long.
    places = np.log2([low / 2, low * 2, high / 2**0.5, high * 2**0.5])
    steps = np.interp(
        np.log2(frequencies.clip(1)), places, [gains[0], gains[1], gains[1], gains[2]]
    )
    # Zero phase, moved to the middle and faded out.
    return np.roll(np.fft.irfft(10 ** (steps / 20)), taps // 2) * np.hanning(taps)


def _room(rng, minimum_db):
    """Direct sound and decaying noise, at least ``minimum_db`` below it."""
    decay = rng.uniform(0.12, 0.35)  # seconds until -60 dB
    time_ = np.arange(int(decay * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time_)) * 10 ** (-3 * time_ / decay)
    tail[: int(rng.uniform(0.002, 0.008) * SAMPLE_RATE)] = 0
    tail *= 10 ** (-rng.uniform(minimum_db, 16) / 20) / np.linalg.norm(tail)
    tail[0] = 1
    return tail


def _noise(rng, count, tilt):
    """Noise of unit power, white (``tilt`` 0) to pink (1)."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum *= np.arange(1, len(spectrum) + 1) ** (-tilt / 2)
    noise = np.fft.irfft(spectrum, count)
    return noise / _rms(noise)


def _rms(samples):
    """Root of the mean square."""
    return math.sqrt(np.mean(samples**2))


def _speak(speaker, library, data, out):
    """Write all files of one speaker; returns their lengths in samples.

    Must run in a process that has not used espeak-ng before.
    """
    espeak = Espeak(
        library,
        data,
        f"{speaker.accent}+{_variant_name(speaker)}",
        zlib.crc32(repr(speaker.seed).encode()) & 0x7FFFFFFF,
    )
    group = GROUPS[speaker.group]
    rng = np.random.default_rng((*speaker.seed, 1))
    usual_rate = rng.uniform(*group.rate)
    lengths = {}
    for number, recording in enumerate(speaker.recordings):
        rng = np.random.default_rng((*speaker.seed, 2, number))
        channel = Channel(rng, group.channel)
        rate, pitch = usual_rate + rng.uniform(-5, 5), rng.uniform(46, 54)
        for file, texts in zip(recording.files, recording.texts, strict=True):
            now = (rate + rng.uniform(-2, 2), pitch + rng.uniform(-1, 1))
            clauses = ", ".join(text.lower() for text in texts)
            speech = _trimmed(espeak.say(clauses + ".", *now))
            speech = _resampled(speech, espeak.sample_rate)
            around = (rng.uniform(0.08, 0.25, 2) * SAMPLE_RATE).astype(int)
            samples = channel(rng, np.pad(speech, around))
            path = Path(out, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
            except (OSError, soundfile.SoundFileError) as error:
                raise UserError(
                    f"{path}: it cannot be written ({error}); free some space or "
                    f"choose another folder"
                ) from error
            lengths[file] = len(samples)
    return lengths


def _trimmed(samples):
    """Speech without the silence before and after it."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def _resampled(samples, rate):
    """Samples at ``SAMPLE_RATE``, by cutting the spectrum at its half."""
    divisor = math.gcd(rate, SAMPLE_RATE)
    up, down = SAMPLE_RATE // divisor, rate // divisor
    size = _fast(len(samples), down)
    new_size = size // down * up
    spectrum = np.fft.rfft(samples, size)[: new_size // 2 + 1]
    # A sudden end of the spectrum would ring.
    slope = len(spectrum) // 20
    spectrum[-slope:] *= np.linspace(1, 0, slope)
    return np.fft.irfft(spectrum, new_size)[: len(samples) * up // down] * up / down


def _fast(size, factor):
    """Multiple of ``factor`` of at least ``size`` with small prime factors."""
    block = factor * (1024 if factor == 1 else 8)
    return -(-size // block) * block


# ---------------------------------------------------------------- processes

_WORKER_FLAG = "--speak-as-worker"

# Environment variables that the linear algebra behind numpy reads.
_THREAD_COUNTS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def _speak_all(request, speakers, jobs, progress):
    """Speak with ``jobs`` processes at a time; lengths of all files in samples.

    ``request`` holds the arguments of ``_work`` that are the same for all.
    """
    # A command of its own, because multiprocessing would import the caller's main
    # module (with torch, perhaps) again for every voice.
    workers = []
    lengths = {}
    on_stderr = console(stderr=True)
    with (
        Progress(console=on_stderr, disable=not progress, transient=True) as bar,
        selectors.DefaultSelector() as selector,
    ):
        task = bar.add_task("speakers", total=len(speakers))
        try:
            for number in range(min(jobs, len(speakers))):
                share = json.dumps(request | {"first": number, "step": jobs})
                command = [sys.executable, os.path.abspath(__file__), _WORKER_FLAG]
                worker = subprocess.Popen(
                    [*command, share],
                    stdout=subprocess.PIPE,
                    # A group of its own: Ctrl-C reaches this process only.
                    start_new_session=True,
                    # Forking is safe in a process without further threads.
                    env=os.environ | dict.fromkeys(_THREAD_COUNTS, "1"),
                )
                workers.append(worker)
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
            while selector.get_map():
                for key, _ in selector.select():
                    # A voice's line comes in one piece, so this never waits long.
                    line = key.fileobj.readline()
                    if line:
                        lengths.update(_outcome(line))
                        bar.advance(task)
                    else:
                        selector.unregister(key.fileobj)
                        _check_end(key.data)
        finally:
            for worker in workers:
                _stop(worker)
    return lengths


def _outcome(line):
    """File lengths of one speaker; raises the user error that came instead."""
    answer = json.loads(line)
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["lengths"]


def _check_end(worker):
    """Raise when a worker ended before its work."""
    if worker.wait():
        raise RuntimeError(
            f"a process that speaks ended with status {worker.returncode}; its own "
            f"message stands above"
        )


def _stop(worker):
    """End a worker and the voice it forked; returns when neither can write."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait()
    # Ends when the last process that has the other side is gone.
    worker.stdout.read()
    worker.stdout.close()


def _work(seed, sizes, pretraining, library, data, out, first, step):
    """Body of a worker: every ``step``-th speaker, each in a fork of its own.

    Prints one line of JSON per speaker. This process only forks: it never
    speaks, so that all speakers start from the same state.
    """
    speakers = plan(seed, Sizes(**sizes), pretraining)
    for index in range(first, len(speakers), step):
        child = os.fork()
        if not child:
            _work_on(speakers[index], library, _data_folder(data, index), out)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(1)


def _work_on(speaker, library, data, out):
    """Body of a speaker's process; ends it."""
    status = 1
    try:
        try:
            answer = {"lengths": _speak(speaker, library, data, out)}
        except UserError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


# ------------------------------------------------------------ lists and meta


def _write_lists(out, speakers, lengths, seed, sizes):
    """Transcripts, speaker tables and trial lists."""
    by_group = {name: [s for s in speakers if s.group == name] for name in GROUPS}
    table = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for name in ("train", "dev", "test"):
        for speaker in by_group[name]:
            minutes = sum(_lengths(speaker, lengths)) / SAMPLE_RATE / 60
            subset = Path(GROUPS[name].name).name
            table.append(
                f"{speaker.id:<5}| {speaker.sex} | {subset:<17}| {minutes:5.2f} "
                f"| Voice {speaker.id}"
            )
            for recording in speaker.recordings:
                _write_transcripts(out, speaker, recording)
    _write(out / "LibriSpeech" / "SPEAKERS.TXT", table, "\n")
    _write(
        out / "VoxCeleb2" / "vox2_meta.csv",
        ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set"]
        + [
            f"{s.id} ,n0{s.id.removeprefix('id')} ,{s.sex.lower()} ,dev"
            for s in by_group["vox2"]
        ],
        "\r\n",
    )
    _write(
        out / "VoxCeleb1" / "vox1_meta.csv",
        ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet"]
        + [
            f"{s.id}\tVoice_{s.id.removeprefix('id')}\t{s.sex.lower()}\t"
            f"{'USA' if s.accent.endswith('US') else 'UK'}\ttest"
            for s in by_group["vox1"]
        ],
        "\r\n",
    )
    for number, name, same_sex in (
        (1, "veri_test2.txt", False),
        (2, "list_test_hard2.txt", True),
    ):
        rng = np.random.default_rng((seed, 0, number))
        trials = _trials(rng, by_group["vox1"], sizes.trials, same_sex)
        _write(out / "VoxCeleb1" / name, trials, "\n")


def _files(speaker):
    """All files of a speaker."""
    return [file for recording in speaker.recordings for file in recording.files]


def _lengths(speaker, lengths):
    """Samples of each of the speaker's files."""
    return [lengths[file] for file in _files(speaker)]


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
        (1, first, second)
        for speaker in speakers
        for one, other in itertools.combinations(speaker.recordings, 2)
        for first in one.files
        for second in other.files
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
        first, second = (files[rng.integers(len(files))] for files in map(_files, pair))
        negatives[0, first, second] = None
    trials = positives + list(negatives)
    prefix = f"{GROUPS['vox1'].name}/wav/"
    return [
        f"{label} {first.removeprefix(prefix)} {second.removeprefix(prefix)}"
        for label, first, second in (trials[i] for i in rng.permutation(len(trials)))
    ]


# ------------------------------------------------------------------- corpus


def make_demo_corpus(
    out, seed=SEED, jobs=None, sizes=None, progress=False, pretraining=False
):
    """Make the corpus in ``out`` unless it is there already.

    The files are a function of ``seed`` and ``sizes`` (and of the versions of
    espeak-ng and numpy), not of ``jobs``. They are written to a folder
    ``<out>.part`` that takes its final name when all is there.

    Arguments
    ---------
    out : str or Path
        Gets the folders ``LibriSpeech``, ``VoxCeleb1``, ``VoxCeleb2``. A folder
        that this function made with other options is replaced.
    seed : int
        Not negative; all voices, sentences and channels follow from it.
    jobs : int
        Processes at a time; None for one per usable core.
    sizes : Sizes
        None for the defaults; ``SMALL`` for tests.
    progress : bool
        Show a progress bar on standard error.
    pretraining : bool
        Say sentences that no corpus without this option has.

    Returns
    -------
    dict
        The content of ``<out>/corpus.json``: options, versions, speakers,
        utterances and hours of each data set; with ``made`` True where the
        corpus was made by this call and False where it was there.

    Raises ``UserError`` when ``out`` holds anything else than a corpus of this
    function, when espeak-ng is not installed, and for impossible sizes.
    """
    started = time.monotonic()
    sizes = sizes or Sizes()
    jobs = jobs or usable_cores()
    _check_options(seed, jobs, sizes)
    out = Path(os.path.abspath(out))
    # Through JSON, because that is what the marker of an older run went through.
    options = json.loads(
        json.dumps(
            {"tool": TOOL, "generator": GENERATOR, "seed": seed}
            | {"pretraining": pretraining}
            | {"sizes": dataclasses.asdict(sizes)}
        )
    )
    existing = _existing_marker(out)
    if existing and existing.get("options") == options and _is_complete(out, existing):
        return existing | {"made": False}
    if existing:
        _check_nothing_added(out, existing)
    library, source = _installed_espeak()
    speakers = plan(seed, sizes, pretraining)
    part = _start_part(out)
    try:
        with tempfile.TemporaryDirectory(prefix="espeak-") as data:
            for first in range(0, len(speakers), _VOICES_PER_FOLDER):
                voices = speakers[first : first + _VOICES_PER_FOLDER]
                _make_data_folder(_data_folder(data, first), source, voices)
            request = {
                "seed": seed,
                "sizes": dataclasses.asdict(sizes),
                "pretraining": pretraining,
                "library": library,
                "data": data,
                "out": os.fspath(part),
            }
            lengths = _speak_all(request, speakers, jobs, progress)
        _write_lists(part, speakers, lengths, seed, sizes)
        marker = {
            "options": options,
            "versions": _versions(),
            **_counts(speakers, lengths),
            "audio_bytes": _audio_files(part)[1],
            "seconds": round(time.monotonic() - started, 1),
        }
        write_atomically(part / MARKER, json.dumps(marker, indent=2) + "\n")
        (part / _LOCK).unlink()
        _replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return marker | {"made": True}


# In the .part folder while a process works on it.
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
    for name, most in (("train", 3000), ("dev", 3000), ("test", 3000)):
        speakers, utterances = getattr(sizes, name)
        if not (1 <= speakers <= most and 1 <= utterances <= 200):
            raise UserError(
                f"{name} {speakers} {utterances}: choose 1 to {most} speakers and 1 to "
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


def _is_complete(out, marker):
    """Whether all audio of the marker is still there."""
    return _audio_files(out) == (marker["utterances"], marker["audio_bytes"])


def _check_nothing_added(out, marker):
    """Raise ``UserError`` for files in a corpus that another one must not replace."""
    audio = _audio_files(out)[0] - marker.get("utterances", 0)
    added = f"{audio} more recordings than it was made with" if audio > 0 else None
    for path in out.rglob("*"):
        name = path.name
        if path.is_dir() or name in _LISTS or name.endswith(_ENDINGS):
            continue
        added = str(path.relative_to(out))
        break
    if added:
        raise UserError(
            f"{out}: it would be made anew, but holds {added}, which {TOOL} did not "
            "write; move that away or name another folder"
        )


def _audio_files(out):
    """Number and total size in bytes of the flac and wav files."""
    sizes = [
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(out)
        for name in names
        if name.endswith(_AUDIO)
    ]
    return len(sizes), sum(sizes)


def _installed_espeak():
    """Shared library and data folder of the ``espeakng-loader`` package."""
    remedy = "install it with `pip install -e .[demo]`"
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(f"espeak-ng is not installed; {remedy}") from error
    library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    try:
        # The file's symbols are looked up, nothing in it runs: not to speak here
        # is what keeps the speakers' processes alike.
        _ = ctypes.CDLL(library).espeak_ng_SetRandSeed
    except (OSError, AttributeError) as error:
        raise UserError(
            f"{library}: it is not espeak-ng 1.52 or later ({error}); {remedy}"
        ) from error
    return library, data


# espeak-ng reads at most 349 voices of a data folder, its own languages among them.
_VOICES_PER_FOLDER = 200


def _data_folder(data, index):
    """espeak-ng's data folder for the speaker of that number."""
    return os.path.join(data, str(index // _VOICES_PER_FOLDER))


def _make_data_folder(folder, source, speakers):
    """espeak-ng's data for English, and a variant file for each speaker."""
    target = Path(folder, "espeak-ng-data")
    target.mkdir(parents=True)
    for name in ("phontab", "phonindex", "phondata", "intonations", "en_dict"):
        shutil.copyfile(Path(source, name), target / name)
    shutil.copytree(Path(source, "lang", "gmw"), target / "lang" / "gmw")
    variants = target / "voices" / "!v"
    variants.mkdir(parents=True)
    for speaker in speakers:
        name = _variant_name(speaker)
        text = f"name {name}\n{speaker.variant}"
        (variants / name).write_bytes(text.encode("ascii"))


def _variant_name(speaker):
    """The name of a speaker's voice variant.

    espeak-ng takes one of digits alone for no variant at all, without a word: all
    LibriSpeech readers would have its default voice.
    """
    return f"v{speaker.id}"


def _start_part(out):
    """The empty folder ``<out>.part``, taken by this process."""
    part = out.with_name(out.name + ".part")
    if part.is_dir() and not any(part.iterdir()):
        # A disk was full before its owner could write its name there.
        part.rmdir()
    if part.exists():
        try:
            lock = json.loads((part / _LOCK).read_text(encoding="utf-8"))
            pid, host = int(lock["pid"]), lock["host"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            # Killed between its last file and its new name, it is a whole corpus.
            if not (part / MARKER).is_file():
                raise UserError(
                    f"{part}: it exists and was not left by {TOOL}; move it away"
                ) from error
            _check_nothing_added(part, _existing_marker(part))
            pid, host = os.getpid(), socket.gethostname()
        if host != socket.gethostname() or (pid != os.getpid() and _is_alive(pid)):
            raise UserError(
                f"{part}: process {pid} on {host} is making this corpus; wait for it, "
                f"or remove the folder if that process is gone"
            )
        shutil.rmtree(part)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{part}: it cannot be made ({error.strerror}); name another folder"
        ) from error
    lock = {"pid": os.getpid(), "host": socket.gethostname()}
    write_atomically(part / _LOCK, json.dumps(lock))
    return part


def _is_alive(pid):
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _replace(part, out):
    """Give ``part`` the name ``out``; an old corpus there is removed afterwards."""
    if not out.exists():
        part.rename(out)
        return
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as old:
        out.rename(Path(old, "corpus"))
        part.rename(out)


def _versions():
    """Versions on which the bytes of the corpus depend."""
    packages = ("espeakng-loader", "numpy", "soundfile")
    return {name: importlib.metadata.version(name) for name in packages}


def _counts(speakers, lengths):
    """Speakers, utterances and hours: of all, and of each data set."""
    sets = {}
    for speaker in speakers:
        samples = _lengths(speaker, lengths)
        entry = sets.setdefault(
            GROUPS[speaker.group].name, {"speakers": 0, "utterances": 0, "hours": 0}
        )
        entry["speakers"] += 1
        entry["utterances"] += len(samples)
        entry["hours"] += sum(samples) / SAMPLE_RATE / 3600
    total = {
        key: sum(entry[key] for entry in sets.values())
        for key in ("speakers", "utterances", "hours")
    }
    for entry in (total, *sets.values()):
        entry["hours"] = round(entry["hours"], 4)
    return total | {"sets": sets}


# ------------------------------------------------------------------ command


@user_errors_exit
def main(arguments=None):
    """Run the command with ``arguments`` (default: the process's own)."""
    options = _parser().parse_args(arguments)
    base = SMALL if options.small else Sizes()
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Sizes)
        if getattr(options, field.name) is not None
    }
    sizes = dataclasses.replace(
        base, **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    )
    marker = make_demo_corpus(
        options.out,
        options.seed,
        options.jobs,
        sizes,
        progress=True,
        pretraining=options.pretraining,
    )
    rows = {**marker["sets"], "total": marker}
    print(f"{'':<30}{'speakers':>9}{'utterances':>12}{'hours':>8}")
    for name, row in rows.items():
        print(
            f"{name:<30}{row['speakers']:>9}{row['utterances']:>12}{row['hours']:>8.2f}"
        )
    size = marker["audio_bytes"] / 1e6
    if marker["made"]:
        print(f"{options.out}: made in {marker['seconds']} s, {size:.0f} MB")
    else:
        print(f"{options.out}: complete already, {size:.0f} MB; nothing to do")


def _parser():
    """The command line."""
    parser = ArgumentParser(
        description=(
            "Speak a small LibriSpeech, VoxCeleb1 and VoxCeleb2 with espeak-ng, in "
            "the layouts of the real corpora. The same seed and sizes give the same "
            "audio, whatever --jobs is."
        ),
        epilog="Needs `pip install -e .[demo]`.",
    )
    parser.add_argument("out", help="folder to make; a complete one is left alone")
    parser.add_argument(
        "--seed", type=option("seed"), default=SEED, help=f"default {SEED}"
    )
    parser.add_argument(
        "--pretraining",
        action="store_true",
        help="sentences that no corpus without this option has",
    )
    parser.add_argument(
        "--jobs", type=COUNT, help="processes at a time (default: one per usable core)"
    )
    parser.add_argument(
        "--small", action="store_true", help="a tiny corpus for tests, in seconds"
    )
    two, three = ("SPEAKERS", "UTTERANCES"), ("SPEAKERS", "VIDEOS", "UTTERANCES")
    for name, metavar, what in (
        ("train", two, "LibriSpeech train-clean-100, utterances per speaker"),
        ("dev", two, "LibriSpeech dev-other"),
        ("test", two, "LibriSpeech test-other"),
        ("vox2", three, "VoxCeleb2 dev, utterances per video"),
        ("vox1", three, "VoxCeleb1"),
    ):
        default = " ".join(map(str, getattr(Sizes(), name)))
        parser.add_argument(
            f"--{name}",
            type=COUNT,
            nargs=len(metavar),
            metavar=metavar,
            help=f"{what} (default {default})",
        )
    parser.add_argument(
        "--trials",
        type=COUNT,
        help=f"length of each VoxCeleb1 trial list (default {Sizes().trials})",
    )
    return parser


if __name__ == "__main__":
    if sys.argv[1:2] == [_WORKER_FLAG]:
        _work(**json.loads(sys.argv[2]))
    else:
        main()
