import threading
import time

import pytest
import torch

from legodiff.studio.desk import BusyError, Desk, Waiting


def ended(events):
    """All that is told, and what is returned."""
    told = []
    while True:
        try:
            told.append(next(events))
        except StopIteration as end:
            return told, end.value


def test_a_job_tells_and_returns():
    desk = Desk(waiting=1)
    seen, told, gate = threading.Event(), threading.Event(), threading.Event()

    def work(tell):
        tell("first")
        seen.wait(5)
        tell("second")
        tell("third")  # nobody has looked yet: only the newest counts
        told.set()
        gate.wait(5)
        return 7

    events = desk.run(work)
    assert next(events) == "first"
    seen.set()
    assert told.wait(5)
    assert next(events) == "third"
    gate.set()
    assert ended(events)[1] == 7


def test_jobs_run_one_at_a_time_in_order():
    desk, running, order = Desk(waiting=5), [], []

    def job(number):
        def work(tell):
            running.append(number)
            assert running == [number]
            time.sleep(0.05)
            running.remove(number)
            order.append(number)

        return work

    threads = []
    for number in range(4):
        threads.append(threading.Thread(target=lambda n=number: ended(desk.run(job(n)))))
        threads[-1].start()
        while len(desk.jobs) <= number:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_the_queue_is_bounded_and_says_how_long_it_is():
    desk, gate = Desk(waiting=1), threading.Event()
    first = desk.run(lambda tell: (tell("on"), gate.wait(5)))
    assert next(first) == "on"
    second = desk.run(lambda tell: 2)
    assert next(second) == Waiting(1)
    with pytest.raises(BusyError, match=r"as many wait as may \(1\)"):
        next(desk.run(lambda tell: 3))
    gate.set()
    assert ended(second)[1] == 2
    assert ended(desk.run(lambda tell: 4))[1] == 4  # there is room again


def test_who_leaves_is_stopped_and_the_next_goes_on():
    desk, stopped = Desk(waiting=2), threading.Event()

    def endless(tell):
        try:
            while True:
                tell("on")
                time.sleep(0.01)
        except BaseException:
            stopped.set()
            raise

    first = desk.run(endless)
    assert next(first) == "on"
    begun = threading.Event()
    waits = desk.run(lambda tell: begun.set())
    assert next(waits) == Waiting(1)
    waits.close()  # leaves before its turn
    first.close()
    assert stopped.wait(5)
    assert ended(desk.run(lambda tell: 3))[1] == 3
    assert not begun.is_set()  # nobody waits for it


def test_mistakes_reach_who_asked():
    desk = Desk(waiting=1)

    def work(tell):
        raise ValueError("no such class")

    with pytest.raises(ValueError, match="no such class"):
        ended(desk.run(work))


def test_a_closed_desk_ends_what_runs_and_what_waits():
    desk, over, begun = Desk(waiting=2), threading.Event(), threading.Event()

    def long(tell):
        try:
            for _ in range(1000):
                tell("on")
                time.sleep(0.01)
        finally:
            over.set()

    first, second = desk.run(long), desk.run(lambda tell: begun.set())
    assert next(first) == "on"
    assert next(second) == Waiting(1)
    desk.close()
    assert over.wait(5)  # although nobody looks at what it tells
    for one in (first, second, desk.run(long)):
        with pytest.raises(BusyError, match="this studio is being stopped"):
            ended(one)
    desk.worker.shutdown(wait=True)
    assert not begun.is_set()
    desk.close()  # once more changes nothing


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 GB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    ],
)
def test_running_out_of_memory_is_told_in_a_line(error):
    desk = Desk(waiting=1)

    def work(tell):
        raise error

    with pytest.raises(ValueError, match="not enough memory; ask for fewer or smaller images"):
        ended(desk.run(work))
    assert desk.jobs[0].exception().__context__ is None  # it would hold on to what filled it
    error = RuntimeError("another mistake")
    with pytest.raises(RuntimeError, match="another mistake"):
        ended(desk.run(work))
