"""The spoken demo corpus: layout, reproducibility, and what must not be shared."""

import csv
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile

from lobes.data.vocabulary import Vocabulary
from lobes.errors import UserError
from lobes.preparation import demo_corpus, demo_plan, demo_voices
from lobes.preparation.demo_corpus import make_demo_corpus
from lobes.preparation.demo_plan import SMALL, Sizes, part_of, plan

pytest.importorskip(
    "espeakng_loader", reason="the demo extra is not installed (pip install -e .[demo])"
)

# Small enough that a test may make its own.
TINY = Sizes((2, 3), (1, 2), (1, 2), (2, 2, 1), (3, 2, 1), 2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A small corpus and what was returned for it."""
    out = tmp_path_factory.mktemp("demo") / "corpus"
    return out, make_demo_corpus(out, seed=3, jobs=2, sizes=SMALL)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny corpus; tests must not change it."""
    out = tmp_path_factory.mktemp("demo") / "tiny"
    make_demo_corpus(out, seed=3, jobs=1, sizes=TINY)
    return out


def audio_of(folder):
    """All audio files, relative, sorted."""
    found = [*folder.rglob("*.flac"), *folder.rglob("*.wav")]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def digests(folder):
    """Content of all files but the marker."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != demo_corpus.MARKER
    }


def transcripts(out, subset="*"):
    """``{utterance: transcript}`` of the matching subsets."""
    return dict(
        line.split(" ", 1)
        for path in out.glob(f"LibriSpeech/{subset}/*/*/*.trans.txt")
        for line in path.read_text(encoding="utf-8").splitlines()
    )


def test_counts_and_marker(corpus):
    out, made = corpus
    assert made["made"] and made["speakers"] == 18
    assert made["utterances"] == len(audio_of(out)) == 24 + 6 + 6 + 36 + 24
    assert made["sets"]["VoxCeleb2/dev"]["utterances"] == 36
    stored = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    assert stored | {"made": True} == made
    assert stored["options"]["seed"] == 3
    assert {p.name for p in out.iterdir()} == {
        "LibriSpeech",
        "VoxCeleb1",
        "VoxCeleb2",
        "corpus.json",
    }
    assert {p.name for p in out.parent.iterdir()} == {"corpus"}


def test_librispeech_layout(corpus):
    out, made = corpus
    spoken = transcripts(out)
    files = sorted(out.glob("LibriSpeech/*/*/*/*.flac"))
    assert sorted(path.stem for path in files) == sorted(spoken)
    for path in files:
        speaker, chapter, number = path.stem.split("-")
        assert path.parts[-3:-1] == (speaker, chapter)
        assert speaker.isdecimal() and chapter.isdecimal() and len(number) == 4
        assert (path.parent / f"{speaker}-{chapter}.trans.txt").is_file()
    chapters = [path.name for path in out.glob("LibriSpeech/*/*/*")]
    assert len(chapters) == len(set(chapters)) == 2 * 8
    lines = (out / "LibriSpeech" / "SPEAKERS.TXT").read_text("utf-8").splitlines()
    assert lines[0] == ";ID  |SEX| SUBSET           |MINUTES| NAME"
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[1:]]
    folders = {(p.name, p.parent.name) for p in out.glob("LibriSpeech/*/*")}
    assert {(row[0], row[2]) for row in rows} == folders
    assert Counter(row[1] for row in rows) == {"F": 4, "M": 4}
    minutes = sum(float(row[3]) for row in rows)
    hours = sum(v["hours"] for k, v in made["sets"].items() if "Libri" in k)
    assert minutes == pytest.approx(60 * hours, abs=0.05)


def test_voxceleb_layout(corpus):
    out, _ = corpus
    for pattern in ("VoxCeleb1/wav/*/*/*", "VoxCeleb2/dev/wav/*/*/*"):
        videos = set()
        for path in out.glob(pattern):
            speaker, video, name = path.parts[-3:]
            assert speaker.startswith("id") and len(speaker) == 7
            assert len(video) == 11 and video.isalnum() and video.isascii()
            assert name[:5].isdecimal() and name[5:] == ".wav"
            videos.add((speaker, video))
        assert len({video.lower() for _, video in videos}) == len(videos)
    with open(out / "VoxCeleb1" / "vox1_meta.csv", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
    assert rows[0] == ["VoxCeleb1 ID", "VGGFace1 ID", "Gender", "Nationality", "Set"]
    assert {row[0] for row in rows[1:]} == {
        path.name for path in out.glob("VoxCeleb1/wav/*")
    }
    content = (out / "VoxCeleb2" / "vox2_meta.csv").read_bytes().decode()
    lines = content.split("\r\n")
    assert lines[0] == "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set" and lines[-1] == ""
    assert lines[1] == "id00012 ,n000012 ,f ,dev"
    assert {line[:7] for line in lines[1:-1]} == {
        path.name for path in out.glob("VoxCeleb2/dev/wav/*")
    }


def test_audio_is_16_khz_mono_and_not_clipped(corpus):
    out, _ = corpus
    for file in audio_of(out):
        samples, rate = soundfile.read(out / file, dtype="int16")
        assert rate == 16000 and samples.ndim == 1
        assert soundfile.info(out / file).subtype == "PCM_16"
        seconds = len(samples) / rate
        assert (1.1 if file.startswith("Libri") else 2) < seconds < 6, file
        level = np.std(samples / 32768.0)
        assert 0.02 < level < 0.12, file
        assert 0.1 < np.abs(samples.astype(float)).max() / 32768 <= 0.951, file


def test_transcripts_are_in_the_vocabulary(corpus):
    out, _ = corpus
    vocabulary = Vocabulary()
    for text in transcripts(out).values():
        assert 4 <= len(text.split()) <= 6
        assert vocabulary.decode(_with_blanks(vocabulary.encode(text))) == text


def _with_blanks(indices):
    """A CTC path: a blank between any two letters keeps double ones apart."""
    return [i for index in indices for i in (index, Vocabulary.blank_index)]


def test_the_grammar_uses_all_letters_and_about_40_words():
    spoken = [s for part in demo_plan.sentences().values() for t in part for s in t]
    assert len(spoken) == len(set(spoken)) > 5000
    words = {word for sentence in spoken for word in sentence.split()}
    assert 38 <= len(words) <= 48
    assert set("".join(words)) == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ'")
    shares = Counter(map(part_of, spoken))
    assert shares["train"] / len(spoken) == pytest.approx(0.4, abs=0.03)
    assert shares["pretraining"] / len(spoken) == pytest.approx(0.4, abs=0.03)
    assert shares["test"] / len(spoken) == pytest.approx(0.1, abs=0.02)
    # "A" is never followed by a vowel.
    assert not [s for s in spoken if any(f" A {v}" in f" {s}" for v in "AEIOU")]


def test_the_pretraining_corpus_shares_no_sentence_and_no_voice():
    """The demo's encoder must not have met what the demo measures."""
    demo = plan(demo_plan.SEED, SMALL)
    pretraining = plan(4321, SMALL, pretraining=True)

    def spoken(speakers):
        texts = [t for s in speakers for r in s.recordings for t in r.texts]
        return {sentence for text in texts for sentence in text}

    assert {part_of(s) for s in spoken(pretraining)} == {"pretraining"}
    assert not spoken(demo) & spoken(pretraining)
    assert not {s.variant for s in demo} & {s.variant for s in pretraining}


def test_more_voices_than_espeak_reads_from_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_voices, "_VOICES_PER_FOLDER", 3)
    out = tmp_path / "corpus"
    assert make_demo_corpus(out, sizes=SMALL, jobs=2)["speakers"] > 2 * 3


