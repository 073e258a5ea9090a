"""What is remembered of decoded files, and when it does not count."""

import os

import numpy as np
import pytest

from lobes.data.scan_cache import ScanCache
from lobes.errors import UserError


@pytest.fixture
def paths(tmp_path):
    """Five files below a root."""
    (tmp_path / "root" / "a").mkdir(parents=True)
    found = [tmp_path / "root" / "a" / f"{number}.wav" for number in range(5)]
    for number, path in enumerate(found):
        path.write_text("x" * number)
        os.utime(path, ns=(number, number))
    return list(map(str, found))


def journal(paths):
    root = os.path.dirname(os.path.dirname(paths[0]))
    return ScanCache(os.path.join(root, "..", "part.scan"), root)


def remember(paths, indices, factor=1.0):
    one = journal(paths)
    one.find(paths)
    numbers = np.array(indices)
    one.add(indices, 400 + numbers, factor * numbers, 0.5 * numbers)
    return one


def known(paths, **options):
    return np.flatnonzero(journal(paths).find(paths, **options)[0]).tolist()


def test_nothing_is_known_at_first(paths):
    found, frames, mean, std = journal(paths).find(paths)
    assert not found.any() and not frames.any() and not mean.any() and not std.any()
    assert frames.dtype == np.int64
    assert journal(paths).find([])[0].size == 0


def test_numbers_keep_every_bit(paths):
    one = journal(paths)
    one.find(paths)
    one.add([3, 1], [500, 2**40], [1 / 3, -1e-300], [0.0, np.nextafter(1, 2)])
    found, frames, mean, std = journal(paths).find(paths[::-1])
    assert found.tolist() == [False, True, False, True, False]
    assert frames.tolist() == [0, 500, 0, 2**40, 0]
    assert mean.tolist() == [0, 1 / 3, 0, -1e-300, 0]
    assert std.tolist() == [0, 0, 0, np.nextafter(1, 2), 0]


def test_the_newest_record_counts(paths):
    remember(paths, [0, 1, 2])
    remember(paths, [1], factor=7.0)
    assert journal(paths).find(paths)[2].tolist() == [0, 7, 2, 0, 0]


def test_a_file_that_changed_is_not_known(paths):
    remember(paths, [0, 1, 2, 3, 4])
    os.utime(paths[0], ns=(77, 77))
    with open(paths[1], "a") as stream:
        stream.write("more")
    os.utime(paths[1], ns=(1, 1))
    os.unlink(paths[2])
    assert known(paths) == [3, 4]


def test_a_corpus_may_move(paths):
    one = remember(paths, [0, 4])
    root = os.path.dirname(os.path.dirname(paths[0]))
    os.rename(root, root + "2")
    moved = [path.replace(root, root + "2") for path in paths]
    assert known(paths) == []
    found = ScanCache(one.path.resolve(), root + "2").find(moved)[0]
    assert np.flatnonzero(found).tolist() == [0, 4]


def test_an_absent_file_is_never_remembered(paths):
    os.unlink(paths[2])
    remember(paths, [1, 2])
    assert known(paths) == [1]
    assert os.path.getsize(journal(paths).path) == 48


@pytest.mark.parametrize("cut", [1, 47, 48, 49])
def test_a_torn_record_is_neither_used_nor_in_the_way(paths, cut):
    path = remember(paths, [0, 1, 2]).path
    os.truncate(path, 3 * 48 - cut)
    left = [0, 1] if cut <= 48 else [0]
    assert known(paths) == left
    remember(paths, [3, 4])
    assert known(paths) == [*left, 3, 4]


@pytest.mark.parametrize("place", range(48, 96, 5))
def test_a_damaged_record_does_not_count(paths, place):
    path = remember(paths, [0, 1, 2]).path
    with open(path, "r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 4]))
    assert known(paths) == [0, 2]


def test_a_file_of_zeros_says_nothing(paths):
    path = remember(paths, [0]).path
    path.write_bytes(bytes(48 * 10))
    os.unlink(paths[0])
    assert known(paths) == []


def test_lengths_alone_do_where_no_statistics_are_asked_for(paths):
    one = journal(paths)
    one.find(paths)
    one.add([0, 1], [500, 600], [np.nan, 0.1], [np.nan, 0.2])
    assert known(paths) == [1]
    assert known(paths, statistics=False) == [0, 1]


def test_a_folder_that_cannot_be_written_to(paths, tmp_path):
    one = ScanCache(tmp_path / "absent" / "part.scan", tmp_path)
    one.find(paths)
    with pytest.raises(UserError, match="part.scan: it cannot be written"):
        one.add([0], [400], [0.0], [1.0])
