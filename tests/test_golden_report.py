"""A comparison as text, JSON, JUnit's XML and a page: what porters and build servers read."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from refimpl.golden import compare, diagnose, junit, read, text
from refimpl.golden.compare import Comparison, Divergence, Verdict
from refimpl.golden.places import Places
from refimpl.report import comparison as report
from tests import golden_bundles

WRONG = "blocks.0.mlp.up.linear"
EVIL = "<script>alert('&\"')</script>"


def judged(changes: dict[str, np.ndarray | None], **options) -> tuple[Comparison, dict, int]:
    """The comparison of the bundle's own arrays with some changed, or left out where None."""
    arrays = {**golden_bundles.arrays(), **changes}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    found = compare(golden_bundles.bundle(), arrays, **options)
    causes = diagnose.causes(found, golden_bundles.bundle(), arrays)
    return found, causes, len(golden_bundles.bundle().entries)


def value(name: str) -> np.ndarray:
    return golden_bundles.arrays()[name]


@pytest.fixture(scope="module")
def passing() -> tuple[Comparison, dict, int]:
    return judged({})


@pytest.fixture(scope="module")
def failing() -> tuple[Comparison, dict, int]:
    return judged({WRONG: 2 * value(WRONG), "logits": None, EVIL: np.zeros(3)})


def verdict(name: str, word: str, **fields) -> Verdict:
    return Verdict(name, fields.pop("kind", "real"), word, **fields)


def made(*verdicts: Verdict, strict: bool = False, unknown: tuple = ()) -> Comparison:
    return Comparison("bundle", "candidate", "free", strict, list(verdicts), list(unknown))


# --- text -----------------------------------------------------------------------------------------


def test_one_line_a_tap_in_order_also_when_it_passes(passing) -> None:
    lines = text.report(*passing).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("tap "))
    names = list(golden_bundles.bundle().entries)
    table = [line.split() for line in lines[start + 1 : start + 1 + len(names)]]
    assert [cells[0] for cells in table] == names
    assert {(cells[2], cells[3]) for cells in table} == {("EXACT", "0")}
    assert "NO DIVERGENCE" in lines
    assert lines[-2:] == ["PASS: 529 of 529 taps judged, 0 failed", "     529 EXACT"]


def test_columns_are_aligned(failing) -> None:
    lines = text.report(*failing).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("tap "))
    column = lines[start].index("verdict")
    for line in lines[start + 1 : lines.index("", start)]:
        assert line[column:].split()[0] in text.VERDICTS
        assert line[column - 1] == " "


def test_the_first_divergence_says_all_that_is_known(failing) -> None:
    out = text.report(*failing)
    found = failing[0].first.divergence
    index, golden = found.index, float(value(WRONG)[found.index])
    start = out.index(f"\nFIRST DIVERGENCE: {WRONG}\n")
    facts = dict(
        re.match(r"  (\S+(?: \S+)?) +(.*)", line).groups()
        for line in out[start:].split("\n\n")[0].splitlines()[2:]
    )
    assert facts["index"] == f"{list(index)}: image 0, the class token, channel {index[2]}"
    assert float(facts["golden"]) == golden
    assert float(facts["candidate"]) == 2 * golden
    assert float(facts["tolerance"]) == found.tolerance
    assert facts["verdict"].startswith("FAIL: ")
    assert facts["likely cause"] == "scale missing: every value is 2 times too large"
    assert facts["where"] == "tokens: all 13; channels: all 63"
    assert "missing from the candidate, not judged (1):\n  logits: all 1\n" in out
    assert f"unknown, no tap of the model (1):\n  {EVIL}\n" in out
    assert re.search(r"FAIL: \d+ of 529 taps judged, 1 failed\n", out)
    assert "TAINTED       not judged: computed from a tap that differs; --mode replay" in out


def test_a_bit_shows_its_z_and_margin() -> None:
    name = "blocks.1.mlp.up.bit"
    bit = value(name).copy()
    bit[0, 3, 0] ^= 0b100
    found, causes, total = judged({name: bit})
    out = text.report(found, causes, total)
    z = float(value("blocks.1.mlp.up.z")[0, 3, 2])
    assert f"FIRST DIVERGENCE: {name}" in out
    place = r"image 0, grid row 0, column 2, channel 2"
    assert re.search(rf"  index +\[0, 3, 2\]: {place}\n", out)
    assert re.search(rf"  golden +{int(z >= 0)}\n  candidate +{int(z < 0)}\n", out)
    assert re.search(rf"  z +{z!r}\n  margin +{abs(z)!r}\n  tolerance ", out)
    assert re.search("  verdict +FAIL: 1 of 273 differ, 0 ties, 0 near, 1 hard\n", out)
    words = r"tokens: grid row 0, column 2 \(of 3 x 4\); channels: 2 \(of 21\)"
    assert re.search(rf"  where +{words}\n", out)
    assert f"likely cause  {text.UNEXPLAINED}" in out


