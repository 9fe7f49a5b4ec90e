"""What git makes of the files that are checked by their sha256."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKED = ("weights/golden/react_micro/index.csv", "weights/didb_micro_mnist.json", ".ci/run")


def git(folder: Path, *arguments: object) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    command = ["git", "-C", folder, *who, *arguments]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


@pytest.mark.parametrize("attributes", [True, False])
def test_a_checkout_changes_no_line_end(tmp_path, attributes) -> None:
    """With core.autocrlf, as Git for Windows sets it; without our attributes it would."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    source, clone = tmp_path / "source", tmp_path / "clone"
    for name in (*CHECKED, ".gitattributes") if attributes else CHECKED:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    git(tmp_path, "init", "-q", source)
    git(source, "add", "-A")
    git(source, "commit", "-q", "-m", "files")
    git(tmp_path, "clone", "-q", "-c", "core.autocrlf=true", source, clone)
    for name in CHECKED:
        same = (clone / name).read_bytes() == (ROOT / name).read_bytes()
        assert same == attributes, name
