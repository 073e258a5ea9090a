"""Download, check and unpack LibriSpeech and VoxCeleb.

    python tools/download.py librispeech /corpora --subsets train-clean-100 dev-other
    python tools/download.py voxceleb2 /corpora --from URL_OR_FILE ...
    python tools/download.py voxceleb1 /corpora --from URL_OR_FILE ... veri_test2.txt

LibriSpeech (and its mini subsets train-clean-5 and dev-clean-2) comes from OpenSLR.
VoxCeleb comes from the URLs or files that you name, because its links are personal and
expire: ask for them with the form at https://mm.kaist.ac.kr/datasets/voxceleb/ . Name
all parts of an archive in parts; they are read as one without being copied together.
Trial lists and meta files (.txt, .csv) are put beside the audio.

Archives go to OUT/archives, their content to OUT/LibriSpeech/<subset>, OUT/VoxCeleb2/
dev/aac (and test/aac) and OUT/VoxCeleb1/wav. The same command goes on where an earlier
one stopped: a download in its .part file, an archive that was not unpacked completely
from its beginning. What was unpacked is not looked at again.
"""

import filecmp
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import ssl
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lobes.errors import DAMAGED, ArgumentParser, UserError, enumeration, resumable
from lobes.preparation.folders import writable_folder
from lobes.system.files import read_json, write_atomically
from lobes.system.locks import one_writer
from lobes.system.terminal import progress_bar, say

OPENSLR = "https://www.openslr.org/resources"

#: Subset to number of its OpenSLR resource.
LIBRISPEECH = {
    **dict.fromkeys(("train-clean-100", "train-clean-360", "train-other-500"), 12),
    **dict.fromkeys(("dev-clean", "dev-other", "test-clean", "test-other"), 12),
    **dict.fromkeys(("train-clean-5", "dev-clean-2"), 31),
}

#: MD5 by file name. LibriSpeech: resources/12/md5sum.txt and resources/31/md5sum.txt of
#: OpenSLR. VoxCeleb's audio: lists/fileparts.txt of clovaai/voxceleb_trainer, by the
#: corpus's authors; whole archives, lists: PaddleSpeech's examples/dataset/voxceleb;
#: meta files: OpenSLR's copy (resources/49), as in the kiwano toolkit.
MD5 = {
    "train-clean-100.tar.gz": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360.tar.gz": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500.tar.gz": "d1a0fd59409feb2c614ce4d30c387708",
    "dev-clean.tar.gz": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other.tar.gz": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean.tar.gz": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other.tar.gz": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-5.tar.gz": "5df7d4e78065366204ca6845bb08f490",
    "dev-clean-2.tar.gz": "6d7ab67ac6a1d2c993d050e16d61080d",
    "vox1_dev_wav_partaa": "e395d020928bc15670b570a21695ed96",
    "vox1_dev_wav_partab": "bbfaaccefab65d82b21903e81a8a8020",
    "vox1_dev_wav_partac": "017d579a2a96a077f40042ec33e51512",
    "vox1_dev_wav_partad": "7bb1e9f70fddc7a678fa998ea8b3ba19",
    "vox1_dev_wav.zip": "ae63e55b951748cc486645f532ba230b",
    "vox1_test_wav.zip": "185fdc63c3c739954633d50379a3d102",
    "vox2_dev_aac_partaa": "da070494c573e5c0564b1d11c3b20577",
    "vox2_dev_aac_partab": "17fe6dab2b32b48abaf1676429cdd06f",
    "vox2_dev_aac_partac": "1de58e086c5edf63625af1cb6d831528",
    "vox2_dev_aac_partad": "5a043eb03e15c5a918ee6a52aad477f9",
    "vox2_dev_aac_partae": "cea401b624983e2d0b2a87fb5d59aa60",
    "vox2_dev_aac_partaf": "fc886d9ba90ab88e7880ee98effd6ae9",
    "vox2_dev_aac_partag": "d160ecc3f6ee3eed54d55349531cb42e",
    "vox2_dev_aac_partah": "6b84a81b9af72a9d9eecbb3b1f602e65",
    "vox2_dev_aac.zip": "bbc063c46078a602ca71605645c2a402",
    "vox2_test_aac.zip": "0d2b3ea430a821c33263b5ea37ede312",
    "veri_test.txt": "29fc7cc1c5d59f0816dc15d6e8be60f7",
    "veri_test2.txt": "b73110731c9223c1461fe49cb48dddfc",
    "list_test_all.txt": "b9ecf7aa49d4b656aa927a8092844e4a",
    "list_test_all2.txt": "a53e059deb562ffcfc092bf5d90d9f3a",
    "list_test_hard.txt": "21c341b6b2168eea2634df0fb4b8fff1",
    "list_test_hard2.txt": "857790e09d579a68eb2e339a090343c8",
    "vox1_meta.csv": "f5067cae5157ca27904c4b0a926e2661",
    "vox2_meta.csv": "6090d767f8334733dfe4c6578fa725c2",
}

