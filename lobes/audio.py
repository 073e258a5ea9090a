"""Reading 16 kHz mono audio: wav and flac in parts, m4a as a whole."""

import os
import struct
from typing import NamedTuple

import numpy as np
import soundfile

from lobes.errors import UserError

#: Sampling rate of all audio in this project, in Hz.
SAMPLE_RATE = 16000

#: Receptive field of one wav2vec2 frame, in samples; less gives no frame.
MINIMUM_SAMPLES = 400

#: File name endings (lower case) that need PyAV: libsndfile has no AAC.
AAC_SUFFIXES = (".m4a", ".mp4", ".aac")

# A wav written to a pipe cannot go back to fill in its length; ffmpeg and sox
# then leave numbers of this size (two gigabytes, 18 hours) in the header.
_UNKNOWN_LENGTH = 0x7FFF0000

# (kernel, stride) of wav2vec2's convolutional layers.
_CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


class AudioStatistics(NamedTuple):
    """Length in samples, mean and population standard deviation of one file."""

    frames: int
    mean: float
    std: float


def read_audio(path, start=0, stop=None):
    """Samples ``start`` to ``stop`` (exclusive) of one 16 kHz mono file.

    Arguments
    ---------
    path : str or Path
        A .wav or .flac file, of which only the asked part is read, or an .m4a
        file, which is decoded whole and sliced.
    start, stop : int
        In samples; ``stop=None`` reads to the end.

    Returns
    -------
    numpy.ndarray
        float32 ``[time]``, integer formats scaled to [-1, 1).

    Raises ``UserError`` for a file that is missing or unreadable, has another
    rate or several channels, is shorter than ``stop`` or than its own header
    says, or holds NaN or infinite samples.
    """
    path = os.fspath(path)
    if start < 0 or (stop is not None and stop < start):
        raise UserError(
            f"{path}: samples {start} to {stop} cannot be read; start and stop count "
            f"from 0 and stop is not before start"
        )
    if path.lower().endswith(AAC_SUFFIXES):
        samples = _decode_aac(path)[start:stop]
        # Slicing past the end is silent; a copy frees the rest of the file.
        samples = samples.copy() if start or stop is not None else samples
    else:
        samples = _read_part(path, start, stop)
    if stop is not None and len(samples) != stop - start:
        raise UserError(
            f"{path}: samples {start} to {stop} were asked for but only "
            f"{len(samples)} of those {stop - start} are there; the file changed or "
            f"was cut: restore it, or prepare the CSV again"
        )
    if not np.isfinite(samples).all():
        raise UserError(
            f"{path}: it holds NaN or infinite samples; convert it again from its "
            f"source as 16-bit audio, or leave it out"
        )
    return samples


def audio_frames(path):
    """Length in samples of one 16 kHz mono file.

    Taken from the header for wav and flac; m4a files are decoded, because
    their header counts the codec's padding. Raises as ``read_audio`` does.
    """
    path = os.fspath(path)
    if path.lower().endswith(AAC_SUFFIXES):
        return len(_decode_aac(path))
    with _open(path) as sound:
        _check_wav_is_complete(path)
        return sound.frames


def audio_statistics(path):
    """Decode one file completely and check that it can be trained on.

    Returns
    -------
    AudioStatistics
        ``(frames, mean, std)``: samples, and mean and population standard
        deviation of all samples, accumulated in float64. Digital silence is
        allowed and has a standard deviation of 0.

    Raises ``UserError`` as ``read_audio`` does, and for a file shorter than
    one wav2vec2 frame (400 samples).
    """
    samples = read_audio(path)
    if len(samples) < MINIMUM_SAMPLES:
        raise UserError(
            f"{path}: it has {len(samples)} samples, fewer than the "
            f"{MINIMUM_SAMPLES} that one wav2vec2 frame needs; leave it out"
        )
    samples = samples.astype(np.float64)
    return AudioStatistics(len(samples), float(samples.mean()), float(samples.std()))


