"""The port of one block in C: how the tests compile and run it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("didb_block.c")
GOLDEN = Path(__file__).parents[2] / "weights" / "golden"
STRICT = ("-std=c99", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
# The many wrong versions: not optimized, and an unused variable is no matter.
QUICK = ("-std=c99", "-O0", "-ffp-contract=off", "-w")

needs_cc = pytest.mark.skipif(
    shutil.which("cc") is None and "CI" not in os.environ, reason="there is no C compiler `cc`"
)


def compile(source: Path, program: Path, flags: tuple[str, ...] = STRICT) -> Path:
    """The program, made from the source."""
    command = ["cc", *flags, str(source), "-o", str(program), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return program


def run(program: Path, bundle: Path, block: object, out: Path) -> subprocess.CompletedProcess:
    """The block's taps, written as .npy into the new folder `out`."""
    out.mkdir()
    command = [str(program), str(bundle), str(block), str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def port(program: Path, bundle: Path, block: int, out: Path) -> Path:
    """The same, and it went well: the folder of the taps."""
    result = run(program, bundle, block, out)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    return out