def test_wrong_arrays_say_what_is_wrong_with_them() -> None:
    found, causes, total = judged({WRONG: value(WRONG)[:, :-1]}, fail_fast=True)
    out = text.report(found, causes, total)
    line = next(line for line in out.splitlines() if line.startswith(WRONG))
    assert line.endswith("shape (1, 12, 63); expected (1, 13, 63)")
    assert re.search(r"  reason +shape \(1, 12, 63\)", out)
    assert re.search(r"\d+ not looked at, after the first tap that failed", out)


@pytest.mark.parametrize("strict", [False, True])
def test_flips_pass_unless_strict(strict) -> None:
    at = Divergence((0, 1), True, False, 0.0, 0.0, 1e-7)
    tie = verdict(
        "a.bit", "TIES-ONLY", kind="bit", count=4, differing=1, ties=1, divergence=at,
        expected=np.ones((2, 2), bool), candidate=np.array([[True, False], [True, True]]),
    )  # fmt: skip
    found = made(
        tie, verdict("b", "NEAR", count=3, differing=1, near=1, worst_ulp=0.7), strict=strict
    )
    out = text.report(found, {"a.bit": "sign of zero"}, 2)
    assert "FIRST DIVERGENCE: a.bit\n" in out
    assert "likely cause  sign of zero\n" in out
    word = "FAIL: 2 of 2 taps judged, 1 failed, strict" if strict else "PASS: 2 of 2 taps judged"
    assert f"\n{word}" in out
    assert (ElementTree.fromstring(junit.to_xml(found, {})).get("failures") == "1") == strict
    assert (f"✗ {'FAIL' if strict else 'PASS'}" in report.page(found, {}, 2).decode()) == strict


def test_causes_of_others_are_listed() -> None:
    first, second = "blocks.0.attn.scores", "blocks.1.norm2.out"
    found, causes, total = judged({first: -value(first), second: 3 * value(second)}, mode="replay")
    out = text.report(found, causes, total)
    assert f"FIRST DIVERGENCE: {first}" in out
    others = out[out.index("likely causes of others:\n") :]
    assert f"\n  {second}: scale missing: every value is 3 times" in others
    # the taps behind them have the values of the bundle, which do not follow from wrong inputs
    assert diagnose.RIGHT in others


# --- JSON -----------------------------------------------------------------------------------------


def test_json_is_the_same_for_programs(failing) -> None:
    found = json.loads(json.dumps(text.to_json(*failing), allow_nan=False))
    assert (found["passed"], found["first_divergence"]) == (False, WRONG)
    assert found["missing"] == ["logits"]
    assert found["unknown"] == [EVIL]
    assert sum(found["counts"].values()) == found["taps"] == 529
    wrong = next(v for v in found["verdicts"] if v["name"] == WRONG)
    assert wrong["failed"] and wrong["class"] == "real" and wrong["verdict"] == "FAIL"
    assert wrong["cause"].startswith("scale missing")
    assert wrong["divergence"]["candidate"] == 2 * wrong["divergence"]["golden"]
    assert len(wrong["divergence"]["index"]) == 3


def test_json_has_no_infinity() -> None:
    at = Divergence((0,), 1.0, math.inf, None, None, 1e-7)
    found = made(verdict("a", "FAIL", hard=1, differing=1, worst_ulp=math.inf, divergence=at))
    shown = json.loads(json.dumps(text.to_json(found, {}, 1), allow_nan=False))["verdicts"][0]
    assert shown["worst_ulp"] is None
    assert shown["divergence"]["candidate"] is None


# --- JUnit ----------------------------------------------------------------------------------------


def test_junit_has_a_case_for_every_tap(failing) -> None:
    root = ElementTree.fromstring(junit.to_xml(*failing[:2]))
    (suite,) = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == list(golden_bundles.bundle().entries)
    (failure,) = (case for case in cases if case.find("failure") is not None)
    assert failure.get("name") == WRONG
    assert "index: [" in failure.find("failure").text
    assert "likely cause: scale missing" in failure.find("failure").text
    assert failure.find("failure").get("message").startswith("FAIL: ")
    skipped = [case for case in cases if case.find("skipped") is not None]
    for element in (root, suite):
        assert int(element.get("tests")) == len(cases)
        assert int(element.get("failures")) == 1
        assert int(element.get("skipped")) == len(skipped) > 100
    assert {case.find("skipped").get("message") for case in skipped} == {"TAINTED", "MISSING"}
    assert EVIL in suite.find("system-out").text


def test_junit_has_a_failure_for_what_is_required_and_nowhere() -> None:
    """Neither dumped nor stored: there is no verdict, and the outcome is FAIL."""
    bundle = read(golden_bundles.BUNDLE.with_name("didb_micro_mnist"))
    name = "blocks.0.attn.q_low.int"
    found = compare(bundle, {"logits": bundle.output}, require=name)
    assert found.outcome == "FAIL" and name not in bundle.entries
    root = ElementTree.fromstring(junit.to_xml(found, {}))
    (case,) = (case for case in root.iter("testcase") if case.find("failure") is not None)
    assert case.get("name") == name and root.get("failures") == "1"


