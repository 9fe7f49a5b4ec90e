"""Helpers for tests of the command line: run it here or in a process, and a tiny model to ask."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import refimpl
from refimpl import cli
from refimpl.data import bundled, mnist, scenes
from refimpl.data.preprocessing import Preprocessing
from tests.make_samples import write_idx

SMALL = bundled.mnist() / "small"
SEVEN = bundled.mnist() / "7_0000.png"
MODEL = refimpl.create_model("didb_micro", dim=8, depth=1)
# Seconds after which what a test waits for hangs. On a machine that has much else to do a process
# that needs ten of them for itself takes some hundred.
PATIENCE = 900


class Result(NamedTuple):
    status: int
    out: str
    err: str


def run(*args: object) -> Result:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main([str(a) for a in args])
        except SystemExit as end:  # argparse
            status = end.code
    return Result(status, out.getvalue(), err.getvalue())


def process(*args: object, **options) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "refimpl", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **options)


def wanting_signals() -> None:
    """For `preexec_fn`: who ignores interrupts, as `nohup pytest &` does, hides them from children.

    Without it a test that sends one would wait for its end in vain.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def assert_one_line(result: Result, *words: str) -> None:
    """Status 2, nothing on stdout, one line on stderr that holds all the words."""
    assert result.status == 2, result
    assert result.out == ""
    assert re.fullmatch(r"refimpl: [^\n]+\n", result.err), result.err
    for word in words:
        assert word in result.err


def save_model(path: Path, **fields) -> Path:
    """A model of MNIST's shape that tells images apart; its answers are wrong as a rule."""
    model = MODEL.replace(**fields)
    params = model.init(np.random.default_rng(50))
    params["head"]["weight"] *= 100
    refimpl.save(
        path,
        model,
        params,
        class_names=list(mnist.CLASS_NAMES),
        preprocessing=mnist.PREPROCESSING.to_json(),
        card={"data": "none"},
    )
    return path


def save_segmenter(path: Path, **fields) -> Path:
    """A segmenter of scenes that tells pixels apart; its answers are wrong as a rule."""
    model = refimpl.create_model("segmenter_didb_micro", **{"dim": 8, "depth": 1, **fields})
    params = model.init(np.random.default_rng(52))
    params["head"]["weight"] *= 100
    preprocessing = Preprocessing.plain(model.config.image_size, model.config.channels)
    refimpl.save(
        path,
        model,
        params,
        class_names=list(scenes.CLASS_NAMES),
        preprocessing=preprocessing.to_json(),
        card={"data": "none"},
    )
    return path


def write_mnist(folder: Path, counts: dict[str, int]) -> Path:
    """MNIST's idx files with the first bundled images of each split."""
    folder.mkdir(exist_ok=True)
    for split, count in counts.items():
        images, labels = mnist.load(SMALL, split)
        stem = folder / mnist.SPLITS[split]
        write_idx(Path(f"{stem}-images-idx3-ubyte.gz"), images[:count])
        write_idx(Path(f"{stem}-labels-idx1-ubyte.gz"), labels[:count].astype(np.uint8))
    return folder