ACCESS = (
    "links to VoxCeleb are personal and expire: ask for new ones at "
    "https://mm.kaist.ac.kr/datasets/voxceleb/"
)

# vox2_dev_aac_partab and the like.
_PART = re.compile("(?P<archive>.+)_parta[a-z]")

# Put beside the audio as they are.
_PLAIN = (".txt", ".csv")

_BLOCK = 1 << 20

# Seconds without a byte from the server; in a row without progress; before the second.
_TIMEOUT, _ATTEMPTS, _WAIT = 60, 6, 1.0


class File(NamedTuple):
    """One file to have: ``url`` is None for one of the user's own at ``path``.

    ``md5`` is None where no checksum is known.
    """

    name: str
    url: str | None
    path: Path
    md5: str | None


@resumable
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = ArgumentParser(
        description="Download, check and unpack a corpus; go on where an earlier run "
        "of the same command stopped.",
        epilog=f"VoxCeleb: {ACCESS}.",
    )
    commands = parser.add_subparsers(dest="corpus", required=True)
    several = {"nargs": "+", "action": "extend"}
    for corpus in ("librispeech", "voxceleb1", "voxceleb2"):
        add = commands.add_parser(corpus).add_argument
        add("out", metavar="OUT", help="gets the corpus's folder, and archives/")
        if corpus == "librispeech":
            add("--subsets", required=True, choices=LIBRISPEECH, **several)
            add("--url", help="folder on a mirror, with the archives in it")
        else:
            told = "archives, all parts of archives, trial lists and meta files"
            settings = {"dest": "sources", "metavar": "URL_OR_FILE", **several}
            add("--from", required=True, help=told, **settings)
        told = "checksums that are not known here, or instead of the known ones"
        add("--md5", default=[], metavar="NAME=SUM", help=told, **several)
        told = "delete downloaded archives once they are unpacked"
        add("--delete", action="store_true", help=told)
    print(_run(parser.parse_args(argv)))


def _run(options):
    """Do what the command line says; returns a summary."""
    out = Path(os.path.abspath(options.out))
    archives = out / "archives"
    if options.corpus == "librispeech":
        sources, folder = [], out / "LibriSpeech"
        for subset in dict.fromkeys(options.subsets):
            home = options.url or f"{OPENSLR}/{LIBRISPEECH[subset]}"
            sources.append(f"{home.rstrip('/')}/{subset}.tar.gz")
    else:
        sources, folder = options.sources, out / f"VoxCeleb{options.corpus[-1]}"
    files = _files(sources, archives, folder, _checksums(options.md5))
    plain = [file for file in files if file.name.endswith(_PLAIN)]
    groups = _groups([file for file in files if file not in plain])
    writable_folder(out, "OUT")
    with one_writer(archives / f".{options.corpus}.lock"):
        todo = {n: g for n, g in groups.items() if not _unpacked(folder, n, g)}
        for name in todo:
            # What a killed run left takes room.
            shutil.rmtree(_temporary(folder, name), ignore_errors=True)
        _check_space(out, plain, todo, options.delete)
        for file in plain:
            _put(file, folder)
        for name, parts in todo.items():
            for file in parts:
                _get(file)
            unpack(name, parts, folder)
            if options.delete:
                for file in parts:
                    if file.url is not None:
                        file.path.unlink()
    unknown = [file.name for file in files if file.md5 is None]
    return (
        f"{folder}: {len(files)} file(s); {len(files) - len(unknown)} with a checksum, "
        f"{len(unknown)} without"
        + (f" (no checksum known: {enumeration(unknown)})" if unknown else "")
    )


