"""Ending a run when somebody asks for it: SIGTERM from a scheduler, or Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether the process was asked to stop.

    A second Ctrl-C interrupts at once, as usual. Outside the main thread signals are left alone.
    """
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
