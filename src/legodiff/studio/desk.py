"""One drawing at a time: the others wait their turn, and whoever leaves is stopped."""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from legodiff.train.memory import out_of_memory

Result = TypeVar("Result")
TICK = 0.2  # seconds between looks at how far it is
CLOSED = "this studio is being stopped; start it again to go on"


class BusyError(ValueError):
    """There are too many in the queue already, or no more are taken at all."""


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
        self.closed = threading.Event()

    def run(self, work: Callable[[Tell], Result]) -> Generator[Any, None, Result]:
        """Yields ``Waiting``, then the newest of what the job tells; returns what it returns.

        Closing the generator ends the job when it next tells something, and so does closing the
        desk. Raises BusyError if the queue is full or the desk is closed, ValueError if memory ran
        out, and whatever else the job raises.
        """
        told: SimpleQueue[Any] = SimpleQueue()
        left = threading.Event()

        def tell(news: Any) -> None:
            if left.is_set() or self.closed.is_set():
                raise _LeftError
            told.put(news)

        job = self._enter(lambda: _in_memory(lambda: work(tell)))
        job.add_done_callback(lambda _: told.put(None))  # nobody waits for more
        try:
            while not (job.done() or self.closed.is_set()):
                if ahead := self._ahead(job):
                    yield Waiting(ahead)
                    _wait(job, TICK)
                    continue
                news = _newest(told)
                if news is not None:
                    yield news
            if self.closed.is_set():  # nobody waits until the job tells something
                raise BusyError(CLOSED)
            return job.result()
        finally:
            left.set()
            job.cancel()

    def _enter(self, work: Callable[[], Result]) -> "Future[Result]":
        with self.lock:
            if self.closed.is_set():
                raise BusyError(CLOSED)
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
        """Takes no more jobs; those that wait are not begun, one that runs ends when it tells."""
        with self.lock:
            self.closed.set()
            self.worker.shutdown(wait=False, cancel_futures=True)


def _in_memory(work: Callable[[], Result]) -> Result:
    """What the work returns. Raises ValueError, in one line, if there was no memory for it."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or out_of_memory(error)):
            raise
    # Out here the line does not hold on to the error, nor the error to what filled the memory.
    raise ValueError("not enough memory; ask for fewer or smaller images")


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
