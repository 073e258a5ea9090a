"""Reading audio: parts, formats, and every defect named in one line."""

import os
import struct
import sys
import tarfile

import numpy as np
import pytest
import soundfile

from lobes.data.audio import (
    SAMPLE_RATE,
    audio_frames,
    audio_statistics,
    encode_audio,
    encoder_frames,
    read_audio,
)
from lobes.errors import UserError
from lobes.system.files import Window


def noise(samples=8000, seed=0):
    """16-bit noise as float32 [time], so that wav and flac keep it exactly."""
    random = np.random.RandomState(seed)
    return (random.randint(-8000, 8000, samples) / 32768).astype(np.float32)


def write_m4a(path, samples, channels=1, rate=SAMPLE_RATE, options=None):
    """Encode float samples [time] as AAC, the same in every channel."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format="mp4", options=options) as container:
        layout = "mono" if channels == 1 else "stereo"
        stream = container.add_stream("aac", rate=rate, layout=layout)
        block = np.tile(samples.astype(np.float32), (channels, 1))
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


@pytest.fixture(params=["wav", "flac"])
def seekable(request, tmp_path):
    """A lossless file of 8,000 samples of noise."""
    path = tmp_path / f"a.{request.param}"
    soundfile.write(path, noise(), SAMPLE_RATE)
    return path


@pytest.mark.parametrize(
    "start,stop", [(0, None), (0, 8000), (1, 7999), (4000, None), (5, 5), (8000, None)]
)
def test_parts_equal_slices_of_the_whole(seekable, start, stop):
    samples = read_audio(seekable, start, stop)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, noise()[start:stop])


def test_frames_of_the_header(seekable):
    assert audio_frames(seekable) == 8000


def test_m4a_is_decoded_and_sliced(tmp_path):
    path = tmp_path / "a.m4a"
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    tone = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    write_m4a(path, tone)
    whole = read_audio(path)
    assert whole.dtype == np.float32 and whole.ndim == 1
    assert len(whole) == audio_frames(path) == audio_statistics(path).frames
    assert abs(len(whole) - len(tone)) <= 2 * 1024
    # The codec delays, it does not scale or change the pitch.
    assert audio_statistics(path).std == pytest.approx(0.5 / 2**0.5, rel=0.02)
    spectrum = np.abs(np.fft.rfft(whole[8000:24000]))
    assert spectrum.argmax() == 440
    np.testing.assert_array_equal(read_audio(path, 100, 300), whole[100:300])
    np.testing.assert_array_equal(read_audio(path, 40000), whole[40000:])


def test_statistics_are_those_of_all_samples(seekable):
    wanted = noise().astype(np.float64)
    statistics = audio_statistics(seekable)
    assert statistics == (8000, wanted.mean(), wanted.std())
    assert all(type(value) in (int, float) for value in statistics)


def test_statistics_are_accumulated_in_float64(tmp_path):
    # Half a million samples on a large offset: float32 sums miss the fourth digit.
    path = tmp_path / "offset.wav"
    samples = (0.9 + 1e-4 * noise(500_000)).astype(np.float32)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    exact = samples.astype(np.float64)
    assert audio_statistics(path).mean == pytest.approx(exact.mean(), rel=1e-12)
    assert audio_statistics(path).std == pytest.approx(exact.std(), rel=1e-9)


@pytest.mark.parametrize("to", ["wav", "flac"])
def test_encoding_rounds_to_16_bits_and_clips(tmp_path, to):
    path = tmp_path / f"a.{to}"
    path.write_bytes(encode_audio(noise(), to))
    np.testing.assert_array_equal(read_audio(path), noise())
    fine = np.array([0.5 + 0.6 / 32768, -1.5, 1.5, 0.4 / 32768] * 100, np.float32)
    path.write_bytes(encode_audio(fine, to))
    expected = np.array([16385, -32768, 32767, 0] * 100) / 32768
    np.testing.assert_array_equal(read_audio(path), expected)


def test_silence_has_a_standard_deviation_of_zero(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(1000), SAMPLE_RATE)
    assert audio_statistics(tmp_path / "a.flac") == (1000, 0.0, 0.0)


@pytest.mark.parametrize("samples,good", [(0, False), (399, False), (400, True)])
def test_less_than_one_frame_is_refused(tmp_path, samples, good):
    path = tmp_path / "short.wav"
    soundfile.write(path, noise(samples), SAMPLE_RATE)
    assert len(read_audio(path)) == samples
    if good:
        assert audio_statistics(path).frames == samples
    else:
        with pytest.raises(UserError, match=f"short.wav: it has {samples} samples"):
            audio_statistics(path)


def html(path):
    path.write_text("<html><body>404 Not Found</body></html>" * 20)


def empty(path):
    path.write_bytes(b"")


def folder(path):
    path.mkdir()


def missing(path):
    pass


def narrow_band(path):
    soundfile.write(path, noise(), 8000)


def wide_band(path):
    soundfile.write(path, noise(), 48000)


def stereo(path):
    soundfile.write(path, np.stack([noise(), noise()], axis=1), SAMPLE_RATE)


def cut(path):
    soundfile.write(path, noise(), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[:9000])


def cut_behind_an_odd_chunk(path):
    soundfile.write(path, noise(), SAMPLE_RATE)
    content = path.read_bytes()
    at = content.index(b"data")
    extra = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    path.write_bytes(content[:at] + extra + content[at:-100])


def overwritten(path):
    soundfile.write(path, noise(40000), SAMPLE_RATE)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\0" * (len(content) - len(content) // 2)
    path.write_bytes(content)


def not_a_number(path):
    samples = noise()
    samples[77] = np.nan
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")


def infinite(path):
    samples = noise()
    samples[-1] = np.inf
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")


def stereo_aac(path):
    write_m4a(path, noise(), channels=2)


def wide_band_aac(path):
    write_m4a(path, noise(), rate=44100)


def cut_aac(path):
    # The index comes last in such a file: without it nothing can be found.
    write_m4a(path, noise(40000))
    path.write_bytes(path.read_bytes()[:-600])


def cut_aac_after_its_index(path):
    # Between two packets, so that no packet is broken.
    import av

    write_m4a(path, noise(80000), options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        ends = [p.pos + p.size for p in container.demux() if p.size]
    path.write_bytes(path.read_bytes()[: ends[40]])


def overwritten_aac(path):
    write_m4a(path, noise(40000))
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") + 4
    content[at + 2000 : at + 12000] = b"\xff" * 10000
    path.write_bytes(content)


DEFECTS = [
    ("a.wav", html, "not readable as audio"),
    ("a.flac", html, "not readable as audio"),
    ("a.wav", empty, r"empty \(0 bytes\)"),
    ("a.flac", empty, r"empty \(0 bytes\)"),
    ("a.wav", folder, "not readable"),
    ("a.wav", missing, "does not exist"),
    ("a.wav", narrow_band, "8000 Hz.*ffmpeg -i a.wav -ar 16000 -ac 1"),
    ("a.flac", wide_band, "48000 Hz.*ffmpeg"),
    ("a.wav", stereo, r"2 channel\(s\).*ffmpeg"),
    ("a.wav", cut, "truncated: its header promises 16000 bytes"),
    ("a.wav", cut_behind_an_odd_chunk, "truncated"),
    ("a.flac", cut, "truncated|not readable"),
    ("a.flac", overwritten, "truncated|not readable"),
    ("a.wav", not_a_number, "NaN or infinite"),
    ("a.wav", infinite, "NaN or infinite"),
    ("a.m4a", html, "not readable"),
    ("a.m4a", empty, r"empty \(0 bytes\)"),
    ("a.m4a", missing, "does not exist"),
    ("a.m4a", stereo_aac, r"2 channel\(s\).*ffmpeg"),
    ("a.m4a", wide_band_aac, "44100 Hz.*ffmpeg"),
    ("a.m4a", cut_aac, "not readable"),
    ("a.m4a", cut_aac_after_its_index, "truncated: its header promises"),
    ("a.m4a", overwritten_aac, "truncated|not readable"),
]


@pytest.mark.parametrize("check", [read_audio, audio_statistics])
@pytest.mark.parametrize("name,defect,problem", DEFECTS)
def test_defects_are_named(tmp_path, name, defect, problem, check):
    if name.endswith("m4a"):
        pytest.importorskip("av")
    path = tmp_path / name
    defect(path)
    with pytest.raises(UserError, match=problem) as caught:
        check(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


CONTAINERS = [
    *((kind, "BIG") for kind in ("WAV", "AIFF", "AU", "NIST")),
    *((kind, "LITTLE") for kind in ("WAV", "AIFF", "AU", "NIST")),
    *((kind, "LITTLE") for kind in ("WAVEX", "RF64", "W64")),
]


@pytest.mark.fault(
    "D10",
    "half a NIST SPHERE, RF64, W64, AIFF or AU file",
    "`it is truncated: its header promises ... bytes of samples but ... are there`",
)
@pytest.mark.parametrize("kind,endian", CONTAINERS)
def test_half_a_file_of_any_container_is_refused(tmp_path, kind, endian):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(), SAMPLE_RATE, "PCM_16", endian, format=kind)
    np.testing.assert_array_equal(read_audio(path), noise())
    content = path.read_bytes()
    for size in (len(content) // 2, content.index(noise_bytes(endian)) + 15998):
        path.write_bytes(content[:size])
        for check in (read_audio, audio_frames):
            with pytest.raises(UserError, match="truncated: its header promises 160"):
                check(path)


def noise_bytes(endian):
    """The first samples as they stand in a file."""
    order = {"LITTLE": "<i2", "BIG": ">i2"}[endian]
    return (noise()[:8] * 32768).astype(order).tobytes()


@pytest.mark.parametrize(
    "kind,before,unknown",
    [
        ("AU", b".snd\0\0\0\x18", b"\xff" * 4),
        ("AIFF", b"SSND", b"\x7f\xff\xff\xff"),
        ("W64", bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), b"\xff" * 8),
    ],
)
def test_a_length_that_was_never_filled_in_is_no_promise(
    tmp_path, kind, before, unknown
):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(), SAMPLE_RATE, "PCM_16", format=kind)
    content = bytearray(path.read_bytes())
    at = content.index(before) + len(before)
    content[at : at + len(unknown)] = unknown
    path.write_bytes(content)
    assert audio_frames(path) == 8000


@pytest.mark.fault(
    "D10",
    "an m4a file called .wav, and a wav called .m4a",
    "`by its content it is m4a or aac; name it so, or convert it with ...`",
)
def test_a_wrong_ending_is_told_as_such(tmp_path):
    path = tmp_path / "a.wav"
    write_m4a(path, noise())
    problem = "content it is m4a or aac; name it so, or convert it with `ffmpeg -i a.w"
    with pytest.raises(UserError, match=problem):
        read_audio(path)
    write_adts(path, noise())
    with pytest.raises(UserError, match=problem):
        read_audio(path)
    path = tmp_path / "b.m4a"
    soundfile.write(path, noise(), SAMPLE_RATE, format="WAV")
    with pytest.raises(UserError, match="by its content it is wav, not m4a"):
        read_audio(path)
    for ending in ("wav", "m4a"):
        path = tmp_path / f"c.{ending}"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        with pytest.raises(UserError, match="pointer of git-lfs.*git lfs pull"):
            read_audio(path)


def write_adts(path, samples):
    """Encode float samples [time] as bare AAC frames."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        block = samples.astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        frame.rate = SAMPLE_RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


