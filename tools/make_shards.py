"""Put the utterances of prepared CSVs into a few large files: shards.

    python tools/make_shards.py results/prepared/VoxCeleb/{train,valid,test}.csv OUT \
        [--shard_size 1e9] [--to flac] [--num_workers N]

For file systems that hate millions of small files. OUT/train.csv has the rows and
columns of train.csv, with the name of a shard in place of a file and two columns
more, `offset` and `size`: the bytes of the shard that are the file. Recipes and tools
read such a CSV as any other, with the same batches and crops, and of a shard only the
bytes that they need.

A shard, OUT/train-000000.tar, is an uncompressed tar with WebDataset's naming: the
audio, <ID>.flac, as it was, then the row, <ID>.json. A file that stands in several
rows, also of several CSVs, is stored once, under the first one.

Every output is either complete or absent. The same command goes on where a killed
one stopped, and its outputs are the same bytes.
"""

import glob
import hashlib
import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

import numpy as np

from lobes.data.audio import AAC_SUFFIXES, encode_audio, import_pyav_for, read_audio
from lobes.data.utterance_tables import read_header, read_table
from lobes.errors import UserError, resumable
from lobes.preparation.folders import writable_folder
from lobes.preparation.outputs import csv_text
from lobes.settings.signatures import Command
from lobes.settings.table import POSITIVE, option
from lobes.system.files import file_hash, read_json, write_atomically
from lobes.system.locks import one_writer
from lobes.system.parallel import map_in_processes, worker_count
from lobes.system.terminal import progress_bar, say

if TYPE_CHECKING:
    import pandas

# Raised when the content of the output files changes for the same input.
_FORMAT = 1

# Longest name that every tar has room for, in bytes.
_LONGEST_NAME = 100


class Shard(NamedTuple):
    """One tar to be written: its members' ``rows`` in the table of ``csv``."""

    path: Path
    csv: str
    rows: "pandas.DataFrame"
    names: list[str]
    sizes: list[int]
    to: str | None


class Source:
    """One CSV: its ``table``, and where its outputs go.

    ``member`` is [rows, 2]: the index of the shard, among those of all CSVs, and the
    place within it, of every row's file; ``fingerprint`` stands for the contents of
    the shards that begin with this CSV's name.
    """

    def __init__(self, path: str | Path, out: Path):
        self.path = path
        self.name = Path(path).stem
        self.csv = out / f"{self.name}.csv"
        self.marker = out / f"{self.name}.shards.json"
        self.table = read_table(path)
        self.columns = read_header(path)
        if "offset" in self.columns:
            raise UserError(f"{path} lists shards already; give the CSV of the files")
        self.member = np.zeros((len(self.table), 2), dtype=np.int64)
        self.fingerprint = None

    def sizes(self, out: Path) -> dict[str, int]:
        """Bytes of each of this CSV's shards that is there, by its name, sorted."""
        shards = out.glob(f"{glob.escape(self.name)}-{'[0-9]' * 6}.tar")
        return {path.name: path.stat().st_size for path in sorted(shards)}


class Sharding(TypedDict):
    """What became of the CSVs: ``utterances`` by name of the CSV.

    ``kept`` counts the ``shards`` of an earlier run, ``bytes`` what was written now.
    """

    utterances: dict[str, int]
    shards: int
    kept: int
    bytes: int
    seconds: float


