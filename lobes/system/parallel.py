"""Processes that share a list of work and end with the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from lobes.errors import UserError
from lobes.system.machine import usable_cores

T, R = TypeVar("T"), TypeVar("R")


def worker_count(num_workers: int | None) -> int:
    """The number of processes to use: None means all cores that this one may use."""
    if num_workers is None:
        return usable_cores()
    if num_workers < 1:
        raise UserError(
            f"num_workers={num_workers}: at least 1 process is needed; leave it out "
            f"for one per core"
        )
    return num_workers


def map_in_chunks(
    function: Callable[[Sequence[T]], list[R]],
    items: Sequence[T],
    size: int,
    num_workers: int | None,
) -> Iterator[tuple[int, list[R]]]:
    """Yield the place and the results of each chunk of ``size`` items, in order.

    Large chunks hide the cost of passing messages; small ones let a progress bar move.
    """
    starts = range(0, len(items), size)
    chunks = (items[start : start + size] for start in starts)
    workers = min(worker_count(num_workers), len(starts))
    yield from zip(starts, map_in_processes(function, chunks, workers), strict=True)


def map_in_processes(
    function: Callable[[T], R], tasks: Iterable[T], workers: int
) -> Iterator[R]:
    """Like ``map``, in ``workers`` processes where there is more than one.

    Results come in the order of ``tasks``. The workers end with this process,
    however that ends. Raises ``UserError`` when one of them died.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    executor = ProcessPoolExecutor(workers, initializer=_start_worker)
    try:
        yield from executor.map(function, tasks)
    except BrokenProcessPool as error:
        raise UserError(
            f"a worker process died, perhaps for lack of memory; use fewer than "
            f"--num_workers={workers}"
        ) from error
    finally:
        # Without this an error or Ctrl-C would first finish the whole corpus.
        executor.shutdown(cancel_futures=True)


def _start_worker():
    """Leave signals to the parent, and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler that the training program installed must not act in here.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A killed parent cannot stop its workers: they would wait for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Block until the parent process has ended, then end this one."""
    multiprocessing.parent_process().join()
    os._exit(1)