def test_sentences_and_voices_are_never_shared(corpus):
    out, _ = corpus
    train, dev, test = (
        set(transcripts(out, subset).values())
        for subset in ("train-clean-100", "dev-other", "test-other")
    )
    assert train and dev and test
    assert not train & dev and not train & test and not dev & test
    speakers = plan(3, Sizes())
    assert len({s.id for s in speakers}) == len(speakers) == 198
    assert len({s.variant for s in speakers}) == len(speakers)
    parts = {group: set() for group in demo_plan.GROUPS}
    for speaker in speakers:
        for recording in speaker.recordings:
            parts[speaker.group].update(s for text in recording.texts for s in text)
    assert not (parts["train"] | parts["vox2"]) & (parts["test"] | parts["vox1"])
    assert not parts["dev"] & (parts["train"] | parts["vox2"] | parts["test"])


def test_a_speaker_does_not_depend_on_how_many_there_are():
    few = {s.id: s for s in plan(3, SMALL) if s.group == "vox2"}
    more = dataclasses.replace(SMALL, train=(9, 6), vox2=(20, 3, 2))
    many = {s.id: s for s in plan(3, more) if s.group == "vox2"}
    assert few.items() <= many.items()


@pytest.mark.parametrize("name", ["veri_test2.txt", "list_test_hard2.txt"])
def test_trials(corpus, name):
    out, _ = corpus
    with open(out / "VoxCeleb1" / "vox1_meta.csv", newline="") as stream:
        sex = {
            row["VoxCeleb1 ID"]: row["Gender"]
            for row in csv.DictReader(stream, delimiter="\t")
        }
    lines = (out / "VoxCeleb1" / name).read_bytes().decode().splitlines()
    trials = [line.split(" ") for line in lines]
    assert Counter(label for label, _, _ in trials) == {"1": 20, "0": 20}
    assert len({frozenset(pair) for _, *pair in trials}) == len(trials)
    for label, one, other in trials:
        for file in (one, other):
            assert (out / "VoxCeleb1" / "wav" / file).is_file()
        (speaker, video, _), (speaker2, video2, _) = one.split("/"), other.split("/")
        assert (label == "1") == (speaker == speaker2)
        if label == "1":
            assert video != video2
        elif "hard" in name:
            assert sex[speaker] == sex[speaker2]


