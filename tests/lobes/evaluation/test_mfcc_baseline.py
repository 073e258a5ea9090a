"""The model-free baseline and its command."""

import csv

import numpy as np
import pytest
import soundfile

from lobes.data.audio import SAMPLE_RATE, read_audio
from lobes.errors import UserError
from lobes.evaluation import mfcc_baseline as baseline
from lobes.evaluation.mfcc_baseline import Piece, mean_mfccs, mfcc_baseline
from tools.mfcc_baseline import main


def voice(seed, speaker, seconds=0.5):
    """Noise with one resonance per speaker: a stand-in for a voice."""
    generator = np.random.default_rng(seed)
    samples = generator.normal(size=int(seconds * SAMPLE_RATE))
    frequency = 2 * np.pi * (500 + 1500 * speaker) / SAMPLE_RATE
    for n in range(2, len(samples)):
        samples[n] += 1.8 * np.cos(frequency) * samples[n - 1] - 0.81 * samples[n - 2]
    return samples / np.abs(samples).max() * 0.5


@pytest.fixture
def corpus(tmp_path):
    """Three speakers with three utterances each: a function that writes both files."""
    rows = []
    for speaker in range(3):
        for take in range(3):
            path = tmp_path / f"{speaker}{take}.wav"
            soundfile.write(path, voice(10 * speaker + take, speaker), SAMPLE_RATE)
            rows.append({"ID": f"s{speaker}u{take}", "wav": str(path)})
    pairs = [(a["ID"], b["ID"]) for i, a in enumerate(rows) for b in rows[:i]]
    trials = tmp_path / "trials.txt"
    trials.write_text("".join(f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs))

    def write(rows=rows):
        table = tmp_path / "test.csv"
        with open(table, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return table, trials

    write.rows = rows
    return write


def test_clear_voices_are_told_apart(corpus):
    result = mfcc_baseline(*corpus())
    assert result == {"eer_raw": 0.0, "eer_znorm": 0.0}
    assert {type(value) for value in result.values()} == {float}


def test_voices_under_wrong_names_are_not(corpus):
    names = [row["ID"] for row in corpus.rows]
    mixed = [
        {**row, "ID": names[3 * (i % 3) + i // 3]} for i, row in enumerate(corpus.rows)
    ]
    assert mfcc_baseline(*corpus(mixed))["eer_znorm"] > 40


def test_start_and_stop_choose_the_utterance(corpus, tmp_path):
    joined = tmp_path / "joined.wav"
    parts, rows = [], []
    for row in corpus.rows:
        samples, _ = soundfile.read(row["wav"], dtype="int16")
        start = sum(map(len, parts))
        parts.append(samples)
        limits = {"start": str(start), "stop": str(start + len(samples))}
        rows.append({"ID": row["ID"], "wav": str(joined), **limits})
    soundfile.write(joined, np.concatenate(parts), SAMPLE_RATE)
    assert mfcc_baseline(*corpus(rows)) == mfcc_baseline(*corpus())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "line 29: s2u2 is not in .*test.csv"),
        (lambda rows: [*rows, rows[0]], "line 11, column ID: 's0u0' stands twice"),
        (lambda rows: [{"ID": row["ID"]} for row in rows], "there is no column wav"),
        (
            lambda rows: [{**row, "start": "0", "stop": "399"} for row in rows],
            "has 399 samples, fewer than one window of 400",
        ),
        (
            lambda rows: [{**row, "start": "0.5", "stop": "900"} for row in rows],
            "line 2, column start: 0.5 is not a whole number",
        ),
        (
            lambda rows: [{**row, "wav": row["wav"] + ".gone"} for row in rows],
            r"\d\d.wav.gone: the file does not exist",
        ),
    ],
    ids=["unknown", "twice", "column", "short", "position", "missing file"],
)
def test_bad_tables_are_refused(corpus, change, message):
    with pytest.raises(UserError, match=message):
        mfcc_baseline(*corpus(change(corpus.rows)))


def test_a_missing_table_is_refused(corpus, tmp_path):
    _, trials = corpus()
    with pytest.raises(UserError, match="none.csv does not exist"):
        mfcc_baseline(tmp_path / "none.csv", trials)


def test_utterances_outside_the_trials_do_not_matter(corpus):
    extra = {"ID": "unused", "wav": "/nowhere/unused.wav"}
    assert mfcc_baseline(*corpus([*corpus.rows, extra])) == mfcc_baseline(*corpus())


@pytest.mark.fault(
    "B6",
    "the same audio is evaluated again, some of it changed",
    "vectors of unchanged files come from mfcc_baseline.npz",
)
def test_vectors_are_computed_once(corpus, tmp_path, monkeypatch):
    pieces = [Piece(row["ID"], row["wav"]) for row in corpus.rows]
    cache = tmp_path / "mfcc.npz"
    first = mean_mfccs(pieces, cache, threads=2)
    read = []
    monkeypatch.setattr(
        baseline,
        "read_audio",
        lambda *given: read.append(given[0]) or read_audio(*given),
    )
    again = mean_mfccs(pieces, cache)
    assert read == []
    assert all(np.array_equal(again[name], first[name]) for name in first)
    changed = pieces[3].path
    soundfile.write(changed, voice(99, 2, 0.7), SAMPLE_RATE)
    assert not np.array_equal(mean_mfccs(pieces, cache)["s1u0"], first["s1u0"])
    assert read == [changed]
    cache.write_bytes(b"damaged")
    assert mean_mfccs(pieces, cache).keys() == first.keys()
    assert len(read) == 1 + len(pieces)
    mean_mfccs(pieces, tmp_path / ("x" * 300))
    assert len(read) == 1 + 2 * len(pieces)


def test_real_speech_lies_between_perfect_and_chance(mini_corpora, tmp_path):
    folder = mini_corpora / "VoxCeleb1"
    wavs = sorted((folder / "wav").rglob("*.wav"))
    names = [
        "--".join(p.relative_to(folder / "wav").with_suffix("").parts) for p in wavs
    ]
    table = tmp_path / "test.csv"
    rows = zip(names, wavs, strict=True)
    table.write_text("ID,wav\n" + "".join(f"{name},{path}\n" for name, path in rows))
    official = (folder / "veri_test2.txt").read_text()
    trials = tmp_path / "trials.txt"
    trials.write_text(official.replace("/", "--").replace(".wav", ""))
    result = mfcc_baseline(table, trials)
    assert 10 < result["eer_raw"] < 30
    assert 4 < result["eer_znorm"] < 15


def test_the_command_prints_both_numbers(corpus, capsys):
    table, trials = corpus()
    main([str(table), str(trials)])
    printed = capsys.readouterr().out
    assert "raw             0.00 %" in printed
    assert "z-normalised    0.00 %" in printed


def test_the_command_ends_in_one_line_on_bad_input(corpus, tmp_path, capsys):
    table, _ = corpus()
    with pytest.raises(SystemExit) as end:
        main([str(table), str(tmp_path / "none.txt")])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_has_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "trials" in capsys.readouterr().out
