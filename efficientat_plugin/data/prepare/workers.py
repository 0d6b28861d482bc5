"""Work shared by processes that can be stopped at any time.

They end when they are told to and when the process that started them is gone.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_end
from types import SimpleNamespace
from typing import Any

POLL_SECONDS = 0.5
# Of a worker process: what `_join` was given.
_own = SimpleNamespace(job=None, progress=None, stop=None)


class Stopped(Exception):
    """The work was broken off elsewhere."""


class Workers:
    """Does a job for many arguments, in this process or in several.

    Arguments
    ---------
    job : Callable
        ``job(argument, say_done)``, picklable, which calls ``say_done()`` now and then;
        this may raise, to stop it.
    num_proc : int
        Processes; 1: none but this one.
    """

    def __init__(self, job: Callable[..., Any], num_proc: int = 1) -> None:
        if num_proc < 1:
            raise ValueError(f"num_proc={num_proc} must be 1 or more")
        self.job = job
        self.num_proc = num_proc

    def run(
        self, arguments: Iterable[Any], on_progress: Callable[[int], Any]
    ) -> Generator[Any, None, None]:
        """Yields results as they come.

        Arguments
        ---------
        arguments : Iterable
            One for each call.
        on_progress : Callable
            Given how often ``say_done`` was called since it was given it last.

        Raises
        ------
        OSError
            If a process ended by itself.
        """
        arguments = list(arguments)
        num_proc = min(self.num_proc, len(arguments))
        if num_proc > 1:
            yield from self._run_in_processes(arguments, num_proc, on_progress)
        else:
            for argument in arguments:
                yield self.job(argument, lambda: on_progress(1))

    def _run_in_processes(
        self, arguments: list[Any], num_proc: int, on_progress: Callable[[int], Any]
    ) -> Generator[Any, None, None]:
        context = _context(self.job.__module__)
        # Read and set without a lock, which a worker may have taken to its grave.
        progress, stop = context.Value("Q", 0), context.RawValue("b", 0)
        told = 0
        executor = ProcessPoolExecutor(
            num_proc, context, _join, (self.job, progress, stop)
        )
        try:
            with _interrupts_kept_from_children():
                waiting = {executor.submit(_do, argument) for argument in arguments}
            while waiting:
                done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                now = progress.get_obj().value
                on_progress(now - told)
                told = now
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"one of {num_proc} processes was ended from outside, perhaps for want "
                "of memory; run the same command again, with a lower num_proc if so"
            ) from error
        finally:
            stop.value = 1
            executor.shutdown(cancel_futures=True)


def _context(module: str) -> Any:
    """How processes start: from one that has imported what they need, if that works."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", module])
    return context


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal; here the first one tells the rest."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _join(job: Callable[..., Any], progress: Any, stop: Any) -> None:
    _own.job, _own.progress, _own.stop = job, progress, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


def _do(argument: Any) -> Any:
    return _own.job(argument, _say_done)


def _say_done() -> None:
    with _own.progress.get_lock():
        _own.progress.value += 1
    if _own.stop.value:
        raise Stopped
