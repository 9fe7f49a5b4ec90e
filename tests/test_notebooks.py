"""What every notebook has, and that their judge tells right answers from wrong ones.

`.ci/run` executes the notebooks; what they say of the network is asserted in them. Here is what a
run cannot see: how they begin and end, and that no answer stands where it would be read.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from refimpl import ops

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PLOTTING = re.compile(r"(axis|axes|figure|plt)\b")  # how a statement begins that draws


@pytest.fixture(scope="module")
def exercises():
    """The module that the notebooks import; it needs nothing that the package does not."""
    sys.path.insert(0, str(FOLDER))
    import exercises

    yield exercises
    sys.path.remove(str(FOLDER))


def cells(notebook: Path, kind: str) -> list[str]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_it_begins_with_what_a_reader_wants_to_know(self, notebook):
        first = cells(notebook, "markdown")[0]
        for heading in ("The question.", "You need", "Time", "On the way"):
            assert f"**{heading}**" in first
        assert re.search(r"about \d+ minutes; the cells run in \d+ seconds on one core", first)
        assert "../refimpl/SPEC.md#" in first

    def test_it_ends_with_the_way_to_the_next_one(self, notebook):
        last = cells(notebook, "markdown")[-1]
        place = NOTEBOOKS.index(notebook) + 1
        assert "(README.md)" in last
        assert place == len(NOTEBOOKS) or f"]({NOTEBOOKS[place].name})" in last

    def test_it_has_three_exercises_with_folded_hints(self, notebook):
        """One of them is a function to write, judged in a network or by its taps."""
        written, hidden = [], []
        for text in cells(notebook, "markdown"):
            found = re.findall(r"^\*\*(\d)\.( Write it\.)?\*\*", text, re.MULTILINE)
            written += found
            hidden += ["<details><summary>Hint</summary>" in text] * len(found)
        assert [number for number, _ in written] == ["1", "2", "3"] and all(hidden)
        assert sum(bool(writes) for _, writes in written) == 1
        code = cells(notebook, "code")
        assert any("return judge" in text or "said = judge(" in text for text in code)

    def test_answers_are_empty_and_solutions_folded(self, notebook):
        found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in found if cell["cell_type"] == "code"]
        solutions = code[-1]
        assert solutions["metadata"]["jupyter"]["source_hidden"]
        text = "".join(solutions["source"])
        for number in "123":
            assert len(re.findall(rf"check_{number}\(", text)) >= 2  # a right one and a near miss
        for cell in code[:-1]:
            source = "".join(cell["source"])
            assert not re.match(r"answer_\d = (?!None)", source)
            if source.startswith("def answer_"):
                assert re.search(r"    return None(, None)*\Z", source)

    def test_long_plots_are_elsewhere(self, notebook):
        for text in cells(notebook, "code"):
            lines = [s for s in ast.walk(ast.parse(text)) if isinstance(s, ast.Expr | ast.Assign)]
            drawn = [s for s in lines if PLOTTING.match(ast.unparse(s))]
            assert len({s.lineno for s in drawn}) <= 10, text

    def test_sentences_are_worded_elsewhere(self, notebook):
        """What is left on the page is what a sentence says, and the assert that it is so."""
        for text in cells(notebook, "code"):
            for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
                if ast.unparse(call.func) == "Markdown":
                    assert not any(isinstance(n, ast.JoinedStr) for n in ast.walk(call)), text


def test_the_first_page_of_the_notebooks_asks_their_questions() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for notebook in NOTEBOOKS:
        assert f"[`{notebook.name}`]({notebook.name})" in page


# --- the judge ------------------------------------------------------------------------------------


def test_a_right_operation_passes(exercises) -> None:
    for name in ("sign", "layer_norm", "bands", "boolean_attention"):
        op = getattr(ops, name)
        said = exercises.judge(name, backward=lambda dy, cache, op=op: op.backward(dy, cache))
        assert said.startswith("Right. PASS: ") and "none fails" in said


def test_a_wrong_one_is_named(exercises) -> None:
    def turned(dy, cache):
        return -ops.sign.backward(dy, cache)[0]

    said = exercises.judge("sign", backward=turned)
    assert said.startswith("Not yet. FAIL")
    assert "FIRST DIVERGENCE: grads/blocks.1.attn." in said and "head_z" in said


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda x, grid, border: None, "Not answered"),
        (lambda x, grid, border: x[0], "Not yet. It gives an array of shape (13, 21); expected"),
        (lambda x, grid, border: (x, x), "Not yet. It gives 2 arrays; expected an array of shape"),
        (lambda x, grid, border: 0 * x, "Not yet. FAIL"),
    ],
)
def test_what_cannot_be_compared_is_told(exercises, answer, expected) -> None:
    assert exercises.judge("neighbours", forward=answer).startswith(expected)


def test_numbers_and_words(exercises) -> None:
    assert exercises.verdict(None, bool).startswith("Not answered")
    assert exercises.verdict((1, 2), lambda a: np.array_equal(a, [1, 2])) == "Right."
    assert exercises.verdict((1, 3), lambda a: np.array_equal(a, [1, 2])) == "Not yet."
    assert "no number" in exercises.verdict("x", bool)
    for some in ((1, 2, 3), [[1, 2], [3, 4], [5, 6]]):  # neither is to be compared with a pair
        said = exercises.verdict(some, lambda a: np.allclose(a.T, [1, 2]))
        assert said == f"Not yet: expected something else than an array of shape {np.shape(some)}."
    assert exercises.verdict((1, 2), lambda a: a == 1).startswith("Not yet: expected something")
    assert exercises.verdict_of_words("x", lambda a: a == "x") == "Right."
    assert exercises.verdict_of_words("y", lambda a: a == "x") == "Not yet."
    assert exercises.verdict_of_words(None, bool).startswith("Not answered")
    assert exercises.verdict_of_words(3, lambda a: a.startswith("x")) == "Not yet: 3 is no text."