# -------------------------------------------------------------------- what to get


def _checksums(given):
    """``{name: md5}``: the known ones, and those of the command line."""
    checksums, named = dict(MD5), {}
    for item in given:
        name, _, value = item.partition("=")
        if not re.fullmatch("[0-9a-fA-F]{32}", value):
            raise UserError(
                f"--md5: {item!r} is not NAME=SUM with 32 hexadecimal digits, as in "
                f"vox2_test_aac.zip={MD5['vox2_test_aac.zip']}"
            )
        if named.setdefault(name, value.lower()) != value.lower():
            raise UserError(
                f"--md5: {name} is given two sums, {named[name]} and {value.lower()}; "
                f"give the right one"
            )
    return checksums | named


def _files(sources, archives, folder, checksums):
    """A ``File`` for each URL or path, none twice."""
    files = {}
    for source in sources:
        if re.match("https?://", source):
            url = urllib.parse.urlsplit(source)
            # VoxCeleb's: .../download/voxceleb?key=...&file=vox2_dev_aac_partaa
            query = urllib.parse.parse_qs(url.query)
            name = Path(query.get("file", [urllib.parse.unquote(url.path)])[0]).name
            home = folder if name.endswith(_PLAIN) else archives
            if name in ("", ".."):
                raise UserError(f"{_shown(source)}: it ends in no file name")
            file = File(name, source, home / name, checksums.get(name))
        else:
            path = Path(source).absolute()
            if not path.is_file():
                raise UserError(
                    f"--from: {path} is not a file; correct the path, or give a URL "
                    f"that begins with http:// or https://"
                )
            file = File(path.name, None, path, checksums.get(path.name))
        if file.name in files:
            raise UserError(f"--from: {file.name} is named twice; name it once")
        files[file.name] = file
    for name in checksums.keys() - MD5.keys() - files.keys():
        raise UserError(f"--md5: {name} is not among the files to get; correct it")
    return list(files.values())


def _groups(files):
    """``{archive name: its parts in order}``; refuses missing parts."""
    groups = {}
    for file in files:
        part = _PART.fullmatch(file.name)
        groups.setdefault(part["archive"] if part else file.name, []).append(file)
    for name, parts in groups.items():
        parts.sort(key=lambda file: file.name)
        given = [file.name for file in parts]
        if name in given:
            continue
        # Those given may not show how many there are.
        known = [part for part in MD5 if part.startswith(f"{name}_part")]
        last = max(given + known)[-1]
        wanted = [f"{name}_parta{chr(n)}" for n in range(ord("a"), ord(last) + 1)]
        missing = [part for part in wanted if part not in given]
        if missing:
            raise UserError(
                f"{name}: {len(missing)} of its {len(wanted)} parts are not given: "
                f"{', '.join(missing)}; name all parts in one command"
            )
    return groups


def _shown(url):
    """A URL without its query, which may hold a personal key."""
    return url.partition("?")[0]


def _check_space(out, plain, groups, delete):
    """Ask for all sizes, which finds dead links first, and compare with the disk.

    Audio is compressed already: it takes about as much room as its archive.
    """
    unknown = []
    needed = peak = sum(_missing(file, unknown)[0] for file in plain)
    for parts in groups.values():
        sizes = [_missing(file, unknown) for file in parts]
        needed += sum(missing + size for missing, size in sizes)
        peak = max(peak, needed)
        if delete:
            needed -= sum(missing for missing, _ in sizes)
    if unknown:
        say(f"size unknown, not counted in the room needed: {enumeration(unknown)}")
    free = shutil.disk_usage(out).free
    if peak > free:
        raise UserError(
            f"{out}: about {peak / 1e9:.1f} GB are needed but {free / 1e9:.1f} GB are "
            f"free; make room, get less at once, or delete archives as soon as they "
            f"are unpacked with --delete"
        )


