"""Conversion of a corpus: the same samples, once, whatever interrupts it."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

import lobes.preparation.conversion
from lobes.data.audio import SAMPLE_RATE, read_audio
from lobes.errors import UserError
from lobes.preparation.conversion import FAILED, convert
from tools.convert import main


def write_wav(path, seed, samples=4000, subtype="PCM_16", scale=0.3):
    """Low-pass noise, so that flac has something to compress."""
    wave = np.cumsum(np.random.RandomState(seed).randn(samples))
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = scale * wave / np.abs(wave).max()
    soundfile.write(path, wave, SAMPLE_RATE, subtype=subtype)


def write_corpus(folder, count, samples=4000):
    """VoxCeleb's folders, with wavs where m4a files would be."""
    for number in range(count):
        name = f"dev/aac/id{number // 40:05d}/v{number // 8}/{number % 8:05d}.wav"
        write_wav(folder / name, number, samples)
    return folder


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "VoxCeleb2", 12)


def tree(folder):
    """Content of all files, hidden ones included, but the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".convert.lock"
    }


def refuse_to_decode(monkeypatch):
    def read(path):
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(lobes.preparation.conversion, "read_audio", read)


# --------------------------------------------------------------------------- samples


def test_folders_are_kept_but_aac_becomes_wav(corpus, tmp_path):
    counts = convert(corpus, tmp_path / "out", "flac", num_workers=1)
    assert {k: v for k, v in counts.items() if k != "seconds"} == {
        "files": 12,
        "converted": 12,
        "kept": 0,
        "failed": 0,
        "clipped": 0,
        "copied": 0,
        "hours": 12 * 4000 / SAMPLE_RATE / 3600,
    }
    assert list(sorted(tree(tmp_path / "out"))) == [
        f"dev/wav/id00000/v{n // 8}/{n % 8:05d}.flac" for n in range(12)
    ]
    assert len(tree(corpus)) == 12


def test_16_bit_audio_is_the_same_in_flac(corpus, tmp_path):
    convert(corpus, tmp_path / "out", "flac", num_workers=1)
    for name in tree(corpus):
        output = tmp_path / "out" / name.replace("aac", "wav").replace(".wav", ".flac")
        assert soundfile.info(output).subtype == "PCM_16"
        np.testing.assert_array_equal(read_audio(output), read_audio(corpus / name))


@pytest.mark.parametrize("to", ["wav", "flac"])
def test_m4a_differs_by_rounding_only(mini_corpora, tmp_path, to):
    pytest.importorskip("av", reason="the m4a extra is not installed")
    speaker = sorted((mini_corpora / "VoxCeleb2/dev/aac").iterdir())[0]
    shutil.copytree(speaker, tmp_path / "in/dev/aac" / speaker.name)
    counts = convert(tmp_path / "in", tmp_path / "out", to, num_workers=1)
    assert counts["converted"] == len(tree(tmp_path / "in")) > 5
    for name in tree(tmp_path / "in"):
        decoded = read_audio(tmp_path / "in" / name)
        output = name.replace("/aac/", "/wav/").replace(".m4a", f".{to}")
        stored = read_audio(tmp_path / "out" / output)
        assert stored.shape == decoded.shape
        assert np.abs(stored - np.clip(decoded, -1, 32767 / 32768)).max() <= 2**-16
        # Not all zeros, and not already 16-bit: rounding is really tested.
        assert np.abs(stored).max() > 0.01 and (stored != decoded).any()


def test_samples_beyond_full_scale_are_clipped_and_counted(tmp_path, capsys):
    write_wav(tmp_path / "in/loud.wav", 1, subtype="FLOAT", scale=1.5)
    write_wav(tmp_path / "in/quiet.wav", 2, subtype="FLOAT", scale=0.9)
    main([str(tmp_path / "in"), str(tmp_path / "out"), "--to", "flac"])
    loud = read_audio(tmp_path / "in/loud.wav")
    stored = read_audio(tmp_path / "out/loud.flac")
    assert np.abs(loud).max() > 1
    assert np.abs(stored - np.clip(loud, -1, 32767 / 32768)).max() <= 2**-16
    assert "1 with samples beyond full scale, clipped" in capsys.readouterr().out


# ---------------------------------------------------------------------- interruption


def test_killed_and_resumed_gives_the_same_bytes(tmp_path):
    corpus = write_corpus(tmp_path / "VoxCeleb2", 100, samples=30_000)
    convert(corpus, tmp_path / "whole", "flac", num_workers=1)
    out = tmp_path / "out"
    code = "import sys; from tools.convert import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, corpus, out, "--to", "flac"]
    process = subprocess.Popen(
        [*command, "--num_workers", "2"],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while len(list(out.rglob("*.flac"))) < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Its workers end with it; then nothing changes any more.
    count = -1
    while count != (count := len(tree(out))):
        time.sleep(0.1)
    assert 20 <= count < 100
    # What SIGKILL in the middle of a write leaves.
    done = sorted(out.rglob("*.flac"))[0]
    half = done.with_name(f".{done.name}.part")
    half.write_bytes(done.read_bytes()[:100])
    done.unlink()
    counts = convert(corpus, out, "flac", num_workers=1)
    assert counts["kept"] > 0 and counts["converted"] + counts["kept"] == 100
    assert tree(out) == tree(tmp_path / "whole")


def test_what_is_there_is_not_decoded_again(corpus, tmp_path, monkeypatch, capsys):
    convert(corpus, tmp_path / "out", "flac", num_workers=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    refuse_to_decode(monkeypatch)
    main([str(corpus), str(tmp_path / "out"), "--to", "flac"])
    assert "0 converted, 12 there before, 0 failed" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("damage", ["empty", "html", "cut"])
def test_bad_outputs_are_made_again(tmp_path, damage):
    write_wav(tmp_path / "in/a.wav", 1)
    soundfile.write(tmp_path / "in/b.flac", *soundfile.read(tmp_path / "in/a.wav"))
    (tmp_path / "in/a.wav").unlink()
    convert(tmp_path / "in", tmp_path / "out", "wav", num_workers=1)
    good = tree(tmp_path / "out")
    output = tmp_path / "out/b.wav"
    bad = {"empty": b"", "html": b"<html>", "cut": output.read_bytes()[:-100]}
    output.write_bytes(bad[damage])
    assert convert(tmp_path / "in", tmp_path / "out", "wav")["converted"] == 1
    assert tree(tmp_path / "out") == good


@pytest.mark.fault(
    "C6",
    "convert --to wav beside originals of 8 kHz of the same name",
    "they stay, and stand in convert.failed.csv",
)
def test_audio_that_no_conversion_made_is_not_overwritten(tmp_path):
    write_wav(tmp_path / "a.wav", 1)
    soundfile.write(tmp_path / "a.flac", *soundfile.read(tmp_path / "a.wav"))
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 8000)
    original = (tmp_path / "a.wav").read_bytes()
    for delete in (False, True):
        counts = convert(tmp_path, tmp_path, "wav", num_workers=1, delete=delete)
        assert counts["failed"] == 1
        assert (tmp_path / "a.wav").read_bytes() == original
        assert (tmp_path / "a.flac").exists()
    assert "a.wav is there with 8000 Hz" in (tmp_path / FAILED).read_text()


@pytest.mark.fault(
    "C6",
    "convert --delete where the output was there and is of another recording",
    "the original stays: `was there before and holds other samples`",
)
def test_delete_compares_with_what_was_there(corpus):
    convert(corpus, corpus, "flac", num_workers=1)
    flac = corpus / "dev/wav/id00000/v0/00000.flac"
    flac.write_bytes((flac.parent / "00001.flac").read_bytes())
    counts = convert(corpus, corpus, "flac", num_workers=1, delete=True)
    assert (counts["kept"], counts["failed"]) == (11, 1)
    assert [path.name for path in corpus.rglob("*.wav")] == ["00000.wav"]
    assert "holds other samples" in (corpus / FAILED).read_text()


@pytest.mark.fault(
    "B9",
    "convert to another folder: vox2_meta.csv and transcripts beside the audio",
    "they are copied along, and counted",
)
def test_lists_go_along_to_another_folder(corpus, tmp_path, capsys):
    lists = {"vox2_meta.csv": "m", "list.TXT": "l", "dev/aac/id00000/a.trans.txt": "t"}
    for name, text in lists.items():
        (corpus / name).write_text(text)
    (corpus / "notes.pdf").write_text("x")
    out = tmp_path / "out"
    main([str(corpus), str(out), "--to", "flac", "--num_workers", "1"])
    told = capsys.readouterr()
    assert "12 converted" in told.out and "3 lists and meta files copied" in told.out
    assert "neither audio nor lists, left out: 1 .pdf" in told.err
    copies = {n: c.decode() for n, c in tree(out).items() if not n.endswith(".flac")}
    assert copies == {name.replace("aac", "wav"): text for name, text in lists.items()}
    # What was changed there stays.
    (out / "list.TXT").write_text("mine")
    counts = convert(corpus, out, "flac", num_workers=1)
    assert counts["copied"] == 0 and (out / "list.TXT").read_text() == "mine"
    assert "list.TXT: it differs from the corpus's; kept" in capsys.readouterr().err


@pytest.mark.fault(
    "C6", "convert into a folder within the corpus", "`OUT: ... lies in FOLDER`"
)
def test_an_output_within_the_corpus_is_refused(corpus):
    before = tree(corpus)
    with pytest.raises(UserError, match="dev/wav lies in FOLDER"):
        convert(corpus, corpus / "dev" / "wav", "flac")
    assert tree(corpus) == before and not (corpus / "dev" / "wav").exists()


def test_names_of_any_kind_are_converted_or_listed(tmp_path):
    names = ["a b (1).wav", 'q"uo,te$.wav', "-dash.wav", "new\nline.wav"]
    for number, name in enumerate(names):
        write_wav(tmp_path / "in" / name, number)
    (tmp_path / "in" / names[0]).rename(tmp_path / "in" / "bad\udcfe.wav")
    counts = convert(tmp_path / "in", tmp_path / "out", "flac", num_workers=1)
    assert (counts["converted"], counts["failed"]) == (3, 1)
    failed = (tmp_path / "out" / FAILED).read_text()
    assert r"bad\xfe.wav,its path is not UTF-8" in failed


def test_the_corpus_itself_may_be_the_output(corpus, tmp_path, monkeypatch):
    convert(corpus, corpus, "flac", num_workers=1)
    assert len(tree(corpus)) == 24
    refuse_to_decode(monkeypatch)
    assert convert(corpus, corpus, "flac", num_workers=1)["kept"] == 12


# -------------------------------------------------------------------------- failures


def test_failures_are_listed_counted_and_in_the_exit_status(corpus, tmp_path, capsys):
    bad = sorted(corpus.rglob("*.wav"))[:4]
    whole = bad[0].read_bytes()
    bad[0].write_bytes(whole[:-1000])
    bad[1].write_text("<html>")
    bad[2].write_bytes(b"")
    soundfile.write(bad[3], np.zeros(0), SAMPLE_RATE)
    out = tmp_path / "out"
    arguments = [str(corpus), str(out), "--to", "flac", "--num_workers", "1"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    told = capsys.readouterr().out
    assert "12 files: 8 converted, 0 there before, 4 failed" in told
    assert str(out / FAILED) in told
    with open(out / FAILED, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == list(map(str, bad))
    for row, reason in zip(
        rows, ["truncated", "not readable", "0 bytes", "no samples"], strict=True
    ):
        assert reason in row["reason"] and row["path"] not in row["reason"]
    for path in bad:
        path.write_bytes(whole)
    main(arguments)
    assert "4 converted, 8 there before, 0 failed" in capsys.readouterr().out
    assert not (out / FAILED).exists()


def test_a_full_disk_is_not_the_fault_of_a_million_files(corpus, tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(lobes.preparation.conversion, "_write", full)
    with pytest.raises(UserError, match=r"00000\.flac.*No space left.*make room"):
        convert(corpus, tmp_path / "out", "flac", num_workers=1)
    assert not (tmp_path / "out" / FAILED).exists()


def test_without_pyav_nothing_is_begun(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.m4a").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"a\.m4a.*pip install -e .\[m4a\]"):
        convert(tmp_path / "in", tmp_path / "out", "wav")


def test_two_files_with_one_output(corpus, tmp_path):
    twin = corpus / "dev/wav/id00000/v0/00000.wav"
    write_wav(twin, 5)
    with pytest.raises(UserError, match="would both become .*dev/wav/id00000/v0/00000"):
        convert(corpus, tmp_path / "out", "flac")


def test_nothing_to_convert(corpus, tmp_path):
    write_wav(tmp_path / "other/._a.flac.wav", 1)
    with pytest.raises(UserError, match="but 12 with .wav"):
        convert(corpus, tmp_path / "out", "wav")
    with pytest.raises(UserError, match="but 0 with .flac"):
        convert(tmp_path / "other", tmp_path / "out", "flac")
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "missing", tmp_path / "out", "flac")


# -------------------------------------------------------------------------- deletion


def test_delete_keeps_what_could_not_be_converted(corpus, tmp_path):
    bad = corpus / "dev/aac/id00000/v1/00000.wav"
    bad.write_text("<html>")
    (corpus / "vox2_meta.csv").write_text("kept")
    counts = convert(corpus, corpus, "flac", num_workers=1, delete=True)
    assert (counts["converted"], counts["failed"]) == (11, 1)
    left = set(tree(corpus))
    assert {"dev/aac/id00000/v1/00000.wav", "vox2_meta.csv", FAILED} < left
    assert len(left) == 3 + 11
    assert not (corpus / "dev/aac/id00000/v0").exists()
    bad.unlink()


def test_delete_after_a_conversion_without_it(corpus, tmp_path):
    convert(corpus, corpus, "flac", num_workers=1)
    counts = convert(corpus, corpus, "flac", num_workers=1, delete=True)
    assert (counts["converted"], counts["kept"]) == (0, 12)
    assert len(tree(corpus)) == 12
    assert not (corpus / "dev/aac").exists() and corpus.is_dir()


def test_delete_does_not_trust_a_header(corpus):
    convert(corpus, corpus, "flac", num_workers=1)
    whole = tree(corpus)
    cut = corpus / "dev/wav/id00000/v0/00000.flac"
    cut.write_bytes(cut.read_bytes()[:-500])
    counts = convert(corpus, corpus, "flac", num_workers=1, delete=True)
    assert (counts["converted"], counts["kept"]) == (1, 11)
    assert tree(corpus) == {n: c for n, c in whole.items() if n.endswith(".flac")}


def test_delete_only_what_reads_back_right(corpus, monkeypatch):
    real = lobes.preparation.conversion._write

    def flip(path, content, sync):
        assert sync
        content = bytearray(content)
        if "00003" in path:
            content[-20] ^= 1
        real(path, content, sync)

    monkeypatch.setattr(lobes.preparation.conversion, "_write", flip)
    for path in corpus.rglob("*.wav"):
        soundfile.write(path.with_suffix(".flac"), *soundfile.read(path))
        path.unlink()
    before = tree(corpus)
    counts = convert(corpus, corpus.with_name("out"), "wav", 1, delete=True)
    assert (counts["converted"], counts["failed"]) == (10, 2)
    assert tree(corpus) == {n: c for n, c in before.items() if "00003" in n}
    failed = (corpus.with_name("out") / FAILED).read_text()
    assert failed.count("does not read back") == 2
    # A later run must not take them for good ones.
    assert len(tree(corpus.with_name("out"))) == 10 + 1


def test_another_process_that_converts_there(corpus, tmp_path):
    hold = (
        "import sys; from lobes.system.locks import one_writer\n"
        "with one_writer(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", hold, out / ".convert.lock"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"pid {holder.pid}"):
            convert(corpus, out, "flac")
        holder.stdin.close()
