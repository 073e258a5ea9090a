"""Reading 16 kHz mono audio: wav and flac in parts, m4a as a whole.

A file may stand by itself or inside another one, such as a shard made by
tools/make_shards.py. ``window`` then says where: ``(offset, size)`` in bytes.
"""

import contextlib
import io
import math
import os
import struct
from os import PathLike
from types import ModuleType
from typing import NamedTuple

import numpy as np
import soundfile

from lobes.errors import UserError
from lobes.system.files import Window

#: Offset and size in bytes of an audio file inside another one.
ByteRange = tuple[int, int]

#: Sampling rate of all audio in this project, in Hz.
SAMPLE_RATE = 16000

#: Receptive field of one wav2vec2 frame, in samples; less gives no frame.
MINIMUM_SAMPLES = 400

#: File name endings (lower case) that need PyAV: libsndfile has no AAC.
AAC_SUFFIXES = (".m4a", ".mp4", ".aac")

# Whoever writes a wav to a pipe cannot go back to fill in its length. ffmpeg and sox
# then leave numbers of this size (two gigabytes, 18 hours) in the header.
_UNKNOWN_LENGTH = 0x7FFF0000

# Headers with room for 64 bits then hold at least this number.
_UNKNOWN_LONG = 1 << 62

# PyAV's names of MP4 containers, whose header tells the length, and of bare AAC (ADTS),
# whose length it only guesses from the bit rate of the beginning.
_MP4, _ADTS = "mov,mp4,m4a,3gp,3g2,mj2", "aac"

# (kernel, stride) of wav2vec2's convolutional layers.
_CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


class AudioStatistics(NamedTuple):
    """Length in samples, mean and population standard deviation of one file."""

    frames: int
    mean: float
    std: float


def read_audio(
    path: str | PathLike,
    start: int = 0,
    stop: int | None = None,
    window: ByteRange | None = None,
) -> np.ndarray:
    """Samples ``start`` to ``stop`` (exclusive) of one 16 kHz mono file.

    Arguments:
        path: A .wav or .flac file, of which only the asked part is read, or an .m4a
            file, which is decoded whole and sliced.
        start, stop: In samples; ``stop=None`` reads to the end.
        window: Offset and size in bytes of the audio file inside of ``path``, whose
            name then says nothing about its format.

    Returns:
        float32 ``[time]``, integer formats scaled to [-1, 1).

    Raises ``UserError`` for a file that is missing or unreadable, has another
    rate or several channels, is shorter than ``stop`` or than its own header
    says, or holds NaN or infinite samples.
    """
    if start < 0 or (stop is not None and stop < start):
        raise UserError(
            f"{_name(path, window)}: samples {start} to {stop} cannot be read; start "
            f"and stop count from 0 and stop is not before start"
        )
    with _Source(path, window) as source:
        if source.is_aac():
            samples = _decode_aac(source)[start:stop]
            # A copy frees the rest of the file. Slicing past its end is silent.
            samples = samples.copy() if start or stop is not None else samples
        else:
            samples = _read_part(source, start, stop)
    if stop is not None and len(samples) != stop - start:
        raise UserError(
            f"{source}: samples {start} to {stop} were asked for but only "
            f"{len(samples)} of those {stop - start} are there; the file changed or "
            f"was cut: restore it, or prepare the CSV again"
        )
    if not np.isfinite(samples).all():
        raise UserError(
            f"{source}: it holds NaN or infinite samples; convert it again from its "
            f"source as 16-bit audio, or leave it out"
        )
    return samples


def audio_frames(path: str | PathLike, window: ByteRange | None = None) -> int:
    """Length in samples of one 16 kHz mono file, or of that in ``window``.

    Taken from the header for wav and flac; m4a files are decoded, because
    their header counts the codec's padding. Raises as ``read_audio`` does.
    """
    with _Source(path, window) as source:
        if source.is_aac():
            return len(_decode_aac(source))
        with _open(source) as sound:
            _check_is_complete(source)
            return sound.frames


def usable_frames(path: str | PathLike, window: ByteRange | None = None) -> int:
    """As ``audio_frames``, but refuse a file shorter than one wav2vec2 frame."""
    frames = audio_frames(path, window)
    _check_minimum(path, window, frames)
    return frames