@pytest.mark.fault(
    "D8",
    "raw AAC (ADTS) that begins with silence",
    "read whole: only an MP4 container states a length",
)
def test_raw_aac_that_begins_with_silence_is_read(tmp_path):
    path = tmp_path / "a.aac"
    samples = np.concatenate([np.zeros(80000, np.float32), 3 * noise(80000)])
    write_adts(path, samples)
    import av

    # What made the fault: a length that is guessed from the silent beginning.
    with av.open(str(path)) as container:
        guess = container.streams.audio[0]
        assert guess.duration * guess.time_base * SAMPLE_RATE > 2 * len(samples)
    frames = audio_statistics(path).frames
    assert len(samples) <= frames <= len(samples) + 3 * 1024


def test_asking_beyond_the_end_is_refused(seekable):
    with pytest.raises(UserError, match="7000 to 8001.*only 1000 of those 1001"):
        read_audio(seekable, 7000, 8001)
    with pytest.raises(UserError, match="9000 to 9001"):
        read_audio(seekable, 9000, 9001)


def test_asking_beyond_the_end_of_m4a_is_refused(tmp_path):
    write_m4a(tmp_path / "a.m4a", noise())
    with pytest.raises(UserError, match="0 to 99999 were asked for"):
        read_audio(tmp_path / "a.m4a", 0, 99999)


