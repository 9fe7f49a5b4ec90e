"""A Dask scheduler and its workers as processes of their own, on loopback, with ports of their own.

Each is ended by its process, and nothing else is: by `close`, or by SIGKILL where a test wants it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from distributed import Client

from tests.command_line import PATIENCE

ROOT = Path(__file__).parent.parent


class Dask:
    """A scheduler and workers; `folder` is where they run, and holds their logs."""

    def __init__(self, folder: Path, *options: str, environment: Mapping[str, str] | None = None):
        """options: of the scheduler and of each worker alike."""
        self.folder, self.options = folder, options
        # a test may ask workers to call a function of its own
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        self.file = folder / "scheduler.json"
        self.workers: dict[str, subprocess.Popen] = {}  # by name
        address = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
        self.scheduler = self._start("scheduler", *address)
        wait_for(self.file.exists)

    def worker(
        self, name: str, *options: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen:
        """Start a worker with one thread and no nanny that would start it again."""
        alone = ("--no-nanny", "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard")
        process = self._start("worker", "--name", name, *alone, *options, environment=environment)
        self.workers[name] = process
        return process

    def kill(self, client: Client, address: str) -> None:
        """SIGKILL for the worker at an address."""
        name = client.scheduler_info()["workers"][address]["name"]
        os.kill(self.workers[name].pid, signal.SIGKILL)

    def close(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()

    def __enter__(self) -> Dask:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(
        self, role: str, *options: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", role, "--scheduler-file", str(self.file)]
        with open(self.folder / "log.txt", "ab") as log:
            return subprocess.Popen(
                [*command, *self.options, *options],
                cwd=self.folder,
                env={**self.environment, **(environment or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C of a test is not meant for it
            )


def wait_for(happened: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