def audio_statistics(
    path: str | PathLike, window: ByteRange | None = None
) -> AudioStatistics:
    """Decode one file, or that in ``window``, and check that it can be trained on.

    Mean and population standard deviation are those of all samples, accumulated in
    float64. Digital silence is allowed and has a standard deviation of 0.

    Raises as ``read_audio`` and ``usable_frames`` do.
    """
    samples = read_audio(path, window=window)
    _check_minimum(path, window, len(samples))
    samples = samples.astype(np.float64)
    return AudioStatistics(len(samples), float(samples.mean()), float(samples.std()))


def encode_audio(samples: np.ndarray, to: str) -> bytes:
    """A 16-bit wav or flac file (``to``) of float samples [time], as bytes.

    Samples are rounded to the nearest of 16 bits, which changes them by at most
    1/65536 of full scale. What lies beyond full scale is clipped.
    """
    pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    # The caller writes the file: libsndfile has no errno for a full disk.
    encoded = io.BytesIO()
    soundfile.write(encoded, pcm, SAMPLE_RATE, "PCM_16", format=to.upper())
    return encoded.getvalue()


def encoder_frames(samples: int | np.ndarray) -> int | np.ndarray:
    """Frames that wav2vec2's convolutions make of ``samples`` samples.

    Seven layers, one frame per 20 ms (320 samples) of a 400-sample window
    (wav2vec 2.0, arXiv:2006.11477, section 4.2). Fewer than 400 samples give 0.
    """
    frames = samples
    for kernel, stride in _CONVOLUTIONS:
        frames = np.maximum((frames - kernel) // stride + 1, 0)
    return frames


def import_pyav(path: str | PathLike) -> ModuleType:
    """The PyAV module, or a ``UserError`` that says how to get it.

    ``path`` names the file that needs it, for the message.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"{path}: reading {os.path.splitext(path)[1]} files needs PyAV; install "
            f"it with `pip install -e .[m4a]`, or {_conversion(path)}"
        ) from error
    return av


def import_pyav_for(paths: list[str]) -> None:
    """Import PyAV if one of the files needs it.

    Its absence is then told once and early; every file would seem to have a defect.
    """
    path = next((path for path in paths if path.lower().endswith(AAC_SUFFIXES)), None)
    if path is not None:
        import_pyav(path)


class _Source:
    """An audio file, or the one in a window of a file.

    A decoder opens ``file``: a path, or the window, which is open until the end of
    the ``with`` statement. As text a source is its name in messages.
    """

    def __init__(self, path, window):
        self.path = os.fspath(path)
        self.window = window
        try:
            self.path.encode()
        except UnicodeEncodeError as error:
            # No decoder takes such a name.
            raise UserError(
                f"{self.path}: its path is not UTF-8; rename the file or folder"
            ) from error
        self.file = self.path if window is None else self.open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.window is not None:
            self.file.close()

    def __str__(self):
        return _name(self.path, self.window)

    def open(self):
        """The bytes as a new file."""
        if self.window is None:
            return open(self.path, "rb")
        offset, size = map(int, self.window)
        try:
            present = os.path.getsize(self.path)
            if present >= offset + size:
                return Window(self.path, offset, size)
        except OSError as error:
            self.file = None
            raise _unreadable(self, error) from error
        raise UserError(
            f"{self.path}: it has {present} bytes, but an utterance is to stand at "
            f"{offset} to {offset + size}; it was cut or replaced: copy it again, or "
            f"make the shards again"
        )

    def is_aac(self):
        """Whether this needs PyAV: told by the name, in a window by the content."""
        if self.window is None:
            return self.path.lower().endswith(AAC_SUFFIXES)
        head = self.file.read(8)
        self.file.seek(0)
        return _begins_aac(head)


def _begins_aac(head):
    """Whether a file that begins with these 8 bytes is MP4 or ADTS."""
    head = head.ljust(8)
    # ADTS are the frames by themselves; those of MP3 have a layer.
    return head[4:8] == b"ftyp" or (head[0] == 0xFF and head[1] & 0xF6 == 0xF0)


def _name(path, window):
    """What messages call a file; in a tar, the member that a window holds."""
    if window is None:
        return os.fspath(path)
    offset, size = map(int, window)
    # A member's header stands in the 512 bytes before it.
    with contextlib.suppress(OSError), Window(path, max(offset - 512, 0), 512) as tar:
        header = tar.read(512)
        if header[257:262] == b"ustar":
            member = header[:100].partition(b"\0")[0].decode(errors="replace")
            return f"{path}: {member}"
    return f"{path}: bytes {offset} to {offset + size}"


def _check_minimum(path, window, frames):
    """Refuse less audio than one frame of the encoder needs."""
    if frames < MINIMUM_SAMPLES:
        raise UserError(
            f"{_name(path, window)}: it has {frames} samples, fewer than the "
            f"{MINIMUM_SAMPLES} that one wav2vec2 frame needs; leave it out"
        )


def _read_part(source, start, stop):
    """Samples of a wav or flac file, fewer than asked for at its end."""
    with _open(source) as sound:
        if stop is None:
            _check_is_complete(source)
        end = sound.frames if stop is None else min(stop, sound.frames)
        if start >= sound.frames:
            return np.zeros(0, dtype=np.float32)
        try:
            if start:
                sound.seek(start)
            samples = sound.read(end - start, dtype="float32")
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise _unreadable(source, error) from error
        if len(samples) < end - start:
            raise UserError(
                f"{source}: it is truncated: its header promises {sound.frames} "
                f"samples but only {start + len(samples)} can be read; copy or "
                f"download it again, or leave it out"
            )
    return samples


@contextlib.contextmanager
def _open(source):
    """The opened wav or flac file, its rate, channels and length checked."""
    try:
        sound = soundfile.SoundFile(source.file)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise _unreadable(source, error) from error
    with sound:
        _check_format(source, sound.samplerate, sound.channels)
        # libsndfile gives such a length for a flac that was written to a pipe.
        if sound.frames >= 2**48:
            raise UserError(
                f"{source}: its header does not state its length; {_conversion(source)}"
            )
        yield sound


def _decode_aac(source):
    """All samples of the first audio stream of an m4a file."""
    av = import_pyav(str(source))
    blocks = []
    try:
        with av.open(source.file) as container:
            kind = container.format.name
            if kind not in (_MP4, _ADTS):
                raise UserError(
                    f"{source}: by its content it is {kind}, not m4a or aac; give it "
                    f"the ending of what it is, or {_conversion(source)}"
                )
            if not container.streams.audio:
                raise UserError(f"{source}: it has no audio stream; leave it out")
            stream = container.streams.audio[0]
            codec = stream.codec_context
            if codec is None:
                raise _unreadable(source, "the description of its codec is damaged")
            _check_format(source, codec.sample_rate, codec.channels)
            promised = 0
            if stream.duration and kind == _MP4:
                promised = round(stream.duration * stream.time_base * SAMPLE_RATE)
            for frame in container.decode(stream):
                _check_format(source, frame.sample_rate, frame.layout.nb_channels)
                blocks.append(frame.to_ndarray().reshape(-1))
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(source, error) from error
    if not blocks:
        raise UserError(
            f"{source}: it holds no audio; download it again or leave it out"
        )
    samples = np.concatenate(blocks)
    if samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    # Encoders disagree about whether their padding at start and end (a few blocks of
    # 1024 samples) counts. Where more is missing, the file was cut.
    if len(samples) < promised - 4 * 1024:
        raise UserError(
            f"{source}: it is truncated: its header promises {promised} samples but "
            f"only {len(samples)} can be decoded; download it again, or leave it out"
        )
    return samples.astype(np.float32, copy=False)


def _check_format(source, rate, channels):
    """Refuse anything but 16 kHz mono."""
    if rate != SAMPLE_RATE or channels != 1:
        raise UserError(
            f"{source}: it has {rate} Hz and {channels} channel(s), but 16000 Hz and "
            f"1 channel are needed; {_conversion(source)}"
        )


def _check_is_complete(source):
    """Refuse a file whose header promises more bytes of samples than it has.

    libsndfile shortens a cut file of these formats without a word.
    """
    with source.open() as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        head = stream.read(12)
        stream.seek(0)
        promise = next((_PROMISES[k] for k in _PROMISES if head.startswith(k)), None)
        try:
            start, length = (promise and promise(stream)) or (0, 0)
        except (struct.error, ValueError) as error:
            raise _unreadable(source, f"its header is damaged: {error}") from error
    present = max(size - start, 0)
    if present < length:
        raise UserError(
            f"{source}: it is truncated: its header promises {length} bytes of samples "
            f"but {present} are there; copy or download it again, or leave it out"
        )


def _iff_promise(stream):
    """Where the samples of a wav (RIFF, RIFX, RF64, BW64) or AIFF start, their bytes.

    The bytes are 0 where the header does not tell. None: there are no samples.
    """
    head = stream.read(12)
    if head[:4] == b"FORM" and head[8:11] != b"AIF":
        return None
    order = ">" if head[:4] in (b"RIFX", b"FORM") else "<"
    # Beyond 4 GB an earlier chunk holds the length of the samples.
    long = None
    while len(chunk := stream.read(8)) == 8:
        name, length = struct.unpack(f"{order}4sI", chunk)
        if name in (b"data", b"SSND"):
            if long is not None:
                return stream.tell(), long
            return stream.tell(), length if length < _UNKNOWN_LENGTH else 0
        end = stream.tell() + length + length % 2
        if name == b"ds64":
            long = struct.unpack("<QQ", stream.read(16))[1]
            long = long if long < _UNKNOWN_LONG else 0
        # Chunks are padded to an even length.
        stream.seek(end)
    return None


def _w64_promise(stream):
    """The same of Sony Wave64, which has chunks of 16 + 8 bytes at multiples of 8."""
    stream.seek(40)
    while len(chunk := stream.read(24)) == 24:
        name, length = struct.unpack("<16sQ", chunk)
        if name[:4] == b"data":
            length -= 24
            return stream.tell(), length if length < _UNKNOWN_LONG else 0
        if length < 24:
            raise ValueError(f"a chunk of {length} bytes")
        stream.seek(stream.tell() - 24 + -(-length // 8) * 8)
    return None


def _au_promise(stream):
    """The same of a Sun file, whose header has both numbers."""
    order = ">" if stream.read(4) == b".snd" else "<"
    start, length = struct.unpack(f"{order}II", stream.read(8))
    return start, length if length < _UNKNOWN_LENGTH else 0


def _sphere_promise(stream):
    """The same of NIST SPHERE: lines as `sample_count -i 8000` follow its size."""
    start = int(stream.read(16)[8:])
    fields = dict(
        line.split()[::2]
        for line in stream.read(max(start - 16, 0)).decode("latin-1").split("\n")
        if len(line.split()) == 3
    )
    if "sample_count" not in fields:
        return None
    sizes = (fields.get(name, "1") for name in ("channel_count", "sample_n_bytes"))
    return start, math.prod(map(int, (fields["sample_count"], *sizes)))


# The function that reads a file's promise, by the first bytes of the file.
_PROMISES = {
    **dict.fromkeys((b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"), _iff_promise),
    b"riff": _w64_promise,
    **dict.fromkeys((b".snd", b"dns."), _au_promise),
    b"NIST_1A": _sphere_promise,
}


def _unreadable(source, error):
    """The ``UserError`` for a file that a decoder refused for ``error``."""
    if not os.path.exists(source.path):
        return UserError(
            f"{source}: the file does not exist; restore it, or prepare the CSV again "
            f"if the corpus has moved"
        )
    if source.window is None and os.path.isfile(source.path):
        with contextlib.suppress(OSError), open(source.path, "rb") as stream:
            head = stream.read(24)
            if _begins_aac(head) and not source.is_aac():
                return UserError(
                    f"{source}: by its content it is m4a or aac; name it so, or "
                    f"{_conversion(source)}"
                )
            if head.startswith(b"version https://git-lfs"):
                return UserError(
                    f"{source}: it is a pointer of git-lfs instead of the audio; run "
                    f"`git lfs pull` where it comes from"
                )
    if os.path.isfile(source.path) and not os.path.getsize(source.path):
        reason = "the file is empty (0 bytes)"
    else:
        reason = str(error).replace(source.path, "").replace(repr(source.file), "''")
        reason = f"it is not readable as audio ({' '.join(reason.split())})"
    return UserError(f"{source}: {reason}; copy or download it again, or leave it out")


def _conversion(source):
    """The remedy for a file in another format."""
    # The name of a shard's member stands behind the shard's.
    name = os.path.basename(str(source)).rpartition(": ")[2]
    return f"convert it with `ffmpeg -i {name} -ar 16000 -ac 1 OUT.wav`"
