"""The way to a scheduler: an address, a file that names one, or worker processes of our own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import dask
from distributed import Client, LocalCluster

from refimpl import machine
from refimpl.conventions import ClusterError, ConfigError
from refimpl.data.image_folder import interrupts_held
from refimpl.disk import read_text

LOCAL = "local"
TIMEOUT = 10  # seconds until a scheduler must have answered, or ended


@contextlib.contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """Connect to a scheduler, and let go of it at the end; its workers stay.

    scheduler: its address, such as tcp://10.0.0.1:8786 or tls://...; the path of a scheduler file;
    or local[:N] for N worker processes of this machine (without N one a CPU) with a thread each,
    which end with the block. Security is that of Dask's own configuration.
    ConfigError for another text, ClusterError where no scheduler answers.

    >>> with connected("local:1") as client:
    ...     client.submit(sum, [1, 2, 3]).result()
    6
    """
    with contextlib.ExitStack() as stack:
        address = _address(scheduler) or stack.enter_context(_local(_count(scheduler)))
        try:
            client = Client(address, timeout=TIMEOUT, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:  # also where a TLS file is missing
            what = " ".join(str(error).split()) or type(error).__name__
            raise ClusterError(f"{scheduler}: cannot reach the scheduler: {what}") from None
        stack.callback(_close, client)
        yield client


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nobody log or warn in this process, for a command: its user gets one line of what failed.

    Dask logs a lost worker in several, and tells of differing versions in a table. Where the
    process is the command's own, what is logged at its end is not heard either.
    """
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if not machine.own_process:
            logging.disable(logging.NOTSET)


def _address(scheduler: str) -> str | None:
    """Of a scheduler that runs already; None: processes of our own are asked for."""
    name, _, _ = scheduler.partition(":")
    if name == LOCAL:
        return None
    if "://" in scheduler or re.fullmatch(r"[^/]+:\d+", scheduler):
        return scheduler
    path = Path(scheduler)
    if not scheduler or not path.exists():
        raise ConfigError(
            f"{scheduler or repr(scheduler)}: no such scheduler file, expected one, an address "
            "such as tcp://HOST:PORT, or local[:N]"
        )
    try:
        address = json.loads(read_text(path))["address"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        address = None
    if not isinstance(address, str):
        raise ConfigError(f"{scheduler}: not a scheduler file, expected JSON with an address")
    return address


def _close(opened: Client | LocalCluster) -> None:
    """End it, or leave it to end by itself: on a busy machine that is no error of what was done."""
    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):  # one, from Python 3.11 on
        opened.close(timeout=TIMEOUT)


def _count(scheduler: str) -> int:
    _, colon, number = scheduler.partition(":")
    if not colon:
        return machine.cpus()
    if not number.isdecimal() or int(number) == 0:
        raise ConfigError(f"{scheduler}: expected local or local:N, N a whole number of at least 1")
    return int(number)


def _started(count: int) -> LocalCluster:
    try:
        return LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError) as error:
        raise ClusterError(f"{LOCAL}:{count}: the workers do not start: {error}") from None


@contextlib.contextmanager
def _local(count: int) -> Iterator[str]:
    """Worker processes with a thread each, on the loopback interface; they never hear of Ctrl-C."""
    if os.name == "posix":
        with interrupts_held():
            resource_tracker.ensure_running()  # its start lets go of them
    # nobody reads the profile that each worker would make of itself every 10 ms, nor how late its
    # event loop is, every 20 ms
    settings = {"worker.profile.enabled": False, "admin.tick.interval": "1s"}
    unwatched = dask.config.set({f"distributed.{key}": value for key, value in settings.items()})
    with contextlib.ExitStack() as stack:
        with unwatched, interrupts_held():  # Dask's threads inherit it, and what they start
            cluster = _started(count)
            stack.callback(_close, cluster)  # before an interrupt that has waited
        yield cluster.scheduler_address
