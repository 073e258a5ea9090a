"""Downloads that are cut, refused or damaged, and archives that must not be trusted.

All against a server in this process, on the loopback interface.
"""

import gzip
import hashlib
import http.server
import io
import os
import random
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import zipfile
from pathlib import Path

import pytest

from lobes.errors import UserError
from tools import download


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` (bytes by path); what goes wrong is set by the test.

    ``cuts`` holds, for each of the next answers, after how many bytes the connection
    breaks; ``status`` answers by path; ``log`` is all (method, path, Range).
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.status, self.log = {}, [], {}, []
        self.ranges, self.content_type, self.lengths = True, "application/zip", True
        self.pause = 0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """Nothing on standard error where the client went away."""

    def gets(self):
        """Ranges of the GET requests."""
        return [wanted for method, _, wanted in self.log if method == "GET"]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        server = self.server
        path = self.path.partition("?")[0]
        wanted = self.headers["Range"]
        server.log.append((self.command, self.path, wanted))
        status = server.status.get(path, 200 if path in server.files else 404)
        if isinstance(status, list):
            status = status.pop(0) if body and status else 200
        if status >= 400:
            return self.send_error(status)
        content = server.files[path]
        start, total = 0, len(content)
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", server.content_type)
        if server.lengths:
            self.send_header("Content-Length", str(total - start))
        self.end_headers()
        if body:
            cut = server.cuts.pop(0) if server.cuts else total
            for i in range(start, min(start + cut, total), 4096):
                self.wfile.write(content[i : min(i + 4096, start + cut)])
                time.sleep(server.pause)
            self.close_connection = True

    def log_message(self, *_):
        """Nothing on standard error."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_WAIT", 0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def noise(size, seed=0):
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def tar_of(files, links=()):
    """A .tar.gz of files (bytes by name) and links ((name, target, type))."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target, kind in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return stream.getvalue()


def zip_of(files, stored=False):
    """A .zip of files (bytes by name, or by ``ZipInfo``)."""
    stream = io.BytesIO()
    method = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def md5(content):
    return hashlib.md5(content).hexdigest()


def tree(folder):
    """Content of all visible files, by relative path."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }
    return {
        name: content
        for name, content in found.items()
        if not any(part.startswith(".") for part in name.split("/"))
    }


DEV = {
    "LibriSpeech/dev-clean-2/84/121123/84-121123-0000.flac": noise(60_000),
    "LibriSpeech/dev-clean-2/84/121123/84-121123.trans.txt": b"84-121123-0000 GO\n",
    "LibriSpeech/SPEAKERS.TXT": b"84 | F | dev-clean | 8.02 | Christie Nowak\n",
}
DEV_TAR = tar_of(DEV)
NAME = "dev-clean-2.tar.gz"


def librispeech(server, out, *options, content=DEV_TAR, subset="dev-clean-2"):
    """Run the command for one subset; the checksum is that of ``content``."""
    name = f"{subset}.tar.gz"
    server.files.setdefault(f"/{name}", content)
    arguments = ["librispeech", str(out), "--subsets", subset, "--url", server.url]
    checksum = [] if "--md5" in options else ["--md5", f"{name}={md5(content)}"]
    download.main([*arguments, *checksum, *options])


def fails(capsys, function, *args, **kwargs):
    """The line that a command fails with."""
    with pytest.raises(SystemExit) as stop:
        function(*args, **kwargs)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


def test_librispeech_lands_where_preparation_looks(server, tmp_path, capsys):
    librispeech(server, tmp_path)
    assert tree(tmp_path / "LibriSpeech") == {
        name.removeprefix("LibriSpeech/"): content for name, content in DEV.items()
    }
    assert (tmp_path / "archives" / NAME).read_bytes() == DEV_TAR
    output = capsys.readouterr()
    assert "1 file(s); 1 with a checksum, 0 without" in output.out
    assert f"{NAME}: 3 files unpacked to SPEAKERS.TXT, dev-clean-2" in output.err


def test_a_rerun_asks_nobody_and_reads_no_archive(server, tmp_path, capsys):
    librispeech(server, tmp_path, "--delete")
    assert not (tmp_path / "archives" / NAME).exists()
    server.log.clear()
    began = time.monotonic()
    librispeech(server, tmp_path)
    assert server.log == []
    assert time.monotonic() - began < 1
    assert "unpacked before; kept; delete" in capsys.readouterr().err


def test_a_second_subset_joins_the_first(server, tmp_path, capsys):
    librispeech(server, tmp_path)
    other = {
        "LibriSpeech/dev-clean/1/2/1-2-0000.flac": b"x",
        "LibriSpeech/SPEAKERS.TXT": b"newer",
    }
    librispeech(server, tmp_path, content=tar_of(other), subset="dev-clean")
    found = tree(tmp_path / "LibriSpeech")
    assert set(found) == {name.removeprefix("LibriSpeech/") for name in DEV | other}
    assert found["SPEAKERS.TXT"] == DEV["LibriSpeech/SPEAKERS.TXT"]
    told = "what was there before, is kept of SPEAKERS.TXT"
    assert told in capsys.readouterr().err


@pytest.mark.fault(
    "C6",
    "download: a second archive with another file of the same name",
    "`are there already with other content, and are not overwritten`",
)
def test_a_second_archive_does_not_overwrite(server, tmp_path, capsys):
    librispeech(server, tmp_path)
    before = tree(tmp_path / "LibriSpeech")
    name = "LibriSpeech/dev-clean-2/84/121123/84-121123-0000.flac"
    other = {name: b"other", "LibriSpeech/dev-clean/1/2/1-2-0000.flac": b"x"}
    content = tar_of(other)
    line = fails(
        capsys, librispeech, server, tmp_path, content=content, subset="dev-clean"
    )
    assert "dev-clean.tar.gz: 1 file(s) of it are there already" in line
    assert "84-121123-0000.flac; move them away" in line
    assert tree(tmp_path / "LibriSpeech") == before
    # The same bytes again are fine.
    content = tar_of({**other, name: DEV[name]})
    server.files["/dev-clean.tar.gz"] = content
    (tmp_path / "archives" / "dev-clean.tar.gz").unlink()
    librispeech(server, tmp_path, content=content, subset="dev-clean")
    assert set(before) < set(tree(tmp_path / "LibriSpeech"))


@pytest.mark.fault(
    "C6",
    "download: an own trial list where another one of its name is",
    "`another file of that name is there`",
)
def test_another_list_of_that_name_is_told(tmp_path, capsys):
    mine = tmp_path / "own.txt"
    mine.write_bytes(b"1 a/b/c.wav a/b/d.wav\n")
    arguments = ["voxceleb1", str(tmp_path / "out"), "--from", str(mine)]
    download.main(arguments)
    download.main(arguments)
    mine.write_bytes(b"0 a/b/c.wav e/f/g.wav\n")
    line = fails(capsys, download.main, arguments)
    assert "own.txt: another file of that name is there" in line
    kept = tmp_path / "out/VoxCeleb1/own.txt"
    assert kept.read_bytes() == b"1 a/b/c.wav a/b/d.wav\n"


# ------------------------------------------------------------------- the connection


@pytest.mark.fault(
    "F32",
    "a download cut in the middle",
    "continued where it ended, the checksum is verified",
)
def test_f32_a_download_cut_in_the_middle_goes_on_there(server, tmp_path, capsys):
    half = len(DEV_TAR) // 2
    server.cuts = [half]
    librispeech(server, tmp_path)
    assert server.gets() == [None, f"bytes={half}-"]
    assert (tmp_path / "archives" / NAME).read_bytes() == DEV_TAR
    assert f"the connection was cut after {half:,} bytes" in capsys.readouterr().err


def test_many_cuts_are_fine_while_there_is_progress(server, tmp_path):
    server.cuts = [len(DEV_TAR) // 12] * 11
    librispeech(server, tmp_path)
    assert len(server.gets()) == 12
    assert (tmp_path / "archives" / NAME).read_bytes() == DEV_TAR


def test_a_cut_without_a_content_length_is_noticed(server, tmp_path, capsys):
    # Only the checksum can tell: the end of the answer is the end of the connection.
    server.lengths, server.cuts = False, [1000]
    line = fails(capsys, librispeech, server, tmp_path)
    assert f"not {md5(DEV_TAR)}" in line
    server.cuts = []
    librispeech(server, tmp_path)
    assert (tmp_path / "LibriSpeech" / "dev-clean-2").is_dir()


def test_a_later_run_resumes_what_an_earlier_one_left(server, tmp_path, capsys):
    server.cuts = [30_000] + [0] * 50
    line = fails(capsys, librispeech, server, tmp_path)
    assert f"{download._ATTEMPTS} times in a row after 30,000 bytes" in line
    assert "run the same command again" in line
    part = tmp_path / "archives" / f"{NAME}.part"
    assert part.read_bytes() == DEV_TAR[:30_000]
    assert not (tmp_path / "archives" / NAME).exists()
    server.cuts, server.log = [], []
    librispeech(server, tmp_path)
    assert server.gets() == ["bytes=30000-"]
    assert not part.exists()


def test_a_kill_in_a_download_leaves_what_a_later_run_resumes(server, tmp_path):
    content = tar_of({**DEV, "LibriSpeech/dev-clean-2/1.flac": noise(400_000, 1)})
    server.files[f"/{NAME}"] = content
    server.pause = 0.005
    code = "import sys; from tools.download import main; main(sys.argv[1:])"
    arguments = ["librispeech", tmp_path, "--subsets", "dev-clean-2"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--url", server.url],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "no_proxy": "*"},
    )
    part = tmp_path / "archives" / f"{NAME}.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 50_000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    server.pause = 0
    there = part.stat().st_size
    assert part.read_bytes() == content[:there]
    librispeech(server, tmp_path, content=content)
    assert server.gets()[-1] == f"bytes={there}-"
    assert len(tree(tmp_path / "LibriSpeech")) == 4


def test_a_complete_part_is_only_renamed(server, tmp_path):
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / f"{NAME}.part").write_bytes(DEV_TAR)
    librispeech(server, tmp_path)
    assert server.gets() == [f"bytes={len(DEV_TAR)}-"]


def test_a_part_longer_than_the_file_is_not_kept(server, tmp_path):
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / f"{NAME}.part").write_bytes(DEV_TAR + b"more")
    librispeech(server, tmp_path)
    assert server.gets() == [f"bytes={len(DEV_TAR) + 4}-", None]


def test_a_server_that_cannot_resume_starts_again(server, tmp_path, capsys):
    server.ranges, server.cuts = False, [20_000]
    librispeech(server, tmp_path)
    assert (tmp_path / "archives" / NAME).read_bytes() == DEV_TAR
    assert "cannot resume; from 0" in capsys.readouterr().err


def test_a_server_that_never_gets_further_is_given_up(server, tmp_path, capsys):
    server.ranges, server.cuts = False, [20_000] * 50
    line = fails(capsys, librispeech, server, tmp_path)
    assert "times in a row after 20,000 bytes" in line
    assert len(server.gets()) == download._ATTEMPTS + 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.status[f"/{NAME}"] = [503, 429, 500]
    librispeech(server, tmp_path)
    assert len(server.gets()) == 4


def test_a_dead_link_is_told_before_anything_is_downloaded(server, tmp_path, capsys):
    server.files["/dev-clean.tar.gz"] = DEV_TAR
    line = fails(
        capsys,
        download.main,
        ["librispeech", str(tmp_path), "--subsets", "dev-clean", "dev-other"]
        + ["--url", server.url],
    )
    assert "dev-other.tar.gz" in line and "404" in line and "--url" in line
    assert server.gets() == []


def test_expired_voxceleb_links_say_where_to_ask_and_not_the_key(
    server, tmp_path, capsys
):
    server.status["/download/voxceleb"] = 403
    url = f"{server.url}/download/voxceleb?key=SECRET&file=vox2_test_aac.zip"
    line = fails(capsys, download.main, ["voxceleb2", str(tmp_path), "--from", url])
    assert "vox2_test_aac.zip" in line and "403" in line
    assert "https://mm.kaist.ac.kr/datasets/voxceleb/" in line
    assert "SECRET" not in line


def test_a_login_page_is_not_an_archive(server, tmp_path, capsys):
    server.content_type = "text/html; charset=utf-8"
    line = fails(capsys, librispeech, server, tmp_path)
    assert "web page instead of the file" in line
    assert tree(tmp_path) == {}
    # As little as an expired link in the middle of a download costs what is there.
    part = tmp_path / "archives" / f"{NAME}.part"
    part.write_bytes(DEV_TAR[:100])
    server.ranges = False
    fails(capsys, librispeech, server, tmp_path)
    assert part.read_bytes() == DEV_TAR[:100]


def test_nobody_answers(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 1)
    arguments = ["librispeech", str(tmp_path), "--subsets", "dev-clean-2", "--url"]
    line = fails(capsys, download.main, [*arguments, "http://127.0.0.1:9/x"])
    assert "stopped" in line and "after 0 bytes" in line and "refused" in line


def test_a_server_that_proves_nothing_is_not_asked_again(
    server, tmp_path, capsys, monkeypatch
):
    asked = []

    def refuse(url, **_):
        asked.append(url)
        raise urllib.error.URLError(ssl.SSLCertVerificationError("expired"))

    monkeypatch.setattr(download, "_open", refuse)
    line = fails(capsys, librispeech, server, tmp_path)
    assert "certificate" in line and f"put it into {tmp_path / 'archives'}" in line
    assert len(asked) == 2


# ------------------------------------------------------------------------ checksums


@pytest.mark.fault("F32", "a wrong checksum", "refused and downloaded again")
def test_f32_a_wrong_checksum_is_refused_and_downloaded_again(server, tmp_path, capsys):
    damaged = bytearray(DEV_TAR)
    damaged[len(damaged) // 2] ^= 1
    server.files[f"/{NAME}"] = bytes(damaged)
    line = fails(capsys, librispeech, server, tmp_path)
    assert md5(damaged) in line and md5(DEV_TAR) in line and f"{NAME}.bad" in line
    assert set(tree(tmp_path)) == {f"archives/{NAME}.bad"}
    server.files[f"/{NAME}"] = DEV_TAR
    librispeech(server, tmp_path)
    assert server.gets() == [None, None]
    assert (tmp_path / "LibriSpeech" / "dev-clean-2").is_dir()


def test_the_known_checksum_counts_where_none_is_given(server, tmp_path, capsys):
    server.files[f"/{NAME}"] = DEV_TAR
    arguments = ["librispeech", str(tmp_path), "--subsets", "dev-clean-2"]
    line = fails(capsys, download.main, [*arguments, "--url", server.url])
    assert "not 6d7ab67ac6a1d2c993d050e16d61080d" in line


def test_an_archive_put_there_by_the_user_is_checked_too(server, tmp_path, capsys):
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / NAME).write_bytes(b"another release")
    line = fails(capsys, librispeech, server, tmp_path)
    assert md5(b"another release") in line
    (tmp_path / "archives" / NAME).write_bytes(DEV_TAR)
    librispeech(server, tmp_path)
    assert server.gets() == []


def test_unknown_checksums_are_told_and_counted(tmp_path, capsys):
    archive = tmp_path / "vox2_aac_1.zip"
    archive.write_bytes(zip_of({"dev/aac/id00012/v/00001.m4a": b"a"}))
    download.main(["voxceleb2", str(tmp_path), "--from", str(archive)])
    output = capsys.readouterr()
    assert "vox2_aac_1.zip: no checksum known" in output.err
    assert "0 with a checksum, 1 without (no checksum known: vox2_aac_1.zip)" in (
        output.out
    )


def test_every_known_checksum_is_well_formed():
    assert all(len(bytes.fromhex(value)) == 16 for value in download.MD5.values())
    assert len(set(download.MD5.values())) == len(download.MD5)
    assert {f"{subset}.tar.gz" for subset in download.LIBRISPEECH} <= set(download.MD5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("vox2_test_aac.zip", "is not NAME=SUM"),
        ("vox2_test_aac.zip=123", "is not NAME=SUM"),
        (f"other.zip={'0' * 32}", "other.zip is not among the files"),
    ],
)
def test_checksums_that_mean_nothing(tmp_path, capsys, given, told):
    archive = tmp_path / "mine.zip"
    archive.write_bytes(b"")
    arguments = ["voxceleb2", str(tmp_path), "--from", str(archive), "--md5", given]
    assert told in fails(capsys, download.main, arguments)


@pytest.mark.fault(
    "D10", "--md5 A=... --md5 B=..., and two sums for A", "both count; refused"
)
def test_several_checksums(tmp_path, capsys):
    paths = [tmp_path / f"{name}.txt" for name in "ab"]
    for path in paths:
        path.write_text(f"{path.name}\n")
    sums = [f"{path.name}={md5(path.read_bytes())}" for path in paths]
    arguments = ["voxceleb1", str(tmp_path / "out")]
    arguments += ["--from", str(paths[0]), "--from", str(paths[1])]
    download.main([*arguments, "--md5", sums[0], "--md5", sums[1]])
    assert "2 file(s); 2 with a checksum, 0 without" in capsys.readouterr().out
    wrong = f"a.txt={'0' * 32}"
    line = fails(capsys, download.main, [*arguments, "--md5", *sums, "--md5", wrong])
    assert "--md5: a.txt is given two sums" in line


def test_nothing_is_made_for_a_wrong_command_line(tmp_path, capsys):
    arguments = ["voxceleb1", str(tmp_path / "out"), "--from", str(tmp_path / "no.zip")]
    assert "is not a file" in fails(capsys, download.main, arguments)
    assert not (tmp_path / "out").exists()


def test_another_checksum_than_before_unpacks_again(server, tmp_path, capsys):
    librispeech(server, tmp_path)
    newer = tar_of({**DEV, "LibriSpeech/dev-clean-2/new.flac": b"new"})
    server.files[f"/{NAME}"] = newer
    (tmp_path / "archives" / NAME).unlink()
    librispeech(server, tmp_path, content=newer)
    assert (tmp_path / "LibriSpeech/dev-clean-2/new.flac").exists()


# ------------------------------------------------------------------------- VoxCeleb

VOX2 = {
    f"dev/aac/id{speaker:05d}/video/{number:05d}.m4a": noise(5_000, number)
    for speaker in (12, 15)
    for number in (1, 2)
}


def split(content, count):
    """``content`` in ``count`` parts of about the same size."""
    size = -(-len(content) // count)
    return [content[i * size : (i + 1) * size] for i in range(count)]


def voxceleb_parts(content, folder, stem, count):
    """Write the parts; returns their paths and --md5 arguments."""
    paths, sums = [], []
    for letter, part in zip("abcdefgh", split(content, count), strict=False):
        path = folder / f"{stem}_parta{letter}"
        path.write_bytes(part)
        paths.append(str(path))
        sums.append(f"{path.name}={md5(part)}")
    return paths, sums


def test_parts_are_read_as_one_and_not_copied(server, tmp_path):
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    content = zip_of(VOX2)
    paths, sums = voxceleb_parts(content, mine, "vox2_dev_aac", 8)
    # Some from a server, by VoxCeleb's kind of link; the others the user's own.
    urls = []
    for path in map(Path, paths[:3]):
        server.files[f"/{path.name}/voxceleb"] = path.read_bytes()
        urls.append(f"{server.url}/{path.name}/voxceleb?key=K&file={path.name}")
        path.unlink()
    arguments = ["voxceleb2", str(out), "--from", *reversed(paths[3:]), *urls]
    download.main([*arguments, "--md5", *sums, "--delete"])
    assert tree(out) == {f"VoxCeleb2/{name}": content for name, content in VOX2.items()}
    assert sorted(p.name for p in mine.iterdir()) == [Path(p).name for p in paths[3:]]


def test_missing_parts_are_named(tmp_path, capsys):
    paths, _ = voxceleb_parts(b"12345678", tmp_path, "vox2_dev_aac", 8)
    arguments = ["voxceleb2", str(tmp_path), "--from", *paths[:3], *paths[4:7]]
    line = fails(capsys, download.main, arguments)
    assert "vox2_dev_aac: 2 of its 8 parts are not given: " in line
    assert "vox2_dev_aac_partad, vox2_dev_aac_partah;" in line


def test_the_joined_file_reads_like_its_concatenation(tmp_path):
    content = noise(10_000)
    paths = []
    for index, part in enumerate([content[:1], b"", content[1:4000], content[4000:]]):
        paths.append(tmp_path / str(index))
        paths[-1].write_bytes(part)
    stream = io.BufferedReader(download.Joined(paths), 512)
    assert stream.read() == content
    choose = random.Random(1)
    for _ in range(200):
        start, count = choose.randrange(11_000), choose.randrange(5_000)
        assert stream.seek(start) == start
        assert stream.read(count) == content[start : start + count]
    stream.seek(-7, os.SEEK_END)
    assert stream.read() == content[-7:]
    stream.close()


@pytest.mark.parametrize(
    ("corpus", "archive", "inside", "lands"),
    [
        ("voxceleb2", "vox2_dev_aac.zip", "dev/aac/id1/v/1.m4a", "dev/aac/id1/v/1.m4a"),
        ("voxceleb2", "vox2_dev_aac.zip", "aac/id1/v/1.m4a", "dev/aac/id1/v/1.m4a"),
        ("voxceleb2", "vox2_dev_aac.zip", "id1/v/1.m4a", "dev/aac/id1/v/1.m4a"),
        ("voxceleb2", "vox2_dev_wav.zip", "id1/v/1.wav", "dev/wav/id1/v/1.wav"),
        # Not into aac/, where preparation would take it for training data.
        ("voxceleb2", "vox2_test_aac.zip", "aac/id1/v/1.m4a", "test/aac/id1/v/1.m4a"),
        ("voxceleb1", "vox1_dev_wav.zip", "wav/id1/v/1.wav", "wav/id1/v/1.wav"),
        ("voxceleb1", "vox1_test_wav.zip", "wav/id1/v/1.wav", "wav/id1/v/1.wav"),
        ("voxceleb1", "vox1_test_wav.zip", "id1/v/1.wav", "wav/id1/v/1.wav"),
    ],
)
def test_every_layout_lands_where_preparation_looks(
    tmp_path, corpus, archive, inside, lands
):
    path = tmp_path / archive
    path.write_bytes(zip_of({inside: b"audio"}))
    out = tmp_path / "out"
    sums = ["--md5", f"{archive}={md5(path.read_bytes())}"]
    download.main([corpus, str(out), "--from", str(path), *sums])
    assert tree(out) == {f"VoxCeleb{corpus[-1]}/{lands}": b"audio"}


def test_the_two_halves_of_voxceleb1_share_a_folder(tmp_path):
    paths, sums = [], []
    for half, speaker in (("dev", "id10001"), ("test", "id10270")):
        path = tmp_path / f"vox1_{half}_wav.zip"
        path.write_bytes(zip_of({f"wav/{speaker}/v/00001.wav": b"audio"}))
        paths.append(str(path))
        sums.append(f"{path.name}={md5(path.read_bytes())}")
    download.main(["voxceleb1", str(tmp_path), "--from", *paths, "--md5", *sums])
    assert sorted(p.name for p in (tmp_path / "VoxCeleb1/wav").iterdir()) == [
        "id10001",
        "id10270",
    ]


def test_trial_lists_are_put_beside_the_audio(server, tmp_path, capsys):
    mine = tmp_path / "veri_test2.txt"
    mine.write_bytes(b"1 a/b/c.wav a/b/d.wav\n")
    server.files["/meta/list_test_hard2.txt"] = hard = b"0 a/b/c.wav e/f/g.wav\n"
    server.content_type = "text/plain"
    sources = [str(mine), f"{server.url}/meta/list_test_hard2.txt"]
    sums = [f"veri_test2.txt={md5(mine.read_bytes())}"]
    sums.append(f"list_test_hard2.txt={md5(hard)}")
    arguments = ["voxceleb1", str(tmp_path / "out"), "--from", *sources]
    download.main([*arguments, "--md5", *sums])
    wanted = {"veri_test2.txt": mine.read_bytes(), "list_test_hard2.txt": hard}
    folder = tmp_path / "out/VoxCeleb1"
    assert tree(folder) == wanted
    server.log.clear()
    download.main([*arguments, "--md5", *sums])
    assert server.log == []
    # The published checksums are known: what was edited is told, not overwritten.
    line = fails(capsys, download.main, arguments)
    assert "veri_test2.txt" in line and "b73110731c9223c1461fe49cb48dddfc" in line
    assert tree(folder) == wanted


def test_sources_that_are_nothing(tmp_path, capsys):
    for source, told in (
        (str(tmp_path / "no.zip"), "no.zip is not a file"),
        ("http://127.0.0.1:9/", "ends in no file name"),
        ("http://127.0.0.1:9/x?file=..", "ends in no file name"),
    ):
        arguments = ["voxceleb2", str(tmp_path), "--from", source]
        assert told in fails(capsys, download.main, arguments)


# ------------------------------------------------------------------------ archives


def evil_tar(name):
    return tar_of({"LibriSpeech/dev-clean-2/good.flac": b"good", name: b"evil"})


SYMLINK = zipfile.ZipInfo("dev/link")
SYMLINK.external_attr = 0o120777 << 16
EVIL = {
    "tar, parent": evil_tar("../x"),
    "tar, deep parent": evil_tar("LibriSpeech/dev-clean-2/../../../x"),
    "tar, absolute": evil_tar("/tmp/x"),
    "tar, symbolic link out": tar_of(
        DEV, [("LibriSpeech/l", "../..", tarfile.SYMTYPE)]
    ),
    "tar, link to a file": tar_of(
        DEV, [("LibriSpeech/l", "/etc/passwd", tarfile.LNKTYPE)]
    ),
    "tar, fifo": tar_of(DEV, [("LibriSpeech/l", "", tarfile.FIFOTYPE)]),
    "zip, parent": zip_of({"dev/good.m4a": b"good", "../x": b"evil"}),
    "zip, deep parent": zip_of({"dev/aac/../../../x": b"evil"}),
    "zip, absolute": zip_of({"/x": b"evil"}),
    "zip, backslashes": zip_of({"..\\x": b"evil"}),
    "zip, symbolic link": zip_of({SYMLINK: "/etc"}),
}


@pytest.mark.fault(
    "F32",
    "an archive with paths and links that lead outside",
    "refused, nothing is written outside",
)
@pytest.mark.parametrize("kind", EVIL)
def test_f32_nothing_is_written_outside(server, tmp_path, capsys, kind):
    out = tmp_path / "deep" / "out"
    line = fails(capsys, librispeech, server, out, content=EVIL[kind])
    assert "it holds " in line and "do not trust this archive" in line
    assert set(tree(tmp_path)) == {f"deep/out/archives/{NAME}"}
    assert not list((out / "LibriSpeech").iterdir())


def damaged(content):
    """``content`` with a bit flipped in the middle."""
    content = bytearray(content)
    content[len(content) // 2] ^= 4
    return bytes(content)


def broken_header():
    """An uncompressed tar whose second header is damaged; tarfile just stops."""
    content = bytearray(gzip.decompress(DEV_TAR))
    place = content.index(b"LibriSpeech/dev-clean-2/84/121123/84-121123.trans.txt")
    content[place] ^= 1
    return bytes(content)


DAMAGED = {
    "gzip, cut": DEV_TAR[: len(DEV_TAR) // 2],
    "gzip, flipped": damaged(DEV_TAR),
    "tar, cut in a file": gzip.decompress(DEV_TAR)[:30_000],
    "tar, cut between files": gzip.decompress(DEV_TAR)[: 512 + 60_416],
    "tar, damaged header": broken_header(),
    "zip, cut": zip_of(VOX2)[:-500],
    "zip, flipped": damaged(zip_of(VOX2, stored=True)),
    "text": b"Quota exceeded\n",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_archives_leave_nothing(tmp_path, capsys, kind):
    archive = tmp_path / "mine_aac.zip"
    archive.write_bytes(DAMAGED[kind])
    out = tmp_path / "out"
    line = fails(capsys, download.main, ["voxceleb2", str(out), "--from", str(archive)])
    assert "mine_aac.zip" in line and "get it again" in line
    assert tree(out) == {}
    assert not list((out / "VoxCeleb2").iterdir())


def test_an_encrypted_zip_is_refused(tmp_path, capsys):
    content = bytearray(zip_of({"dev/aac/id1/v/1.m4a": b"audio"}))
    # Bit 0 of the flags in the central directory.
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive = tmp_path / "mine.zip"
    archive.write_bytes(content)
    arguments = ["voxceleb2", str(tmp_path / "out"), "--from", str(archive)]
    assert "encrypted" in fails(capsys, download.main, arguments)


@pytest.mark.parametrize(
    ("corpus", "name", "inside"),
    [
        ("voxceleb2", "vox2_dev_aac.zip", "mp4/id1/v/1.mp4"),
        ("voxceleb1", "vox1_test_wav.zip", "LibriSpeech/dev-clean/1.flac"),
    ],
)
def test_another_corpus_is_refused(tmp_path, capsys, corpus, name, inside):
    path = tmp_path / name
    path.write_bytes(zip_of({inside: b"x"}))
    sums = ["--md5", f"{name}={md5(path.read_bytes())}"]
    arguments = [corpus, str(tmp_path / "out"), "--from", str(path), *sums]
    assert "nothing that belongs to" in fails(capsys, download.main, arguments)
    assert tree(tmp_path / "out") == {}


def test_a_subset_under_another_name_is_refused(server, tmp_path, capsys):
    line = fails(capsys, librispeech, server, tmp_path, subset="dev-clean")
    assert "nothing that belongs to LibriSpeech" in line
    assert not (tmp_path / "LibriSpeech/dev-clean-2").exists()


def test_a_kill_in_unpacking_is_repaired(server, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    # As after SIGKILL: nothing is tidied up between two files.
    real, calls = download._check_member, []

    def check(*args):
        calls.append(args)
        if len(calls) == 3:
            raise Killed
        real(*args)

    monkeypatch.setattr(download, "_check_member", check)
    with pytest.raises(Killed):
        librispeech(server, tmp_path)
    left = tmp_path / "LibriSpeech" / f".{NAME}.unpacking"
    assert sum(path.is_file() for path in left.rglob("*")) == 2
    assert tree(tmp_path / "LibriSpeech") == {}
    (left / "stale").write_text("of another version")
    librispeech(server, tmp_path)
    assert not left.exists()
    assert len(tree(tmp_path / "LibriSpeech")) == len(DEV)
    assert len(server.gets()) == 1


def test_too_little_room_is_told_before_the_download(
    server, tmp_path, capsys, monkeypatch
):
    usage = download.shutil.disk_usage(tmp_path)
    size = len(DEV_TAR)
    for free, enough in ((2 * size - 1, False), (2 * size, True)):
        monkeypatch.setattr(
            download.shutil, "disk_usage", lambda _, f=free: usage._replace(free=f)
        )
        if enough:
            librispeech(server, tmp_path)
        else:
            line = fails(capsys, librispeech, server, tmp_path)
            assert "are needed but" in line and "--delete" in line
            assert server.gets() == []


def test_a_zip_that_grows_too_much_is_not_begun(tmp_path, capsys, monkeypatch):
    archive = tmp_path / "mine_aac.zip"
    archive.write_bytes(zip_of({"dev/aac/id1/v/1.m4a": bytes(10**6)}))
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda _: usage._replace(free=500_000)
    )
    arguments = ["voxceleb2", str(tmp_path / "out"), "--from", str(archive)]
    assert "unpacking takes" in fails(capsys, download.main, arguments)


def test_a_full_disk_stops_the_download_at_once(server, tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / f"{NAME}.part").symlink_to("/dev/full")
    line = fails(capsys, librispeech, server, tmp_path)
    assert "No space left" in line and "make room" in line
    assert len(server.gets()) == 1


def test_two_at_once_are_refused(server, tmp_path, capsys):
    server.pause = 0.02
    code = "import sys; from tools.download import main; main(sys.argv[1:])"
    server.files[f"/{NAME}"] = DEV_TAR
    arguments = ["librispeech", tmp_path, "--subsets", "dev-clean-2"]
    command = [sys.executable, "-c", code, *arguments, "--url", server.url]
    environment = {**os.environ, "no_proxy": "*"}
    quiet = subprocess.DEVNULL
    first = subprocess.Popen(command, stderr=quiet, env=environment)
    part = tmp_path / "archives" / f"{NAME}.part"
    deadline = time.monotonic() + 60
    while not part.exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    line = fails(capsys, librispeech, server, tmp_path)
    assert "another process" in line and f"pid {first.pid}" in line
    assert first.poll() is None
    first.kill()
    first.wait()


def test_user_errors_name_the_file():
    # The line is what users see: it must not be a page of traceback.
    with pytest.raises(UserError, match="^x.zip: 1 of its"):
        file = download.File("x.zip_partab", None, Path("x.zip_partab"), None)
        download._groups([file])