def make_shards(
    csvs: Sequence[str | Path],
    out: str | Path,
    shard_size: int = 10**9,
    to: Literal["flac"] | None = None,
    num_workers: int | None = None,
) -> Sharding:
    """Put the utterances of prepared CSVs into shards, or go on with that.

    Arguments:
        csvs: Prepared CSVs, of different names.
        out: Folder for the shards, and for the CSVs that refer to them.
        shard_size: Bytes of audio files that a shard holds at most; a larger file has
            one for itself.
        to: ``flac`` decodes m4a files and stores them with 16 bits, to be read in
            parts. None stores every file as it is.
        num_workers: Processes, by default one for each core.

    Raises ``UserError`` for a CSV that cannot be read, a file that is missing,
    unreadable or changes meanwhile, an ID that is no name for a member, outputs
    that another program wrote, and a full disk.
    """
    began = time.monotonic()
    worker_count(num_workers)
    if not 1 <= shard_size < 1e18:
        raise UserError(
            f"--shard_size={shard_size}: it is a number of bytes from 1; name a size "
            f"like 1e9"
        )
    out = Path(os.path.abspath(out))
    names = [Path(path).stem for path in csvs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two CSVs are called {name}.csv; give each an OUT")
    sources = [Source(path, out) for path in csvs]
    for source in sources:
        _check_outside(out, source)
    out = writable_folder(out, "OUT")
    with one_writer(out / ".make_shards.lock"):
        shards = _plan(sources, out, int(shard_size), to)
        written = [0] * len(shards)
        if not all(_is_complete(source, out) for source in sources):
            for source in sources:
                _make_way(source, out)
            _check_space(shards, out)
            windows, written = _write_shards(shards, num_workers)
            for source in sources:
                _write_csv(source, shards, windows, out)
    return {
        "utterances": {source.name: len(source.table) for source in sources},
        "shards": len(shards),
        "kept": written.count(0),
        "bytes": sum(written),
        "seconds": time.monotonic() - began,
    }


def _check_outside(out, source):
    """Refuse to put shards among the files that a CSV lists."""
    folders = set(map(os.path.dirname, source.table["wav"]))
    if folders & {str(out), os.path.realpath(out)}:
        raise UserError(
            f"OUT: {out} is a folder of audio that {source.path} lists; choose another "
            f"one"
        )


def _plan(sources, out, shard_size, to):
    """Decide which file goes into which ``Shard``, and fingerprint that."""
    shards, places = [], {}
    for source in sources:
        digest = hashlib.sha256(f"{_FORMAT} {shard_size} {to} ".encode())
        digest.update(file_hash(source.path).encode())
        groups, room = [], 0
        for row, (line, path) in enumerate(source.table["wav"].items()):
            if path not in places:
                status = _status(path, source.path, line)
                digest.update(b"%d %d %d\n" % (row, status.st_size, status.st_mtime_ns))
                if not groups or status.st_size > room:
                    groups.append(([], []))
                    room = shard_size
                room -= status.st_size
                rows, sizes = groups[-1]
                places[path] = len(shards) + len(groups) - 1, len(rows)
                rows.append(row)
                sizes.append(status.st_size)
            source.member[row] = places[path]
        source.fingerprint = digest.hexdigest()
        for number, (rows, sizes) in enumerate(groups):
            table = source.table.iloc[rows][[*source.columns]]
            names = [
                _member_name(identity, path, to, f"{source.path}, line {line}")
                for line, identity, path in table[["ID", "wav"]].itertuples()
            ]
            path = out / f"{source.name}-{number:06}.tar"
            shards.append(Shard(path, source.path, table, names, sizes, to))
    return shards


def _status(path, csv_path, line):
    """``os.stat`` of an audio file; a ``UserError`` that names the row."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, csv_path, line, error.strerror) from error
    if not status.st_size:
        raise _unreadable(path, csv_path, line, "the file is empty")
    return status


def _unreadable(path, csv_path, line, reason):
    """The ``UserError`` for an audio file that cannot be stored."""
    return UserError(
        f"{csv_path}, line {line}: {path} cannot be read ({reason}); restore the file, "
        f"or remove the row or prepare the corpus again"
    )


def _member_name(identity, path, to, where):
    """``<ID>.<ending>``; a ``UserError`` if readers of tars would not take it so."""
    suffix = os.path.splitext(path)[1].lower()
    if to is not None and suffix in AAC_SUFFIXES:
        suffix = f".{to}"
    name = identity + suffix
    too_long = max(len(name.encode()), len(f"{identity}.json".encode()))
    if not suffix or "." in identity or "/" in identity or too_long > _LONGEST_NAME:
        raise UserError(
            f"{where}: {name!r} is no name for a member of a shard, which has an ID "
            f"without dots and slashes and an ending like .flac, at most "
            f"{_LONGEST_NAME} bytes in all; rename it"
        )
    return name


def _is_complete(source, out):
    """Whether an earlier run wrote all of this already."""
    stored = _read_marker(source.marker)
    if stored.get("fingerprint") != source.fingerprint or "files" not in stored:
        return False
    whole = stored["files"] == source.sizes(out) and source.csv.is_file()
    return whole and file_hash(source.csv) == stored["csv"]


def _make_way(source, out):
    """Remove what other inputs led to; leave the marker of these."""
    stored = _read_marker(source.marker)
    others = [out / name for name in source.sizes(out)]
    if not stored and (others or source.csv.exists()):
        raise UserError(
            f"{others[0] if others else source.csv} is there and was not made by this "
            f"command; choose another OUT"
        )
    if stored and stored["fingerprint"] != source.fingerprint:
        say(f"{source.name}: the CSV, its files or the options changed; all anew")
        # Also CSVs of other commands, whose files were stored here.
        for marker in out.glob("*.shards.json"):
            if source.name in _read_marker(marker).get("uses", ()):
                path = out / f"{marker.name.removesuffix('.shards.json')}.csv"
                say(f"{path}: it refers to the old shards; removed")
                path.unlink(missing_ok=True)
        # Before the marker, which must not vouch for them.
        for path in (source.csv, *others):
            path.unlink(missing_ok=True)
    marker = json.dumps({"fingerprint": source.fingerprint})
    write_atomically(source.marker, f"{marker}\n")


def _read_marker(path):
    """What a marker holds; empty without a whole one."""
    try:
        stored = read_json(path, "")
    except UserError:
        return {}
    return stored if isinstance(stored.get("fingerprint"), str) else {}


def _check_space(shards, out):
    """Raise ``UserError`` now and not hours later when the disk is too small."""
    needed = sum(sum(shard.sizes) for shard in shards if not shard.path.exists())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{out} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; "
            f"choose another OUT"
        )


def _write_shards(shards, num_workers):
    """Write those that are not there.

    Returns every shard's windows [member, (offset, size)], and bytes written now.
    """
    import_pyav_for(path for shard in shards if shard.to for path in shard.rows["wav"])
    windows, written, began = [], [], time.monotonic()
    workers = min(worker_count(num_workers), len(shards))
    total = sum(len(shard.names) for shard in shards)
    with progress_bar("writing shards", total) as progress:
        for members, size in map_in_processes(_write_shard, shards, workers):
            windows.append(members)
            written.append(size)
            speed = sum(written) / 1e6 / (time.monotonic() - began)
            progress.set_postfix_str(f"{speed:.0f} MB/s", refresh=False)
            progress.update(len(members))
    return windows, written


def _write_shard(shard):
    """Write one, unless it is there: windows [member, (offset, size)], and bytes."""
    windows = _windows(shard)
    if windows is not None:
        return windows, 0
    windows = []
    temporary = shard.path.with_name(f"{shard.path.name}.part")
    rows = shard.rows.to_dict("records")
    members = zip(shard.names, shard.sizes, shard.rows.index, rows, strict=True)
    try:
        with open(temporary, "wb") as stream:
            with tarfile.open(
                fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT
            ) as tar:
                for name, size, line, row in members:
                    data = _content(row.pop("wav"), size, shard, line)
                    windows.append((_add(tar, name, data), len(data)))
                    text = json.dumps(row, ensure_ascii=False) + "\n"
                    _add(tar, f"{row['ID']}.json", text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, shard.path)
    except OSError as error:
        raise UserError(
            f"{shard.path}: it cannot be written ({error.strerror}); make room or "
            f"correct the permissions, and run the same command again to go on"
        ) from error
    return np.array(windows), shard.path.stat().st_size


def _windows(shard):
    """Windows of the audio in a finished shard; None if it is not these members'."""
    if not shard.path.is_file():
        return None
    try:
        with tarfile.open(shard.path, "r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError:
        return None
    audio = members[::2]
    wanted = [x for name in shard.names for x in (name, f"{Path(name).stem}.json")]
    if [member.name for member in members] != wanted:
        return None
    # Two empty blocks mark the end; a tar is filled up to whole records.
    end = tar.offset + 2 * tarfile.BLOCKSIZE
    if shard.path.stat().st_size != -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE:
        return None
    if shard.to is None and [member.size for member in audio] != shard.sizes:
        return None
    return np.array([(member.offset_data, member.size) for member in audio])


def _content(path, size, shard, line):
    """The bytes of one audio file, converted where asked."""
    try:
        if shard.to is not None and path.lower().endswith(AAC_SUFFIXES):
            return encode_audio(read_audio(path), shard.to)
        data = Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, shard.csv, line, error.strerror) from error
    except UserError as error:
        raise UserError(f"{shard.csv}, line {line}: {error}") from error
    if len(data) != size:
        raise _unreadable(path, shard.csv, line, "its size changes")
    return data


def _add(tar, name, data):
    """Append one member, the same bytes at any time; the offset of its data."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(data))
    return offset


def _write_csv(source, shards, windows, out):
    """The CSV that refers to the shards, then the marker that vouches for all."""
    shard, place = source.member.T
    names = np.array([shard.path.name for shard in shards], dtype=object)
    window = np.array([windows[i][j] for i, j in zip(shard, place, strict=True)])
    table = source.table[source.columns].assign(wav=names[shard])
    columns = [table[name].to_numpy() for name in source.columns]
    header = (*source.columns, "offset", "size")
    write_atomically(source.csv, csv_text(header, [*columns, *window.T]))
    for path in out.glob(f"{source.name}-*.tar.part"):
        path.unlink()
    content = {
        "fingerprint": source.fingerprint,
        "uses": sorted({shards[i].path.name[: -len("-000000.tar")] for i in shard}),
        "csv": file_hash(source.csv),
        "files": source.sizes(out),
    }
    write_atomically(source.marker, json.dumps(content, indent=1) + "\n")


COMMAND = Command(
    make_shards,
    positional=("csvs", "out"),
    names={"csvs": "CSV"},
    kinds={"shard_size": POSITIVE, "num_workers": option("librispeech", "num_workers")},
)


@resumable
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    options = COMMAND.parse(argv)
    done = make_shards(**options)
    for name, utterances in done["utterances"].items():
        print(f"{Path(options['out']) / name}.csv: {utterances:,} utterances")
    print(
        f"{done['shards']:,} shards, {done['kept']:,} of them there before; "
        f"{done['bytes'] / 1e9:.3f} GB written in {done['seconds']:.1f} seconds"
    )


if __name__ == "__main__":
    main()
