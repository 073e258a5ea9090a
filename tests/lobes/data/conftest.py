"""Fixtures of the tests of data."""

import pytest

from lobes.system import distributed
from tests.helpers.streams import (
    LENGTHS,
    Corpus,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """CSVs with and without statistics, and one of two utterances."""
    corpus = Corpus(tmp_path_factory.mktemp("streams"))
    corpus.csv = corpus.write("u", LENGTHS)
    corpus.bare_csv = corpus.write("n", LENGTHS, statistics=False)
    corpus.small_csv = corpus.write("few", (1000, 3000))
    return corpus


@pytest.fixture(params=["buckets", "crops"])
def kind(request):
    """The two kinds of streams."""
    return request.param


@pytest.fixture(autouse=True)
def _say_again():
    """A warning is said once in a process; here once in a test."""
    distributed.warn_once.cache_clear()
