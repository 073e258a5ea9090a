"""One-line errors, and files that are complete or absent."""

import os
import stat

import pytest

from lobes.errors import UserError, user_errors_exit
from lobes.system.files import write_atomically


def test_user_error_ends_a_command_in_one_line(capsys):
    @user_errors_exit
    def main():
        raise UserError("x.csv, line 3: too short")

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.err == "error: x.csv, line 3: too short\n"
    assert output.out == ""


def test_other_errors_keep_their_traceback():
    @user_errors_exit
    def main():
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        main()


def test_a_command_keeps_arguments_result_and_docstring():
    @user_errors_exit
    def main(argv, scale=1):
        """Help."""
        return argv * scale

    assert main(3, scale=2) == 6
    assert main.__doc__ == "Help."


def test_text_is_utf_8_with_line_feeds_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    write_atomically(path, "é\nz\n")
    assert path.read_bytes() == b"\xc3\xa9\nz\n"
    assert os.listdir(path.parent) == ["x.txt"]


def test_bytes_replace_an_older_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"an older and longer file")
    write_atomically(str(path), b"\x00new")
    assert path.read_bytes() == b"\x00new"


def test_a_failed_write_keeps_the_older_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_the_rename_comes_after_the_bytes_are_on_the_disk(tmp_path, monkeypatch):
    calls = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (calls.append("sync"), sync(f)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (calls.append("rename"), rename(a, b))
    )
    write_atomically(tmp_path / "x", "new")
    assert calls == ["sync", "rename"]


def test_files_have_the_usual_mode_not_the_temporary_files_private_one(tmp_path):
    mask = os.umask(0o022)
    try:
        write_atomically(tmp_path / "x", "new")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644