def _missing(file, unknown):
    """Bytes that are still to be downloaded, and of the whole file."""
    if file.path.exists():
        return 0, file.path.stat().st_size
    size = _remote_size(file.url, file.name)
    if size is None:
        unknown.append(file.name)
        return 0, 0
    part = _part(file.path)
    return max(size - (part.stat().st_size if part.exists() else 0), 0), size


# ----------------------------------------------------------------------- download


def _get(file):
    """Have one file, complete and with the right checksum."""
    path = file.path
    if not path.exists():
        path = _part(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(file.url, file.name, path)
    try:
        _check(file, path)
    except UserError as error:
        if file.url is None:
            raise
        bad = file.path.with_name(f"{file.name}.bad")
        os.replace(path, bad)
        raise UserError(
            f"{error}; it was renamed to {bad.name}, and the same command downloads it "
            f"again"
        ) from error
    os.replace(path, file.path)


def _put(file, folder):
    """Have a list or meta file in the corpus's folder."""
    target = folder / file.name
    if not target.exists():
        _get(file)
        if file.url is None:
            write_atomically(target, file.path.read_bytes())
    elif file.url is None and not filecmp.cmp(file.path, target, shallow=False):
        raise UserError(
            f"{target}: another file of that name is there, not what {file.path} "
            f"holds; rename or delete one of them"
        )
    elif file.md5 not in (None, md5 := _md5(target)):
        raise UserError(
            f"{target}: it is there with the md5 {md5}, not {file.md5}; delete it to "
            f"have it replaced, or if you trust it give --md5 {file.name}={md5}"
        )


def _part(path):
    """Where a file lies while it is incomplete."""
    return path.with_name(f"{path.name}.part")


def _check(file, path):
    """Raise ``UserError`` if ``path`` has another checksum than ``file``."""
    if file.md5 is None:
        say(f"{file.name}: no checksum known")
        return
    md5 = _md5(path)
    if md5 != file.md5:
        raise UserError(
            f"{path}: its md5 is {md5}, not {file.md5}: it is damaged, or another "
            f"release; get it again, or if you trust it give --md5 {file.name}={md5}"
        )
    say(f"{file.name}: md5 verified")


def _md5(path):
    """MD5 of a file, as text."""
    digest = hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as stream,
        _progress(path.name, path.stat().st_size, "checking") as bar,
    ):
        while block := stream.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _download(url, name, part):
    """Fetch ``url`` into ``part``, going on where it ends, however often it stops."""
    best, stops = part.stat().st_size if part.exists() else 0, 0
    with _progress(name, None, "downloading") as bar:
        while True:
            try:
                if _transfer(url, name, part, bar):
                    return
                reason = "the connection was cut"
            except urllib.error.HTTPError as error:
                _refuse_final(error, name, url)
                reason = f"status {error.code}"
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, ssl.SSLCertVerificationError):
                    raise UserError(
                        f"{name}: the certificate of {_shown(url)} is not valid; get "
                        f"the file in a way that you trust and put it into "
                        f"{part.parent}"
                    ) from error
                reason = str(reason) or type(reason).__name__
            size = part.stat().st_size if part.exists() else 0
            # A server that cannot resume starts again and again: not progress.
            stops = 0 if size > best else stops + 1
            best = max(best, size)
            if stops == _ATTEMPTS:
                raise UserError(
                    f"{name}: {_shown(url)} stopped {stops} times in a row after "
                    f"{best:,} bytes ({reason}); run the same command again to go on"
                )
            bar.write(f"{name}: {reason} after {size:,} bytes; going on", sys.stderr)
            time.sleep(min(_WAIT * 2**stops, 60))