def encoder_frames(samples):
    """Frames that wav2vec2's convolutions make of ``samples`` samples.

    Seven layers, one frame per 20 ms (320 samples) of a 400-sample window
    (wav2vec 2.0, arXiv:2006.11477, section 4.2). ``samples`` is an int or an
    integer array; fewer than 400 samples give 0.
    """
    frames = samples
    for kernel, stride in _CONVOLUTIONS:
        frames = np.maximum((frames - kernel) // stride + 1, 0)
    return frames


def import_pyav(path):
    """The PyAV module, or a ``UserError`` that says how to get it.

    ``path`` is the file that needs it, for the message.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"{path}: reading {os.path.splitext(path)[1]} files needs PyAV; install "
            f"it with `pip install -e .[m4a]`, or {_conversion(path)}"
        ) from error
    return av


def _read_part(path, start, stop):
    """Samples of a wav or flac file, fewer than asked for at its end."""
    with _open(path) as sound:
        if stop is None:
            # libsndfile shortens a cut wav to what is there without a word.
            _check_wav_is_complete(path)
            count = max(sound.frames - start, 0)
        else:
            count = stop - start
        if start >= sound.frames:
            return np.zeros(0, dtype=np.float32)
        try:
            if start:
                sound.seek(start)
            samples = sound.read(min(count, sound.frames - start), dtype="float32")
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise _unreadable(path, error) from error
        if len(samples) < min(count, sound.frames - start):
            raise UserError(
                f"{path}: it is truncated: its header promises {sound.frames} samples "
                f"but only {start + len(samples)} can be read; copy or download it "
                f"again, or leave it out"
            )
    return samples


def _open(path):
    """The opened wav or flac file, its rate, channels and length checked."""
    try:
        sound = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise _unreadable(path, error) from error
    try:
        _check_format(path, sound.samplerate, sound.channels)
        # libsndfile's answer for a flac that was written to a pipe.
        if sound.frames >= 2**48:
            raise UserError(
                f"{path}: its header does not state its length; {_conversion(path)}"
            )
    except BaseException:
        sound.close()
        raise
    return sound


def _decode_aac(path):
    """All samples of the first audio stream of an m4a file."""
    av = import_pyav(path)
    blocks = []
    try:
        with av.open(path) as container:
            if not container.streams.audio:
                raise UserError(f"{path}: it has no audio stream; leave it out")
            stream = container.streams.audio[0]
            codec = stream.codec_context
            if codec is None:
                raise _unreadable(path, "the description of its codec is damaged")
            _check_format(path, codec.sample_rate, codec.channels)
            promised = 0
            if stream.duration:
                promised = round(stream.duration * stream.time_base * SAMPLE_RATE)
            for frame in container.decode(stream):
                _check_format(path, frame.sample_rate, frame.layout.nb_channels)
                blocks.append(frame.to_ndarray().reshape(-1))
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from error
    if not blocks:
        raise UserError(f"{path}: it holds no audio; download it again or leave it out")
    samples = np.concatenate(blocks)
    if samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    # Encoders disagree about whether their start-up and end padding (a few
    # blocks of 1024 samples) counts; more than that missing is a cut file.
    if len(samples) < promised - 4 * 1024:
        raise UserError(
            f"{path}: it is truncated: its header promises {promised} samples but "
            f"only {len(samples)} can be decoded; download it again, or leave it out"
        )
    return samples.astype(np.float32, copy=False)


def _check_format(path, rate, channels):
    """Refuse anything but 16 kHz mono."""
    if rate != SAMPLE_RATE or channels != 1:
        raise UserError(
            f"{path}: it has {rate} Hz and {channels} channel(s), but 16000 Hz and "
            f"1 channel are needed; {_conversion(path)}"
        )


def _check_wav_is_complete(path):
    """Refuse a wav whose data chunk promises more bytes than the file has."""
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return
        while len(chunk := stream.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                present = size - stream.tell()
                if present < length < _UNKNOWN_LENGTH:
                    raise UserError(
                        f"{path}: it is truncated: its header promises {length} bytes "
                        f"of samples but {present} are there; copy or download it "
                        f"again, or leave it out"
                    )
                return
            # Chunks are padded to an even length.
            stream.seek(length + length % 2, os.SEEK_CUR)


def _unreadable(path, error):
    """The ``UserError`` for a file that a decoder refused for ``error``."""
    if not os.path.exists(path):
        return UserError(
            f"{path}: the file does not exist; restore it, or prepare the CSV again "
            f"if the corpus has moved"
        )
    if os.path.isfile(path) and not os.path.getsize(path):
        reason = "the file is empty (0 bytes)"
    else:
        reason = " ".join(str(error).replace(path, "").split())
        reason = f"it is not readable as audio ({reason})"
    return UserError(f"{path}: {reason}; copy or download it again, or leave it out")


def _conversion(path):
    """The remedy for a file in another format."""
    return (
        f"convert it with `ffmpeg -i {os.path.basename(path)} -ar 16000 -ac 1 OUT.wav`"
    )
