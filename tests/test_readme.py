"""Every README: its blocks run, its commands are understood, its links lead somewhere.

A block of `sh` or `python` runs, in the order of its page, in one scratch folder that looks like a
checkout; what needs data of the reader, or stands for something else, is written as `text`. The
two blocks behind a line `<!-- ci: NAME -->` are run by `.ci/run`, each in a fresh environment.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest

from refimpl import cli
from tests import c_port, oracles

ROOT = Path(__file__).parent.parent
IGNORED = {"build", "node_modules"}
LIMIT = 9_500  # bytes of the first page
BLOCK = re.compile(r"^(<!-- ci: \w+ -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    code: str
    by_ci: bool


def pages(pattern: str) -> list[str]:
    """Files of the checkout, none of them in a hidden folder, by their path in it."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob(pattern))
    seen = (p for p in found if not any(q.startswith(".") or q in IGNORED for q in p.parts))
    return sorted(path.as_posix() for path in seen)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    found = BLOCK.finditer(read(page))
    return [Block(m[2], m[3], by_ci=m[1] is not None) for m in found]


READMES = pages("README.md")
RUNNING = [p for p in READMES if any(b.language in ("sh", "python") for b in blocks(p))]
NEEDS_CC = {"README.md", "refimpl/exporting/README.md", "refimpl/golden/README.md"}
NEEDS_PACKAGES = {"refimpl/exporting/README.md": ("torch", "onnx", "onnxruntime")}
SHORTER = {"--recipe weights/digits.toml": "--recipe weights/digits.toml --epochs 1"}  # not 16


def test_the_first_page_is_one_page():
    assert len(read("README.md").encode()) <= LIMIT


@pytest.mark.parametrize("name", ["demo", "test"])
def test_ci_finds_the_two_commands(name):
    marked = re.search(rf"^<!-- ci: {name} -->\n```sh\n(.+)\n```$", read("README.md"), re.MULTILINE)
    assert marked, "the marker, then a fenced block of one line"
    assert marked[1].startswith("pip install")


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A scratch folder in which paths of the checkout lead into it, and the command is found."""
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def shortened(code: str) -> str:
    """A long training has one epoch here: that its command runs is what the block promises."""
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    return code


def beside() -> set[str]:
    """What lies in the checkout; caches of tools, whose names are hidden, come and go."""
    return {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=c_port.needs_cc if p in NEEDS_CC else ()) for p in RUNNING]
)
def test_its_blocks_run_in_order(page, checkout):
    for package in NEEDS_PACKAGES.get(page, ()):
        oracles.require(package)
    before = beside()
    names: dict = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            exec(compile(block.code, page, "exec"), names)
        elif block.language == "sh" and not block.by_ci:
            code = shortened(block.code)
            command = ["bash", "-euo", "pipefail", "-c", code]
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert beside() == before  # nothing fell beside the scratch folder


def commands(page: str) -> list[str]:
    """The command lines of `refimpl` in blocks and between backticks that name all they need."""
    lines = [
        line for b in blocks(page) if b.language in ("sh", "text") for line in b.code.split("\n")
    ]
    lines += re.findall(r"`(refimpl [^`]+ [^`]+)`", BLOCK.sub("", read(page)))
    found = (line.partition(" #")[0].strip() for line in lines)
    return [line for line in found if line.startswith("refimpl ") and "--help" not in line]


@pytest.mark.parametrize("page", [page for page in READMES if commands(page)])
def test_its_command_lines_are_understood(page):
    for command in commands(page):
        try:
            cli.parser().parse_args(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(f"{page}: {command}")


# --- links ----------------------------------------------------------------------------------------


def words(page: str) -> str:
    """The Markdown of a page, or of the cells of a notebook, without code."""
    text = read(page)
    if page.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """What a link may name on a page: its headings, as GitHub writes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", words(page), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", old) is not None for old in found)
        found.append(f"{anchor}-{again}" if again else anchor)
    return set(found)


def links(page: str) -> list[str]:
    text = words(page)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:href|src)="([^"]+)"', text)
    return [unquote(link) for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", [*READMES, *pages("SPEC.md"), *pages("*.ipynb")])
def test_its_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(os.path.relpath(target, ROOT)), f"{page}: {link}"


def test_every_notebook_and_every_room_with_a_page_is_linked_on_the_first():
    linked = {link.partition("#")[0] for link in links("README.md")}
    linked |= {f"{link}/README.md" for link in linked}  # GitHub shows it below the folder
    samples = {page for page in READMES if page.startswith(("refimpl/data/", "tests/"))}
    rooms = set(READMES) - samples - {"README.md"}
    assert rooms <= linked and set(pages("*.ipynb")) <= linked