def _transfer(url, name, part, bar):
    """Append what the server sends to ``part``; returns whether that was all."""
    start = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, Range=f"bytes={start}-") if start else _open(url)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # All bytes are there, or more than the server has.
        if error.headers["Content-Range"] == f"bytes */{start}":
            return True
        part.unlink()
        return False
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise UserError(
            f"{name}: {_shown(url)} sends a web page instead of the file, as for a "
            f"login or an expired link; {_remedy(name)}"
        )
    with response, open(part, "ab", buffering=0) as stream:
        first, total = _range(response)
        if first > start:
            raise http.client.HTTPException("the server left out a part")
        if first < start:
            bar.write(f"{name}: the server cannot resume; from {first:,}", sys.stderr)
            stream.truncate(first)
        bar.reset(total)
        bar.initial = bar.n = first
        # Unlike read, read1 does not lose what came before a connection broke.
        while block := response.read1(_BLOCK):
            bar.update(len(block))
            try:
                while block:
                    block = block[stream.write(block) :]
            except OSError as error:
                raise UserError(
                    f"{part}: it cannot be written ({error.strerror}); make room, and "
                    f"run the same command again to go on"
                ) from error
        os.fsync(stream.fileno())
        # Without a length, the checksum or the archive itself must tell.
        return total in (None, stream.tell())


