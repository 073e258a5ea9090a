"""What grows with a corpus: prepare one of many entries, open it, and measure.

    python -m tests.helpers.scale 1092009 FOLDER

The entries are links to 50 files of 0.1 s, laid out as VoxCeleb2, so that listing,
remembering and writing are measured and not decoding; that is measured with 200 files
of 5 s. Seconds are of one process, [processor, wall clock]; memory is in bytes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from lobes.data.audio import SAMPLE_RATE
from lobes.data.utterance_tables import read_table
from lobes.preparation.scan import scan_audio
from recipes.VoxCeleb import voxceleb_prepare

#: As in VoxCeleb2, on average: 182 utterances of 24 videos of a speaker.
VIDEOS, UTTERANCES = 24, 7


def write_tree(folder, entries):
    """``entries`` wav files below ``folder``/dev/wav, named as VoxCeleb2's."""
    sources = write_noise(folder / "sources", 50, 1600, "wav")
    for entry in range(entries):
        video, utterance = divmod(entry, UTTERANCES)
        speaker = video // VIDEOS
        place = folder / "dev" / "wav" / f"id{speaker:05d}" / f"{video:06d}VIDEO"
        if not utterance:
            place.mkdir(parents=True)
        os.link(sources[entry % 50], place / f"{utterance:05d}.wav")


def write_noise(folder, count, samples, suffix):
    """Paths of ``count`` files, each a sample longer than the one before."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        noise = np.random.RandomState(number).randint(-9000, 9000, samples + number)
        soundfile.write(path, noise.astype(np.int16), SAMPLE_RATE)
    return paths


def measure(folder, entries):
    """Seconds of each step of a preparation, and this process's peak of memory."""
    folder = Path(folder)
    # What the first call of everything takes does not grow with the corpus.
    small = folder.with_name(folder.name + "_small")
    write_tree(small, 2000)
    voxceleb_prepare.prepare_voxceleb(
        small, None, small / "csv", num_workers=1, header_only=True
    )
    write_tree(folder, entries)
    found = {"entries": entries, "memory_before": _memory("VmHWM")}

    def prepare(**options):
        counts = voxceleb_prepare.prepare_voxceleb(
            folder, None, folder / "csv", num_workers=1, header_only=True, **options
        )
        names = ("train.csv", "valid.csv")
        assert sum(counts[name]["utterances"] for name in names) == entries

    found["list"] = timed(lambda: voxceleb_prepare.Training(folder))
    found["prepare"] = timed(prepare)
    found["nothing_changed"] = timed(prepare)
    found["other_split"] = timed(lambda: prepare(seed=1))
    found["memory_after"] = _memory("VmHWM")
    for suffix in ("wav", "flac"):
        paths = write_noise(folder / suffix, 200, 5 * SAMPLE_RATE, suffix)
        paths = list(map(str, paths))
        found[f"decode_{suffix}"] = timed(lambda p=paths: scan_audio(p, num_workers=1))
    table = folder / "csv/train.csv"
    command = [sys.executable, "-m", "tests.helpers.scale", "open", table]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {**found, **json.loads(done.stdout)}


def measure_training(csv):
    """Seconds and memory of a CSV's table, and of a stream up to its first batch.

    The preparation vouches for the stream's files. Of a copy of the CSV, which is a
    user's own then, all files are looked at, at first and again.
    """
    # Imported here: pandas would otherwise be, within the first reading.
    import pandas  # noqa: F401

    from lobes.data.labels import Categories
    from lobes.data.streams import RandomCrops
    from lobes.data.utterances import Utterances

    before = _memory("VmRSS")
    found = {"table": timed(lambda: read_table(csv, ["spk_id"]))}
    stream = RandomCrops(
        csv, {"speaker": Categories(csv)}, crop_seconds=0.1, max_batch_samples=32000
    )

    def first_batch():
        stream.open()
        next(stream.batches())

    found["stream"] = timed(first_batch)
    found["stream_memory"] = _memory("VmHWM") - before
    own = Path(csv).parent / "own" / "train.csv"
    own.parent.mkdir()
    shutil.copy(csv, own)
    for name in ("look_first", "look_again"):
        utterances = Utterances(own, {})
        found[name] = timed(utterances.check_files)
    return {**found, "look_memory": _memory("VmHWM") - before}


def timed(function):
    """Seconds that a call takes: [processor, wall clock]."""
    start = time.process_time(), time.perf_counter()
    function()
    return [time.process_time() - start[0], time.perf_counter() - start[1]]


def _memory(kind):
    """Bytes; not from getrusage, which starts at what the parent process had."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) * 1024


if __name__ == "__main__":
    first, place = sys.argv[1:]
    opening = first == "open"
    print(
        json.dumps(measure_training(place) if opening else measure(place, int(first)))
    )
