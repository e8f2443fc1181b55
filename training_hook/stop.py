"""SIGTERM and Ctrl-C as a request to save and end, which is how schedulers preempt a job."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipelines.progress import say


class Stop:
    """What SIGTERM and the first Ctrl-C ask for: save a checkpoint after this step and end."""

    def __init__(self) -> None:
        self.requested = False


class Stopped(Exception):
    """Raised inside a long stage to leave it once a stop has been requested."""


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turns SIGTERM and Ctrl-C into a flag; a second signal has its usual effect.

    Outside the main thread, where Python delivers no signals, the flag is never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def request(number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        for each, handler in before.items():
            signal.signal(each, handler)
        say(f"pretrain: got {signal.Signals(number).name}, saving a checkpoint after this step")

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