@pytest.mark.parametrize("start,stop", [(-1, None), (-1, 5), (6, 5)])
def test_impossible_parts_are_refused(seekable, start, stop):
    with pytest.raises(UserError, match="count from 0"):
        read_audio(seekable, start, stop)


def test_a_wav_from_a_pipe_has_no_length_to_check(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(), SAMPLE_RATE)
    content = path.read_bytes()
    at = content.index(b"data") + 4
    path.write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
    np.testing.assert_array_equal(read_audio(path), noise())


def test_missing_pyav_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"a.m4a.*pip install -e \.\[m4a\]"):
        read_audio(tmp_path / "a.m4a")


def test_encoder_frames_count_what_the_convolutions_give():
    torch = pytest.importorskip("torch")
    layers = [
        torch.nn.Conv1d(1, 1, kernel, stride)
        for kernel, stride in zip(
            (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True
        )
    ]
    encoder = torch.nn.Sequential(*layers)
    for samples in (400, 719, 720, 16000, 47999, 48000):
        made = encoder(torch.zeros(1, 1, samples)).shape[-1]
        assert encoder_frames(samples) == made
    np.testing.assert_array_equal(
        encoder_frames(np.array([0, 1, 399, 400, 16000])), [0, 0, 0, 1, 49]
    )


def test_real_recordings_in_all_formats(mini_corpora):
    pytest.importorskip("av")
    for pattern in (
        "LibriSpeech/dev-other/145/*/*.flac",
        "VoxCeleb1/wav/id10001/*/*.wav",
        "VoxCeleb2/dev/aac/id00012/*/*.m4a",
    ):
        paths = sorted(mini_corpora.glob(pattern))
        assert paths
        for path in paths:
            frames, mean, std = audio_statistics(path)
            assert 0.5 * SAMPLE_RATE < frames < 40 * SAMPLE_RATE
            assert abs(mean) < 0.01 and 0.001 < std < 0.5
            np.testing.assert_array_equal(
                read_audio(path, 1000, 5000), read_audio(path)[1000:5000]
            )


# Inside of another file -------------------------------------------------------


def put_into_tar(path):
    """A tar with ``path`` between two other members; returns it and the window."""
    tar = path.with_name("t.tar")
    other = path.with_name("other.wav")
    soundfile.write(other, noise(4000, seed=9), SAMPLE_RATE)
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as stream:
        stream.add(other, "other.wav")
        offset = stream.offset + 512
        stream.add(path, path.name)
        stream.add(other, "another.wav")
    return tar, (offset, path.stat().st_size)


@pytest.mark.parametrize(
    "start,stop", [(0, None), (0, 8000), (1, 7999), (4000, None), (5, 5), (8000, None)]
)
def test_parts_of_a_window_equal_slices_of_the_whole(seekable, start, stop):
    tar, window = put_into_tar(seekable)
    samples = read_audio(tar, start, stop, window)
    np.testing.assert_array_equal(samples, noise()[start:stop])
    assert audio_frames(tar, window) == 8000
    assert audio_statistics(tar, window) == audio_statistics(seekable)


def test_m4a_in_a_window_is_known_by_its_content(tmp_path):
    path = tmp_path / "a.m4a"
    write_m4a(path, noise(20000))
    tar, window = put_into_tar(path)
    np.testing.assert_array_equal(
        read_audio(tar, 100, 9000, window), read_audio(path, 100, 9000)
    )
    assert audio_frames(tar, window) == audio_frames(path)


@pytest.mark.parametrize("suffix,share", [("wav", 0.05), ("flac", 0.3)])
def test_a_crop_from_a_window_reads_a_part_of_it(tmp_path, monkeypatch, suffix, share):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(60 * SAMPLE_RATE), SAMPLE_RATE)
    tar, (offset, size) = put_into_tar(path)
    read, readinto = [], Window.readinto

    def counted(self, buffer):
        read.append(readinto(self, buffer))
        return read[-1]

    monkeypatch.setattr(Window, "readinto", counted)
    samples = read_audio(tar, 800_000, 816_000, (offset, size))
    np.testing.assert_array_equal(samples, noise(60 * SAMPLE_RATE)[800_000:816_000])
    assert sum(read) < share * size