def test_junit_survives_names_that_xml_cannot_hold() -> None:
    found = made(verdict("a\x00\x1b\ud800", "FAIL", reason="\x08 <&>"), unknown=("\ufffe",))
    root = ElementTree.fromstring(junit.to_xml(found, {}))
    assert root.find(".//testcase").get("name") == "a???"
    assert root.find(".//failure").get("message") == "? <&>"


# --- the page -------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Tags with attributes, and the words between them; insists that tags are closed in order."""

    VOID = ("meta", "link", "br", "img", "image", "rect")

    def __init__(self, page: bytes):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(page.decode())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_the_page_shows_what_the_text_says(failing) -> None:
    page = Reader(report.page(*failing))
    for line in text.first_divergence(*failing[:2])[1:]:
        assert line.split(maxsplit=1)[1].strip().removeprefix("cause").strip() in page.words
    order = [
        page.words.index(words) for words in ("FIRST DIVERGENCE", "taps judged", "Taps in order")
    ]
    assert order == sorted(order)
    rows = re.findall('id="t\\d+"', report.page(*failing).decode())
    assert len(rows) == 528  # one is missing
    assert "✗ FAIL" in page.words
    assert "✓ EXACT" in page.words
    assert "○ TAINTED" in page.words


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(failing) -> None:
    page = Reader(report.page(*failing))
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action"):
            assert re.match("#|data:", attributes.get(name, "#"))
    text_of_page = report.page(*failing).decode()
    assert not re.search(r"https?://|url\((?!#)|@import", text_of_page)
    assert EVIL not in text_of_page
    assert EVIL in page.words
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_links_lead_somewhere(failing) -> None:
    page = Reader(report.page(*failing))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        if tag == "a":
            assert attributes["href"].removeprefix("#") in ids


def pictures(found: Comparison) -> list[np.ndarray]:
    """The masks of the page's pictures, decoded."""
    masks = []
    for tag, attributes in Reader(report.page(found, {}, 1)).tags:
        if tag == "image":
            data = base64.b64decode(attributes["href"].removeprefix("data:image/png;base64,"))
            masks.append(np.asarray(Image.open(io.BytesIO(data)).convert("1")))
    return masks


NAMES = ("images", "heads", "queries", "keys")


def differing(mask: np.ndarray) -> Comparison:
    """A comparison of one tap that differs where the mask says."""
    at = Divergence((0,) * mask.ndim, False, True, -1.0, 1.0, 0.0)
    return made(verdict(
        "a.prob.bit", "FAIL", kind="bit", places=Places(NAMES[-mask.ndim :]),
        count=mask.size, differing=int(mask.sum()),
        hard=int(mask.sum()), divergence=at, flips=mask, expected=~mask, candidate=mask | ~mask,
    ))  # fmt: skip


@pytest.mark.parametrize("shape", [(7,), (5, 9), (1, 6, 8), (2, 3, 4, 5)])
def test_the_picture_shows_the_flips_in_place(shape) -> None:
    mask = np.random.default_rng(1).random(shape) < 0.3
    planes = [np.atleast_2d(mask[index]) for index in np.ndindex(shape[:-2])]
    for shown, plane in zip(pictures(differing(mask)), [p for p in planes if p.any()], strict=True):
        np.testing.assert_array_equal(shown, plane)


def test_slices_without_flips_are_left_out_and_many_are_not_all_drawn() -> None:
    mask = np.zeros((3, 2, 4, 5), bool)
    mask[1, 0, 2, 3] = True
    page = report.page(differing(mask), {}, 1).decode()
    assert len(pictures(differing(mask))) == 1
    assert "image: 1, head: 0" in page
    assert "5 of 6 slices do not differ and are left out" in page
    many = differing(np.ones((50, 1, 4, 5), bool))
    assert len(pictures(many)) == report.PLANES
    assert f"{50 - report.PLANES} more differ" in report.page(many, {}, 1).decode()


def test_a_huge_plane_is_drawn_in_blocks_that_lose_no_flip() -> None:
    mask = np.zeros((3, 2500), bool)
    mask[1, 2499] = True
    (shown,) = pictures(differing(mask))
    assert shown.shape == (3, 834)
    assert np.argwhere(shown).tolist() == [[1, 833]]


def test_no_picture_where_shapes_differ() -> None:
    found, causes, total = judged({WRONG: value(WRONG)[:, :-1]})
    page = report.page(found, causes, total).decode()
    assert "<svg" not in page
    assert "expected (1, 13, 63)" in page


def test_a_page_without_divergence(passing) -> None:
    page = Reader(report.page(*passing))
    assert "✓ No divergence" in page.words
    assert "✓ PASS" in page.words
    assert report.page(*passing) == report.page(*passing)


def test_names_that_are_no_text_do_not_stop_the_page() -> None:
    found = Comparison("b\udcff", "c\udcfe", "free", False, [verdict("a", "EXACT")], [])
    assert b"\\udcff" in report.page(found, {}, 1)