def test_same_bytes_for_any_number_of_jobs(tiny, tmp_path):
    make_demo_corpus(tmp_path / "again", seed=3, jobs=3, sizes=TINY)
    assert digests(tmp_path / "again") == digests(tiny)


def test_another_seed_says_something_else(tiny, tmp_path):
    make_demo_corpus(tmp_path / "other", seed=4, jobs=2, sizes=TINY)
    assert not set(digests(tiny).values()) & {
        digest
        for file, digest in digests(tmp_path / "other").items()
        if file.endswith((".flac", ".wav"))
    }


def test_voices_differ(corpus):
    """By pitch, and in their long-term spectra more than their recordings do."""
    out, _ = corpus
    spectra, speakers, pitch = [], [], []
    for path in sorted(out.glob("VoxCeleb2/dev/wav/*/*/*.wav")):
        samples, _ = soundfile.read(path)
        frames = samples[: len(samples) // 512 * 512].reshape(-1, 512)
        power = np.abs(np.fft.rfft(frames * np.hanning(512))) ** 2
        spectra.append(np.log(power.mean(axis=0)[1:129].reshape(32, 4).mean(axis=1)))
        speakers.append(path.parts[-3])
        pitch.append(_pitch(samples))
    spectra, speakers = np.array(spectra), np.array(speakers)
    spectra -= spectra.mean(axis=1, keepdims=True)
    distance = np.linalg.norm(spectra[:, None] - spectra, axis=-1)
    same = speakers[:, None] == speakers
    np.fill_diagonal(distance, np.nan)
    assert np.nanmean(distance[~same]) > 1.15 * np.nanmean(distance[same])
    # Speakers take turns: the even ones are women.
    female = np.array([int(name[2:]) % 2 == 0 for name in speakers])
    pitch = np.array(pitch)
    assert np.median(pitch[female]) > 150 > np.median(pitch[~female])


def test_readers_have_voices_of_their_own(corpus):
    """espeak-ng gives its default voice, a man's, for a variant that it cannot read."""
    out, _ = corpus
    text = (out / "LibriSpeech" / "SPEAKERS.TXT").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if not line.startswith(";")]
    sex = {row[0].strip(): row[1].strip() for row in rows}
    pitch = {}
    for path in sorted(out.glob("LibriSpeech/*/*/*/*.flac")):
        samples, _ = soundfile.read(path)
        pitch.setdefault(path.parts[-3], []).append(_pitch(samples))
    medians = {speaker: np.median(values) for speaker, values in pitch.items()}
    women = [median for speaker, median in medians.items() if sex[speaker] == "F"]
    men = [median for speaker, median in medians.items() if sex[speaker] == "M"]
    assert min(len(women), len(men)) > 1
    assert np.median(women) > np.median(men) + 20
    assert np.std(women) > 5 and np.std(men) > 5