@pytest.mark.parametrize(
    "name,defect,problem",
    # The others are no members of a shard.
    [case for case in DEFECTS if case[1] not in (folder, missing, empty)],
)
def test_defects_in_a_window_name_the_member(tmp_path, name, defect, problem):
    if name.endswith("m4a"):
        pytest.importorskip("av")
    path = tmp_path / name
    defect(path)
    tar, window = put_into_tar(path)
    with pytest.raises(UserError, match=problem) as caught:
        read_audio(tar, window=window)
    assert str(caught.value).startswith(f"{tar}: {name}: ")
    assert "\n" not in str(caught.value) and " object at " not in str(caught.value)


def test_a_cut_or_absent_shard_is_told(seekable):
    tar, (offset, size) = put_into_tar(seekable)
    os.truncate(tar, offset + size - 1)
    with pytest.raises(UserError, match="t.tar: it has .* make the shards again"):
        read_audio(tar, 0, 10, (offset, size))
    tar.unlink()
    with pytest.raises(UserError, match="t.tar.* does not exist"):
        read_audio(tar, 0, 10, (offset, size))


def test_a_window_in_any_file_has_its_bytes_for_a_name(seekable):
    other = seekable.with_name("blob")
    other.write_bytes(b"x" * 1000 + seekable.read_bytes())
    window = (1000, seekable.stat().st_size)
    np.testing.assert_array_equal(read_audio(other, window=window), noise())
    with pytest.raises(UserError, match=f"blob: bytes 1000 to {sum(window)}: .* only"):
        read_audio(other, 0, 8001, window)


def test_a_window_is_a_file_of_its_own(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    with Window(tmp_path / "x", 2, 5) as window:
        assert window.read() == b"23456"
        assert window.tell() == 5 and window.read(1) == b""
        assert window.seek(-2, os.SEEK_END) == 3 and window.read(9) == b"56"
        window.seek(1)
        assert window.seek(1, os.SEEK_CUR) == 2 and window.read(1) == b"4"
        assert window.seek(99) == 99 and window.read() == b""
        with pytest.raises(ValueError):
            window.seek(-1)
