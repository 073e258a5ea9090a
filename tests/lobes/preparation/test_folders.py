"""The folders of a corpus: how they are listed and checked."""

import os

import pytest

from lobes.errors import UserError
from lobes.preparation.folders import (
    Inputs,
    LeftOut,
    best_audio,
    existing_folder,
    listing,
    writable_folder,
)


def test_inputs_notice_name_size_and_time(tmp_path):
    path = tmp_path / "a"
    path.write_text("12")
    os.utime(path, ns=(1, 1))

    def digest(name="a"):
        inputs = Inputs()
        inputs.add(name, path)
        return inputs.digest()

    first = digest()
    assert digest() == first != digest("b")
    os.utime(path, ns=(1, 2))
    later = digest()
    path.write_text("123")
    os.utime(path, ns=(1, 2))
    longer = digest()
    path.unlink()
    assert len({first, later, longer, digest()}) == 4


def test_a_listing_is_sorted_and_hides_hidden_files(tmp_path):
    for name in ("b.wav", "a.wav", "._a.wav"):
        (tmp_path / name).touch()
    (tmp_path / "z").mkdir()
    (tmp_path / "y").mkdir()
    folders, files = listing(tmp_path)
    assert [e.name for e in files] == ["a.wav", "b.wav"]
    assert [e.name for e in folders] == ["y", "z"]
    with pytest.raises(UserError, match="cannot be listed"):
        listing(tmp_path / "absent")


def test_best_audio_takes_one_file_of_each_stem(tmp_path):
    for name in ("b.m4a", "b.wav", "a.flac", "a.m4a", "c.M4A", "c.txt", "d.txt"):
        (tmp_path / name).touch()
    left_out = LeftOut(tmp_path)
    best = best_audio(listing(tmp_path)[1], (".wav", ".flac", ".m4a"), left_out)
    assert {stem: os.path.basename(path) for stem, path in best.items()} == {
        "a": "a.flac",
        "b": "b.wav",
        "c": "c.M4A",
    }
    assert list(best) == ["a", "b", "c"]
    assert left_out.counts() == {"file(s) that end in .txt": 2}


def test_folders_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="data_folder: the folder .*absent"):
        existing_folder("absent", "data_folder")
    with pytest.raises(UserError, match="does not exist"):
        existing_folder("file", "data_folder")
    with pytest.raises(UserError, match="save_folder: .* cannot be written"):
        writable_folder("file/inside")
    assert writable_folder("new/inside") == tmp_path / "new" / "inside"
    assert not list((tmp_path / "new" / "inside").iterdir())
