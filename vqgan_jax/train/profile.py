"""A trace of some steps, for TensorBoard's profiler or xprof."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from vqgan_jax import storage


class Profile:
    """Traces the steps `first` to `last`, both included, of every process into `folder`; without a window, nothing.

    A run that begins within the window traces the rest of it, and one that ends there what there was.
    """

    def __init__(self, folder: epath.Path, window: tuple[int, int] | None) -> None:
        self.folder, (self.first, self.last) = folder, window or (1, 0)
        self.running, self.files = False, contextlib.ExitStack()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """One step, called by its number in the trace."""
        if self.first <= number <= self.last and not self.running:
            folder = self.files.enter_context(storage.local_folder(self.folder))
            jax.profiler.start_trace(str(folder))
            self.running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def done(self, number: int, metrics: Any) -> None:
        """Ends the trace behind its last step, when the devices are done with that."""
        if self.running and number >= self.last:
            jax.block_until_ready(metrics)
            self.stop()

    def stop(self) -> None:
        """Writes the trace, if there is one."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            self.files.close()
