"""What interrupts a run: the request to stop, and a batch that does not come."""

import contextlib
import faulthandler
import itertools
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import jax


class Stop:
    """Turns SIGTERM and the first Ctrl-C into a flag; a second Ctrl-C interrupts as usual.

    In a cluster the signal is left to `jax.distributed`, which brings it to all processes at the same step.
    """

    requested = False

    def __enter__(self) -> "Stop":
        signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self.previous = {number: signal.signal(number, self.request) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def request(self, *_: Any) -> None:
        """The signals' handler."""
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def deadline(seconds: int, batch: str, source: str) -> Iterator[None]:
    """What waits inside, for a named batch from a source, may take so long; 0, and other threads, wait for ever.

    Raises:
      TimeoutError: it took longer. Where each thread stands is printed to stderr.
    """

    def late(*_: Any) -> None:
        faulthandler.dump_traceback()
        raise TimeoutError(
            f"the {batch} must come within config.data.timeout_seconds = {seconds}; process "
            f"{jax.process_index()} of {jax.process_count()} got none from {source}. Where its threads are "
            "is printed above. Look at that storage, then run the same command again; or raise the timeout."
        )

    if threading.current_thread() is not threading.main_thread():  # only that one is given signals
        yield
        return
    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def in_time(batches: Iterable[Any], seconds: int, name: str, source: str) -> Iterator[Any]:
    """The batches, each in time; they are counted from 1 for the error of `deadline`."""
    waiting = iter(batches)
    for number in itertools.count(1):
        with deadline(seconds, f"{name} {number}", source):
            try:
                batch = next(waiting)
            except StopIteration:
                return
        yield batch