def _pitch(samples):
    """Pitch of an utterance in Hz, from its autocorrelation."""
    power = np.abs(np.fft.rfft(samples, 1 << 17)) ** 2
    # Low frequencies only: formants would lend their own periods.
    power[int(900 / 16000 * (1 << 17)) :] = 0
    correlation = np.fft.irfft(power)
    lags = np.arange(16000 // 300, 16000 // 70)
    return 16000 / lags[np.argmax(correlation[lags])]


def test_a_second_call_does_nothing(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    again = make_demo_corpus(tiny, seed=3, jobs=2, sizes=TINY)
    assert not again["made"] and again["speakers"] == 9
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def test_rebuilt_when_incomplete_or_with_other_options(tmp_path):
    out = tmp_path / "corpus"
    make_demo_corpus(out, seed=3, sizes=TINY)
    first = digests(out)
    next(out.rglob("*.wav")).unlink()
    assert make_demo_corpus(out, seed=3, sizes=TINY)["made"]
    assert digests(out) == first
    fewer = dataclasses.replace(TINY, vox2=(1, 2, 1))
    assert make_demo_corpus(out, seed=3, sizes=fewer)["made"]
    assert len(digests(out)) == len(first) - 2
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_refuses_what_it_did_not_make(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match="mine"):
        make_demo_corpus(tmp_path / "mine", sizes=TINY)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file"):
        make_demo_corpus(tmp_path / "file", sizes=TINY)


def test_refuses_to_delete_files_added_to_a_corpus(tmp_path):
    out = tmp_path / "corpus"
    (out / "results").mkdir(parents=True)
    marker = {"options": {"tool": demo_corpus.TOOL}}
    (out / "corpus.json").write_text(json.dumps(marker))
    with pytest.raises(UserError, match="not only"):
        make_demo_corpus(out, sizes=TINY)


@pytest.mark.fault(
    "C6",
    "own recordings or CSVs laid into the demo's corpus, which is then made anew",
    "it would be made anew, but holds ..., which tools/demo_corpus.py did not write",
)
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("LibriSpeech/train-clean-100/own/1/own-1-1.flac", "1 more recordings"),
        ("LibriSpeech/train-clean-100/train.csv", "train-clean-100/train.csv"),
    ],
)
def test_own_files_inside_a_corpus_are_not_replaced(tiny, tmp_path, name, told):
    out = tmp_path / "corpus"
    shutil.copytree(tiny, out)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("precious")
    with pytest.raises(UserError, match=told):
        make_demo_corpus(out, seed=4, sizes=TINY)
    assert (out / name).read_text() == "precious"


def test_an_attempt_killed_at_its_very_end_is_cleared(tiny, tmp_path):
    out = tmp_path / "corpus"
    shutil.copytree(tiny, tmp_path / "corpus.part")
    assert make_demo_corpus(out, seed=3, sizes=TINY)["made"]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


#: Holds the lock of a corpus until it is killed.
HOLDER = """
import sys
from lobes.system.locks import one_writer
with one_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_attempt_is_cleared_and_a_living_one_respected(tmp_path):
    out = tmp_path / "corpus"
    part = tmp_path / "corpus.part"
    part.mkdir()
    (part / "half.wav").write_bytes(b"")
    with pytest.raises(UserError, match="was not left by"):
        make_demo_corpus(out, sizes=TINY)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(part / "making.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"pid {holder.pid}"):
            make_demo_corpus(out, sizes=TINY)
        holder.kill()
    make_demo_corpus(out, sizes=TINY)
    assert "half.wav" not in {path.name for path in out.rglob("*")}
    assert not part.exists()


def test_nothing_stays_when_speaking_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(
        demo_corpus, "installed_espeak", lambda: _with_library("no-such-library.so")
    )
    with pytest.raises(RuntimeError, match="status"):
        make_demo_corpus(tmp_path / "corpus", sizes=TINY)
    assert not list(tmp_path.iterdir())


def _with_library(library):
    """The true data folder with another library."""
    import espeakng_loader

    return library, espeakng_loader.get_data_path()


def test_missing_espeak_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install -e \.\[demo\]"):
        make_demo_corpus(tmp_path / "corpus", sizes=TINY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"trials": 10_000},
        {"trials": 3},
        {"vox1": (4, 1, 3)},
        {"vox1": (2, 2, 3)},
        {"train": (0, 5)},
        {"dev": (2, 1000)},
        {"vox2": (1, 101, 1)},
    ],
)
def test_impossible_sizes(tmp_path, change):
    sizes = dataclasses.replace(SMALL, **change)
    with pytest.raises(UserError, match="choose"):
        make_demo_corpus(tmp_path / "corpus", sizes=sizes)
