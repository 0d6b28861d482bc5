"""Shares work among processes that can be stopped at any time.

They end when told to, and when the process that started them is gone.
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
# State of a worker process, set by `_join`
_own = SimpleNamespace(job=None, progress=None, stop=None)


class Stopped(Exception):
    """Raised in a worker when the work was stopped elsewhere."""


class Workers:
    """Runs a job for many arguments, in this process or in several.

    Arguments
    ---------
    job : Callable
        ``job(argument, say_done)``, picklable, which calls ``say_done()`` now and then;
        that call may raise to stop the job.
    num_proc : int
        Number of processes; 1: only this one.
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
            Called with the number of calls of ``say_done`` since its last call.

        Raises
        ------
        OSError
            If a process was killed.
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
        # Read and set without the lock, which a killed worker may hold.
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
                f"one of {num_proc} processes was killed, perhaps for lack of memory; "
                "rerun the same command, with a lower num_proc if so"
            ) from error
        finally:
            stop.value = 1
            executor.shutdown(cancel_futures=True)


def _context(module: str) -> Any:
    """Returns how processes start: from one with the imports done, where possible."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", module])
    return context


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Keeps Ctrl-C, which a terminal sends to all processes, from the workers."""
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
