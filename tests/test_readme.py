"""The README's examples run, and its commands and files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from refimpl import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_python_examples_run_in_order(capsys):
    names: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "blocks.0.attn.q_low.weight" in printed
    assert "(3, 50, 64)" in printed


@pytest.mark.parametrize("name", ["demo", "test"])
def test_ci_finds_the_two_commands(name):
    marked = re.search(rf"^<!-- ci: {name} -->\n```sh\n(.+)\n```$", README, re.MULTILINE)
    assert marked, "the marker, then a fenced block of one line"
    assert marked[1].startswith("pip install")


def test_the_files_that_it_links_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).is_file(), target


COMMANDS = [
    line.partition("#")[0].strip()
    for block in blocks("sh")
    for line in block.splitlines()
    if line.startswith("refimpl ") and "--help" not in line
]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_command_lines_are_understood(command):
    arguments = cli.parser().parse_args(shlex.split(command)[1:])
    for path in getattr(arguments, "images", []):
        assert (ROOT / path).is_file()
