"""The bad-input table of docs/preparation.md: every line is what is printed."""

import re

import numpy as np
import pytest
import soundfile

from lobes.data.audio import SAMPLE_RATE
from lobes.data.streams import LengthBuckets, RandomCrops
from lobes.data.utterance_tables import read_table
from lobes.errors import UserError
from lobes.preparation.scan import scan_audio
from recipes.LibriSpeech.librispeech_prepare import prepare_librispeech
from recipes.VoxCeleb.voxceleb_prepare import prepare_voxceleb
from tests.conftest import ROOT

FINE = "fine"
NOISE = np.random.RandomState(0).randint(-9000, 9000, 16000).astype(np.int16)


def write(path, samples=NOISE, rate=SAMPLE_RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def trial_list(text):
    """Prepare two speakers of VoxCeleb1 with a list."""

    def run(folder, said):
        for name in ("id1/v/1", "id1/v/2", "id2/v/1"):
            write(folder / "wav" / f"{name}.wav")
        if text is not None:
            (folder / "veri_test2.txt").write_bytes(text.encode())
        lists = ["veri_test2.txt"]
        prepare_voxceleb(None, folder, folder / "csv", lists, num_workers=1)
        return said("repeat a pair")

    return run


def audio(name="a.wav", samples=NOISE, rate=SAMPLE_RATE, damage=None, **options):
    """What decoding says about a file."""

    def run(folder, said):
        path = write(folder / name, samples, rate, **options)
        if damage:
            path.write_bytes(damage(path.read_bytes()))
        reasons = scan_audio([str(path)], num_workers=1).reasons
        return f"{name}: {reasons[0]}" if reasons else FINE

    return run


def transcript(text):
    """Prepare one utterance of LibriSpeech with a transcript."""

    def run(folder, said):
        place = folder / "train-a" / "1" / "2"
        write(place / "1-2-0000.flac")
        path = place / "1-2.trans.txt"
        path.write_text(f"1-2-0000 {text}\n", encoding="utf-8")
        prepare_librispeech(folder, folder / "csv", ["train-a"], num_workers=1)
        return FINE

    return run


ROWS = ["ID,duration,wav,spk_id", "a,1.0,a.wav,s1", "b,1.0,b.wav,s2"]


def table(change=lambda rows: rows, end="\n", encoding="utf-8", stream=None):
    """Read a CSV, and the first batch of it."""

    def run(folder, said):
        for name in "ab":
            write(folder / f"{name}.wav")
        path = folder / "train.csv"
        path.write_bytes(end.join([*change(list(ROWS)), ""]).encode(encoding))
        read_table(path, ["spk_id"])
        opened = (stream or RandomCrops)(path, {})
        opened.open()
        next(opened.batches())
        return FINE

    return run


def swap(old, new):
    return lambda rows: [row.replace(old, new) for row in rows]


def speakers(*numbers):
    """Prepare VoxCeleb2 with so many utterances of each speaker, in two videos."""

    def run(folder, said):
        for speaker, number in enumerate(numbers):
            for utterance in range(number):
                write(
                    folder / f"id{speaker}" / f"v{utterance % 2}" / f"{utterance}.wav"
                )
        prepare_voxceleb(
            folder, None, folder / "csv", valid_fraction=0.3, num_workers=1
        )
        return said("single utterance")

    return run


def small_budget(csv, labels):
    return LengthBuckets(csv, labels, max_batch_samples=8000)


GOOD = "1 id1/v/1.wav id1/v/2.wav\n0 id1/v/1.wav id2/v/1.wav\n"
NAN = np.full(500, np.nan, np.float32)

CASES = {
    ("F19", "no trial list"): trial_list(None),
    ("F19", "two columns"): trial_list(GOOD + "1 id1/v/1.wav\n"),
    ("F19", "label 2"): trial_list(GOOD + "2 id1/v/1.wav id2/v/1.wav\n"),
    ("F19", "Windows line ends"): trial_list(GOOD.replace("\n", "\r\n")),
    ("F19", "a trial twice"): trial_list(GOOD + GOOD),
    ("F19", "all positive"): trial_list(GOOD.splitlines()[0]),
    ("F19", "absent audio"): trial_list(GOOD + "0 id1/v/9.wav id2/v/1.wav\n"),
    ("F20", "half a wav"): audio(damage=lambda b: b[: len(b) // 2]),
    ("F20", "half a flac"): audio("a.flac", damage=lambda b: b[: len(b) // 2]),
    ("F20", "html in a .wav"): audio(damage=lambda b: b"<html>"),
    ("F20", "0 bytes"): audio(damage=lambda b: b""),
    ("F20", "0 samples"): audio(samples=NOISE[:0]),
    ("F20", "399 samples"): audio(samples=NOISE[:399]),
    ("F21", "a NaN sample"): audio(samples=NAN, subtype="FLOAT"),
    ("F21", "all zeros"): audio(samples=0 * NOISE),
    ("F21", "stereo"): audio(samples=np.stack([NOISE, NOISE], axis=1)),
    ("F21", "8 kHz"): audio(rate=8000),
    ("F21", "48 kHz"): audio(rate=48000),
    ("F23", "an empty transcript"): transcript(""),
    ("F23", "too long for its frames"): transcript("A" * 26),
    ("F23", "lower case, apostrophe"): transcript("it isn't"),
    ("F23", "digits"): transcript("AGENT 007"),
    ("F23", "accents"): transcript("D\u00c9J\u00c0 VU"),
    ("F24", "byte order mark, Windows line ends"): table(
        end="\r\n", encoding="utf-8-sig"
    ),
    ("F24", "Latin-1"): table(swap("s2", "s\u00e9"), encoding="latin-1"),
    ("F24", "an ID twice"): table(swap("b,", "a,")),
    ("F24", "a column missing"): table(swap("spk_id", "speaker")),
    ("F24", "a short row"): table(swap(",s2", "")),
    ("F24", "NaN as duration"): table(swap("b,1.0", "b,nan")),
    ("F24", "a moved corpus"): table(swap("b.wav", "moved/b.wav")),
    ("F26", "one speaker"): speakers(6),
    ("F26", "a speaker with one utterance"): speakers(6, 6, 1),
    ("F27", "an utterance longer than a batch"): table(stream=small_budget),
}


def lines():
    """``{(case, what is injected): line}`` of the page."""
    text = (ROOT / "docs" / "preparation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (F\d\d) \| (.+?) \| (.+) \|$", text, re.MULTILINE)
    return {
        # Two backticks and spaces around a line that has backticks itself.
        (case, what): line[3:-3] if line.startswith("`` ") else line.strip("`")
        for case, what, line in rows
    }


def quoted(line):
    """As the page of the fault cases shows it."""
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def printed(run, folder, capsys):
    """The line, with paths from the injected folder on."""

    def said(part):
        told = capsys.readouterr().err.splitlines()
        return next((line for line in told if part in line), FINE)

    try:
        line = run(folder, said)
    except UserError as error:
        line = str(error)
    assert "\n" not in line
    # What libsndfile calls it differs between its versions.
    line = re.sub(r"readable as audio \(.*?\.\)", "readable as audio (...)", line)
    return line.replace(f"{folder}/", "").replace(str(folder), "FOLDER")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=pytest.mark.fault(*case, quoted(lines().get(case, "no line"))),
            id=" ".join(case),
        )
        for case in CASES
    ],
)
def test_the_page_says_what_is_printed(case, tmp_path, capsys):
    assert lines()[case] == printed(CASES[case], tmp_path, capsys)


def test_the_page_has_no_other_lines():
    assert set(lines()) == set(CASES)
