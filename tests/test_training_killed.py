"""Processes that are killed in the middle of a step or of a write, and runs that go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from refimpl.training import checkpoints
from tests.command_line import PATIENCE, wanting_signals
from tests.training_child import RECIPE
from tests.training_runs import contents, timeless, train

ROOT = Path(__file__).parent.parent
FILES = ["run.csv", "run.json", "run.safetensors"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends signals")


def _start(folder: Path, moment: str, *resume: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.training_child", str(folder), moment, *resume]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=wanting_signals,
    )


def _finish(folder: Path, *resume: str) -> None:
    with _start(folder, "never", *resume) as child:
        out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out, err) == (0, "", "")


def _send(folder: Path, moment: str, number: int) -> int:
    """Start a run, send it a signal at its moment -> its exit status."""
    with _start(folder, moment) as child:
        try:
            assert child.stdout.readline() == "here\n", child.communicate()
            child.send_signal(number)
            child.communicate(timeout=PATIENCE)
        finally:
            child.kill()
    return child.returncode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    _finish(folder)
    return folder


def _require_same(folder: Path, other: Path) -> None:
    assert sorted(os.listdir(folder)) == sorted(os.listdir(other)) == FILES
    assert contents(folder / "run.safetensors") == contents(other / "run.safetensors")
    cards = [json.loads((place / "run.json").read_text()) for place in (folder, other)]
    for card in cards:  # clock times, and a hash of a header whose keys come in any order
        del card["wall_time_seconds"], card["figures"]["images_per_second"], card["sha256"]
        for row in card["history"]:
            del row["images_per_second"], row["elapsed"]
    assert cards[0] == cards[1]


def test_a_process_of_its_own_gives_the_same_bits(tmp_path, uninterrupted) -> None:
    train(tmp_path, RECIPE, curves=True)
    _require_same(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("moment", "epochs", "leftovers"), [("step", 2, 0), ("write", 2, 1), ("replace", 2, 1)]
)
def test_killed_and_resumed_to_the_same_bytes(
    tmp_path, uninterrupted, moment: str, epochs: int, leftovers: int
) -> None:
    assert _send(tmp_path, moment, signal.SIGKILL) == -signal.SIGKILL
    saved = checkpoints.load(tmp_path / "run.checkpoint")
    assert len(saved.progress["history"]) == epochs
    left = [name for name in os.listdir(tmp_path) if name.startswith(".run.checkpoint.")]
    assert len(left) == leftovers
    _finish(tmp_path, "resume")
    _require_same(tmp_path, uninterrupted)  # and the leftovers are gone


@pytest.mark.parametrize("moment", ["step", "write", "replace"])
def test_interrupted_by_ctrl_c_leaves_the_last_checkpoint_and_nothing_else(
    tmp_path, uninterrupted, moment: str
) -> None:
    assert _send(tmp_path, moment, signal.SIGINT) == 130
    assert sorted(os.listdir(tmp_path)) == ["run.checkpoint", "run.csv"]
    assert len(checkpoints.load(tmp_path / "run.checkpoint").progress["history"]) == 2
    _finish(tmp_path, "resume")
    _require_same(tmp_path, uninterrupted)


def test_a_disk_that_is_full_leaves_the_last_checkpoint_and_nothing_else(
    tmp_path, uninterrupted
) -> None:
    pytest.importorskip("resource")
    with _start(tmp_path, "limit") as child:
        _, err = child.communicate(timeout=PATIENCE)
    named = f"[Errno 27] File too large: '{tmp_path / 'run.checkpoint'}'\n"
    assert (child.returncode, err) == (2, named)
    assert sorted(os.listdir(tmp_path)) == ["run.checkpoint", "run.csv"]
    assert len(checkpoints.load(tmp_path / "run.checkpoint").progress["history"]) == 2
    _finish(tmp_path, "resume")
    _require_same(tmp_path, uninterrupted)


def test_killed_at_any_moment_again_and_again(tmp_path, uninterrupted) -> None:
    """No moment is chosen: runs are killed after some time, until one comes to its end."""
    rng = np.random.default_rng(0)
    output, checkpoint = tmp_path / "run.safetensors", tmp_path / "run.checkpoint"
    for _ in range(5):
        resume = ["resume"] if checkpoint.exists() else []
        with _start(tmp_path, "never", *resume) as child:
            deadline = time.monotonic() + PATIENCE
            while child.poll() is None and not checkpoint.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2))
            child.kill()
        if output.exists():
            break
    if checkpoint.exists():
        _finish(tmp_path, "resume")
    _require_same(tmp_path, uninterrupted)


def test_only_its_own_leftovers_are_removed(tmp_path) -> None:
    others = [
        ".run.checkpoint",
        ".run.checkpoint.original",
        ".run.checkpoint.0123456789ABCDEF.part",
        ".other.checkpoint.0123456789abcdef.part",
        "run.checkpoint.0123456789abcdef.part",
    ]
    names = ("run.checkpoint", "run.json", "run.safetensors")
    own = [f".{name}.0123456789abcdef.part" for name in names]
    for name in others + own:
        (tmp_path / name).touch()
    trained = train(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "run.json", "run.safetensors"])
    assert timeless(trained.history) == timeless(train(tmp_path, name="again").history)