def _range(response):
    """First byte that a response holds, and the size of the whole file or None."""
    if response.status != 206:
        return 0, response.length
    sent = re.match(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
    if sent is None:
        raise http.client.HTTPException("the server does not say what it sends")
    return int(sent[1]), int(sent[2])


def _open(url, method="GET", **headers):
    """The response to a request; raises ``urllib.error.URLError``."""
    headers |= {"User-Agent": "speech-speaker-mtl", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except ValueError as error:
        raise UserError(f"{_shown(url)}: it is not a URL ({error})") from error


def _remote_size(url, name):
    """Bytes of the file at ``url``, or None where the server does not say."""
    try:
        with _open(url, method="HEAD") as response:
            length = response.headers["Content-Length"]
            return int(length) if length else None
    except urllib.error.HTTPError as error:
        # Others may refuse only to tell: a personal link often allows one method.
        if error.code in (404, 410):
            _refuse_final(error, name, url)
    except (OSError, http.client.HTTPException):
        # The download will try again, and tell.
        pass
    return None


def _refuse_final(error, name, url):
    """Raise ``UserError`` for a status that trying again does not change."""
    if error.code < 500 and error.code not in (408, 425, 429):
        raise UserError(
            f"{name}: {_shown(url)} answers {error.code} {error.reason}; "
            f"{_remedy(name)}"
        ) from error


def _remedy(name):
    """What to do about a link that does not work."""
    if name.split(".")[0] in LIBRISPEECH:
        return "name another mirror with --url, see https://www.openslr.org/12"
    return f"check it; {ACCESS}"


# ------------------------------------------------------------------------- unpack


class Joined(io.RawIOBase):
    """Files read one after the other as one, as ``cat`` would join them."""

    def __init__(self, paths: Iterable[Path]):
        super().__init__()
        self._files = [open(path, "rb", buffering=0) for path in paths]
        self._sizes = [os.fstat(file.fileno()).st_size for file in self._files]
        self._position = 0

    def readable(self):
        """True."""
        return True

    seekable = readable

    def seek(self, offset, whence=os.SEEK_SET):
        """Set the position; returns it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
        self._position = base.get(whence, sum(self._sizes)) + offset
        return self._position

    def readinto(self, buffer):
        """Read from one file at most; returns the number of bytes."""
        start = self._position
        for file, size in zip(self._files, self._sizes, strict=True):
            if start < size:
                file.seek(start)
                count = file.readinto(memoryview(buffer)[: size - start])
                self._position += count
                return count
            start -= size
        return 0

    def close(self):
        """Close all files."""
        for file in self._files:
            file.close()
        super().close()


def unpack(name: str, parts: Sequence[File], folder: Path) -> None:
    """Unpack an archive into the corpus's folder, or leave nothing of it there.

    Arguments:
        name: Of the archive, without ``_partaa``.
        parts: In order; one for a whole archive. A zip, or a tar that may be
            compressed.
        folder: Of the corpus: ``LibriSpeech``, ``VoxCeleb1``, ``VoxCeleb2``.

    Everything goes to a temporary folder first. Nothing that is there with other
    content is overwritten: documents beside the subsets, which each archive brings
    along, stay, and that is told; other files are an error.

    Raises ``UserError`` for damaged archives, those with links or with names that lead
    out of the folder, with other content than the corpus's, with audio that is there
    already and differs, and for a full disk.
    """
    temporary = _temporary(folder, name)
    try:
        temporary.mkdir(parents=True)
        with io.BufferedReader(Joined([file.path for file in parts]), _BLOCK) as stream:
            size = stream.seek(0, os.SEEK_END)
            with _progress(name, size, "unpacking") as bar:
                stream.seek(0)
                zipped = stream.peek(2)[:2] == b"PK"
                extract = _extract_zip if zipped else _extract_tar
                count = extract(name, stream, temporary, bar)
        moves = _not_overwriting(name, _destinations(folder, name, temporary))
        for source, target in list(_merging(moves)):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
        shutil.rmtree(temporary)
        # One call: a power failure must not leave the marker without the files.
        os.sync()
    except (*DAMAGED, NotImplementedError, OSError, UserError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, UserError):
            raise
        remedy = "correct that, and run the same command again"
        # Without an errno it is the archive's fault and not the disk's.
        if not getattr(error, "errno", None):
            remedy = "delete the archive and get it again"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{parts[0].path}: {name} cannot be unpacked ({reason}); {remedy}"
        ) from error
    marker = {
        "files": count,
        "folders": sorted(str(target.relative_to(folder)) for _, target in moves),
        "md5": {file.name: file.md5 for file in parts},
    }
    write_atomically(_marker(folder, name), json.dumps(marker, indent=1) + "\n")
    say(f"{name}: {count:,} files unpacked to {', '.join(marker['folders'])}")


def _extract_zip(name, stream, folder, bar):
    """Unpack a zip file; returns the number of files."""
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        for member in members:
            mode = stat.S_IFMT(member.external_attr >> 16)
            plain = member.is_dir() or mode in (0, stat.S_IFREG)
            _check_member(name, member.filename, plain and not member.flag_bits & 1)
        size = sum(member.file_size for member in members)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise UserError(
                f"{name}: unpacking takes {size / 1e9:.1f} GB but {free / 1e9:.1f} GB "
                f"are free in {folder.parent}; make room, and run the same command "
                f"again"
            )
        files = [member for member in members if not member.is_dir()]
        for member in files:
            archive.extract(member, folder)
            bar.update(member.compress_size)
    return len(files)


def _extract_tar(name, stream, folder, bar):
    """Unpack a tar file, compressed or not; returns the number of files."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError(
            f"{name}: Python {sys.version.split()[0]} cannot unpack safely; use 3.11.4 "
            f"or newer"
        )
    count = 0
    try:
        archive = tarfile.open(fileobj=stream, mode="r:*")
    except tarfile.ReadError as error:
        raise tarfile.ReadError("it is neither a zip nor a tar file") from error
    with archive:
        for member in archive:
            _check_member(name, member.name, member.isreg() or member.isdir())
            archive.extract(member, folder, set_attrs=False, filter="data")
            count += member.isreg()
            bar.update(stream.tell() - bar.n)
        # A damaged header ends the loop like the zeros at the end of an archive.
        # Reading on also has the checksum of a compressed file compared.
        ended = False
        while block := archive.fileobj.read(_BLOCK):
            if any(block):
                raise tarfile.ReadError("a header in the middle is damaged")
            ended = True
        if not ended:
            raise tarfile.ReadError("its end is missing")
    return count


def _check_member(archive, name, plain):
    """Refuse what is not a plain file or folder below the folder of the archive."""
    parts = re.split(r"[/\\]", name)
    if not plain:
        reason = "a link, a device or an encrypted file"
    elif parts[0] == "" or ":" in parts[0] or ".." in parts:
        reason = "which leads out of the folder"
    else:
        return
    raise UserError(
        f"{archive}: it holds {name!r}, {reason}; nothing of it was kept: do not trust "
        f"this archive, get it from the publisher"
    )


def _destinations(folder, name, unpacked):
    """(source, target) of what an archive holds, so that preparation finds it."""
    corpus, subset = folder.name, name.split(".")[0]
    half = "test" if re.search("(?<![a-z])test(?![a-z])", name) else "dev"
    top = {entry.name for entry in os.scandir(unpacked) if entry.is_dir()}
    root, home, belongs = unpacked, folder, True
    if corpus == "LibriSpeech":
        root = unpacked / corpus
        belongs = (root / subset).is_dir()
    elif not top & {"dev", "test"}:
        # VoxCeleb2's test speakers must not lie where training data are looked for.
        home = folder / half if corpus == "VoxCeleb2" else folder
        if not top & {"aac", "wav"}:
            belongs = any(re.fullmatch(r"id\d+", entry) for entry in top)
            aac = corpus == "VoxCeleb2" and "wav" not in name
            home /= "aac" if aac else "wav"
    if not belongs:
        raise UserError(
            f"{name}: it holds {enumeration(sorted(top)) or 'no folder'}, nothing that "
            f"belongs to {corpus}; take the archive from the corpus's own site"
        )
    return [(entry, home / entry.name) for entry in sorted(root.iterdir())]


def _not_overwriting(name, moves):
    """The moves without documents that differ from those that are there.

    Raises ``UserError`` where anything else does.
    """
    kept = [pair[1] for pair in moves if pair[0].is_file() and _differs(*pair)]
    moves = [pair for pair in moves if pair[1] not in kept]
    differing = [str(pair[1]) for pair in _merging(moves) if _differs(*pair)]
    if differing:
        raise UserError(
            f"{name}: {len(differing)} file(s) of it are there already with other "
            f"content, and are not overwritten: {enumeration(sorted(differing))}; "
            f"move them away, or give another OUT"
        )
    if kept:
        say(
            f"{name}: not what it brings, but what was there before, is kept of "
            f"{enumeration([target.name for target in kept])}"
        )
    return moves


def _differs(source, target):
    """Whether something else than ``source`` is there as ``target``."""
    if not os.path.lexists(target):
        return False
    both = source.is_file() and target.is_file()
    return not (both and filecmp.cmp(source, target, shallow=False))


def _merging(moves):
    """Yield the moves; a folder's content goes into one that is there already."""
    for source, target in moves:
        if source.is_dir() and target.is_dir():
            yield from _merging((e, target / e.name) for e in source.iterdir())
        else:
            yield source, target


def _temporary(folder, name):
    """Where an archive is unpacked to until it is complete."""
    return folder / f".{name}.unpacking"


def _marker(folder, name):
    """Path of the file that says an archive was unpacked completely."""
    return folder / f".{name}.unpacked.json"


def _unpacked(folder, name, parts):
    """Whether these parts were unpacked before; says so."""
    marker = _marker(folder, name)
    try:
        stored = read_json(marker, "")
    except UserError:
        return False
    md5, folders = stored.get("md5"), stored.get("folders")
    if not (isinstance(md5, dict) and isinstance(folders, list)):
        return False
    for file in parts:
        if file.md5 not in (None, md5.get(file.name)):
            say(f"{name}: unpacked before, but not with this md5; doing it again")
            return False
    gone = [f for f in map(str, folders) if not (folder / f).exists()]
    state = f"but {', '.join(gone)} is gone" if gone else "kept"
    say(f"{name}: unpacked before; {state}; delete {marker} to unpack it again")
    return True


def _progress(name, size, verb):
    """A progress bar over ``size`` bytes, with rate and remaining time."""
    return progress_bar(f"{verb} {name}", size, "B", unit_scale=True)


if __name__ == "__main__":
    main()
