"""One drawing at a time: the others wait their turn, and whoever leaves is stopped."""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")
TICK = 0.2  # seconds between looks at how far it is


class BusyError(ValueError):
    """There are too many in the queue already."""


class _LeftError(Exception):
    """Nobody waits for this drawing any more."""


@dataclass(frozen=True)
class Waiting:
    """How many drawings come before this one."""

    ahead: int


Tell = Callable[[Any], None]
"""Passes on how far a job is. It raises where the job is to end."""


class Desk:
    """Runs jobs in one thread, in the order they came, with at most ``waiting`` in the queue."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="desk")
        self.lock = threading.Lock()
        self.jobs: list[Future[Any]] = []

    def run(self, work: Callable[[Tell], Result]) -> Generator[Any, None, Result]:
        """Yields ``Waiting``, then the newest of what the job tells; returns what it returns.

        Closing the generator ends the job when it next tells something. Raises BusyError if the
        queue is full, and whatever the job raises.
        """
        told: SimpleQueue[Any] = SimpleQueue()
        left = threading.Event()

        def tell(news: Any) -> None:
            if left.is_set():
                raise _LeftError
            told.put(news)

        job = self._enter(lambda: work(tell))
        job.add_done_callback(lambda _: told.put(None))  # nobody waits for more
        try:
            while not job.done():
                if ahead := self._ahead(job):
                    yield Waiting(ahead)
                    _wait(job, TICK)
                    continue
                news = _newest(told)
                if news is not None:
                    yield news
            return job.result()
        finally:
            left.set()
            job.cancel()

    def _enter(self, work: Callable[[], Result]) -> "Future[Result]":
        with self.lock:
            self.jobs = [job for job in self.jobs if not job.done()]
            if len(self.jobs) > self.waiting:
                raise BusyError(f"busy: as many wait as may ({self.waiting}); try again soon")
            job = self.worker.submit(work)
            self.jobs.append(job)
            return job

    def _ahead(self, job: "Future[Any]") -> int:
        with self.lock:
            before = self.jobs[: self.jobs.index(job)] if job in self.jobs else []
            return sum(not other.done() for other in before)

    def close(self) -> None:
        """Takes no more jobs; those that wait are not begun."""
        self.worker.shutdown(wait=False, cancel_futures=True)


def _wait(job: "Future[Any]", seconds: float) -> None:
    try:
        job.exception(timeout=seconds)
    except (TimeoutError, CancelledError):
        return


def _newest(told: "SimpleQueue[Any]") -> Any:
    """The last of what was told, after a while if there is nothing yet; None if there is none."""
    news = None
    try:
        news = told.get(timeout=TICK)
        while True:
            news = told.get_nowait() or news
    except Empty:
        return news
