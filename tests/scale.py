"""Prepare a VoxCeleb2 tree of many entries, and say what that took.

    python -m tests.scale 200000 FOLDER

The entries are links to 50 files of 0.1 s, so that listing, remembering and writing
are measured and not decoding.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from lobes.audio import SAMPLE_RATE
from recipes.VoxCeleb import voxceleb_prepare

#: As in VoxCeleb2, on average: 182 utterances of 24 videos of a speaker.
VIDEOS, UTTERANCES = 24, 7


def write_tree(folder, entries):
    """``entries`` wav files below ``folder``/dev/wav, named as VoxCeleb2's."""
    sources = []
    for number in range(50):
        path = folder / "sources" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.RandomState(number).randint(-9000, 9000, 1600 + number)
        soundfile.write(path, noise.astype(np.int16), SAMPLE_RATE)
        sources.append(path)
    for entry in range(entries):
        video, utterance = divmod(entry, UTTERANCES)
        speaker = video // VIDEOS
        place = folder / "dev" / "wav" / f"id{speaker:05d}" / f"{video:06d}VIDEO"
        if not utterance:
            place.mkdir(parents=True)
        os.link(sources[entry % 50], place / f"{utterance:05d}.wav")


def measure(folder, entries):
    """Seconds of each step and the peak of memory (bytes), this process alone."""
    folder = Path(folder)
    # What the first call of everything takes does not grow with the corpus.
    small = folder.with_name(folder.name + "_small")
    write_tree(small, 2000)
    voxceleb_prepare.prepare_voxceleb(
        small, None, small / "csv", num_workers=1, header_only=True
    )
    write_tree(folder, entries)
    found = {"entries": entries, "memory_before": _peak()}

    def timed(step, **options):
        start = time.process_time(), time.perf_counter()
        counts = voxceleb_prepare.prepare_voxceleb(
            folder, None, folder / "csv", num_workers=1, header_only=True, **options
        )
        found[step] = [time.process_time() - start[0], time.perf_counter() - start[1]]
        names = ("train.csv", "valid.csv")
        assert sum(counts[name]["utterances"] for name in names) == entries

    start = time.process_time(), time.perf_counter()
    voxceleb_prepare._list_utterances(folder)
    found["list"] = [time.process_time() - start[0], time.perf_counter() - start[1]]
    timed("prepare")
    timed("nothing_changed")
    timed("other_split", seed=1)
    found["memory_after"] = _peak()
    return found


def _peak():
    """Bytes; not from getrusage, which starts at what the parent process had."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[2], int(sys.argv[1]))))
