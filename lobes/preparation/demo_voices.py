"""Voices of espeak-ng, as recordings in rooms, each in a process of its own.

``python -m lobes.preparation.demo_voices`` is what such a process runs.
"""

import ctypes
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import zlib
from pathlib import Path

import numpy as np
import soundfile

from lobes.data.audio import SAMPLE_RATE
from lobes.errors import UserError
from lobes.preparation.demo_plan import GROUPS, Speaker
from lobes.system.terminal import progress_bar

#: espeak-ng reads 349 voices of a data folder at most, its own languages among them.
_VOICES_PER_FOLDER = 200

#: Environment variables that the linear algebra behind numpy reads.
_THREAD_COUNTS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def installed_espeak() -> tuple[str, str]:
    """Shared library and data folder of the ``espeakng-loader`` package."""
    remedy = "install it with `pip install -e .[demo]`"
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(f"espeak-ng is not installed; {remedy}") from error
    library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    try:
        # The file's symbols are looked up, nothing in it runs: this process must not
        # speak, so that the speakers' processes are alike.
        _ = ctypes.CDLL(library).espeak_ng_SetRandSeed
    except (OSError, AttributeError) as error:
        raise UserError(
            f"{library}: it is not espeak-ng 1.52 or later ({error}); {remedy}"
        ) from error
    return library, data


def speak_all(
    speakers: list[Speaker],
    espeak: tuple[str, str],
    out: Path,
    jobs: int,
    progress: bool = False,
) -> dict[str, int]:
    """Write all files of all speakers, with ``jobs`` processes at a time.

    ``espeak`` is what ``installed_espeak`` returns. Returns each file's samples.
    """
    bar = progress_bar(
        "speaking", len(speakers), "voice", leave=False, disable=not progress
    )
    with bar, tempfile.TemporaryDirectory(prefix="espeak-") as folder:
        command = _started(_tasks(speakers, espeak, folder, out), jobs)
        try:
            for line in command.stdout:
                if error := json.loads(line):
                    raise UserError(error)
                bar.update()
            if command.wait():
                raise RuntimeError(
                    f"a process that speaks ended with status {command.returncode}; "
                    f"its own message stands above"
                )
        finally:
            _stop(command)
    files = [file for speaker in speakers for file in speaker.files]
    return {file: soundfile.info(Path(out, file)).frames for file in files}


def _tasks(speakers, espeak, folder, out):
    """Arguments of ``_speak``, one tuple for a speaker."""
    library, source = espeak
    tasks = []
    for first in range(0, len(speakers), _VOICES_PER_FOLDER):
        data = os.path.join(folder, str(first))
        voices = speakers[first : first + _VOICES_PER_FOLDER]
        _make_data_folder(data, source, voices)
        tasks += [(voice, library, data, os.fspath(out)) for voice in voices]
    return tasks


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
        text = f"name {speaker.variant_name}\n{speaker.variant}"
        (variants / speaker.variant_name).write_bytes(text.encode("ascii"))


def _started(tasks, jobs):
    """The process that lets the speakers speak.

    It is a command of its own, because multiprocessing would import the caller's main
    module (with torch, perhaps) again for every voice.
    """
    command = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # A group of its own: Ctrl-C reaches this process only.
        start_new_session=True,
        # Forking is safe in a process without further threads.
        env=os.environ | dict.fromkeys(_THREAD_COUNTS, "1"),
    )
    with command.stdin:
        pickle.dump((tasks, jobs), command.stdin)
    return command


def _stop(command):
    """End the command and the voices it forked; returns when none can write."""
    if command.poll() is None:
        os.killpg(command.pid, signal.SIGTERM)
        command.wait()
    # Ends when the last process that has the other side is gone.
    command.stdout.read()
    command.stdout.close()


# The speaking process ---------------------------------------------------------


def _work(tasks, jobs):
    """Let every speaker speak in a fork of its own, ``jobs`` of them at a time.

    This process only forks: it never speaks, so that all speakers start from the same
    state.
    """
    running = 0
    while tasks or running:
        if tasks and running < jobs:
            task = tasks.pop()
            if not os.fork():
                _work_on(*task)
            running += 1
        else:
            _, status = os.wait()
            if status:
                sys.exit(1)
            running -= 1


def _work_on(*task):
    """Body of a speaker's process; ends it.

    It writes a line of JSON, the user's error or null, in one piece: others write, too.
    """
    status = 1
    try:
        error = None
        try:
            _speak(*task)
        except UserError as raised:
            error = str(raised)
        os.write(1, f"{json.dumps(error)}\n".encode())
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def _speak(speaker, library, data, out):
    """Write all files of one speaker, in a process that has not spoken (``Espeak``)."""
    espeak = Espeak(
        library,
        data,
        f"{speaker.accent}+{speaker.variant_name}",
        zlib.crc32(repr(speaker.seed).encode()) & 0x7FFFFFFF,
    )
    group = GROUPS[speaker.group]
    rng = np.random.default_rng((*speaker.seed, 1))
    usual_rate = rng.uniform(*group.rate)
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


class Espeak:
    """The espeak-ng library in this process; one voice, seeded once.

    espeak-ng's noise depends on everything that its process has said before, so
    a voice is reproducible only in a process that has not spoken yet.

    Arguments:
        library, data (str): The shared library, and the folder that holds
            ``espeak-ng-data``.
        voice (str): Language file and voice variant, as in ``gmw/en-US+v101``.
        seed (int)
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

    Arguments:
        rng (numpy.random.Generator)
        strength (float): 1 for equaliser gains of 6.5 dB (standard deviation), 20-40 dB
            of signal-to-noise ratio, and reverberation 6-16 dB below the direct sound.
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


if __name__ == "__main__":
    _work(*pickle.load(sys.stdin.buffer))
