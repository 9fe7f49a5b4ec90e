"""How the tests export a network to C, compile it and run what it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import golden
from refimpl.exporting import c, source
from refimpl.golden import candidate
from refimpl.golden.compare import Comparison
from refimpl.models import VisionTransformer, files

STRICT = (
    *("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"),
    "-ffp-contract=off",
)
# A driver of the header: float32 images on stdin, of each its answer and its logits on stdout.
DRIVER = """
#include <stdio.h>
#include "NAME.h"
static float image[UPPER_PIXELS], logits[UPPER_LOGITS];
int main(void)
{
    while (fread(image, sizeof image, 1, stdin) == 1) {
        const float answer = (float)FUNCTION(image, logits);
        fwrite(&answer, sizeof answer, 1, stdout);
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return 0;
}
"""


def needs(program: str) -> pytest.MarkDecorator:
    """Skip where a program is not installed."""
    missing = shutil.which(program) is None
    return pytest.mark.skipif(missing, reason=f"{program} is not installed")


def export(folder: Path, model: VisionTransformer, params: Any, name: str = "net") -> Path:
    """The C source of a network, in a new folder."""
    files.save(folder / f"{name}.safetensors", model, params)
    return export_file(folder / f"{name}.safetensors", folder / "c")


def export_file(name_or_path: str | Path, folder: Path) -> Path:
    read = source.read(name_or_path)
    c.write(folder, read)
    return folder / f"{read.name}.c"


def compile(
    code: Path, program: Path, *flags: str, cc: str = "cc", more: tuple[Path, ...] = ()
) -> Path:
    """The program of a source, without a warning."""
    command = [cc, *STRICT, *flags, f"-I{code.parent}", str(code), *map(str, more)]
    made = subprocess.run([*command, "-o", str(program), "-lm"], capture_output=True, text=True)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    return program


def show(command: list[str | Path], images: Path, out: Path) -> Path:
    """Run a program that was compiled with -DTAPS: the folder of its values."""
    out.mkdir()
    result = subprocess.run([*command, images, out], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    return out


def judge(bundle: Path, taps: Path, mode: str = "free") -> Comparison:
    return golden.compare(golden.read(bundle), candidate.read(taps), mode=mode)


def classify(
    code: Path, folder: Path, images: np.ndarray, *flags: str
) -> tuple[np.ndarray, np.ndarray]:
    """What the exported function answers for images (n, channels, H, W): answers and logits."""
    name, text = code.stem, code.with_suffix(".h").read_text()
    function = f"{name}_classify" if f"{name}_classify" in text else f"{name}_segment"
    driver = DRIVER.replace("NAME", name).replace("UPPER", name.upper())
    (folder / "driver.c").write_text(driver.replace("FUNCTION", function))
    program = compile(code, folder / "driver", *flags, more=(folder / "driver.c",))
    data = images.astype("<f4").tobytes()
    result = subprocess.run([program], input=data, capture_output=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, b"")
    found = np.frombuffer(result.stdout, "<f4").reshape(len(images), -1)
    return found[:, 0].astype(int), found[:, 1:]
