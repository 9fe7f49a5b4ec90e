"""A comparison as JUnit's XML, which build servers show: one test case a tap."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from refimpl.golden import text
from refimpl.golden.compare import JUDGED, UNJUDGED, Comparison, Verdict, failed

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_xml(comparison: Comparison, causes: Mapping[str, str]) -> bytes:
    """A tap that fails the comparison is a failure; one that was not judged is skipped.

    Where the outcome is INCOMPLETE, what was dumped and not judged is an error: else a build server
    would show a pass.
    """
    cases = [_case(verdict, comparison, causes) for verdict in comparison.verdicts]
    judged = {verdict.name for verdict in comparison.verdicts}
    cases += [_absent(name, comparison) for name in comparison.absent if name not in judged]
    if comparison.outcome == "INCOMPLETE":
        cases += [_unknown(name, comparison) for name in comparison.unknown]
    found = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    attributes = {key: str(value) for key, value in found.items()}
    suites = ElementTree.Element("testsuites", attributes)
    name = _clean(f"golden {comparison.mode} {comparison.bundle_path}")
    suite = ElementTree.SubElement(suites, "testsuite", {"name": name, **attributes})
    suite.extend(cases)
    if comparison.unknown:
        lines = ["unknown, no tap of the model:", *comparison.unknown]
        ElementTree.SubElement(suite, "system-out").text = _clean("\n".join(lines))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)


def _case(
    verdict: Verdict, comparison: Comparison, causes: Mapping[str, str]
) -> ElementTree.Element:
    case = _named(verdict.name, comparison)
    facts = [f"{label}: {value}" for label, value in text.facts(verdict, causes.get(verdict.name))]
    if verdict.name in comparison.absent:
        return _absent(verdict.name, comparison)
    if failed(verdict, comparison.strict):
        message = _clean(verdict.reason or facts[0].removeprefix("verdict: "))
        failure = {"type": verdict.verdict, "message": message}
        ElementTree.SubElement(case, "failure", failure).text = _clean("\n".join(facts))
    elif verdict.verdict not in JUDGED:
        message = _clean(f"{verdict.verdict} {verdict.reason or ''}".strip())
        is_error = comparison.outcome == "INCOMPLETE" and verdict.verdict in UNJUDGED
        ElementTree.SubElement(case, "error" if is_error else "skipped", {"message": message})
    return case


def _absent(name: str, comparison: Comparison) -> ElementTree.Element:
    case = _named(name, comparison)
    ElementTree.SubElement(case, "failure", {"type": "MISSING", "message": "required, absent"})
    return case


def _unknown(name: str, comparison: Comparison) -> ElementTree.Element:
    case = _named(name, comparison)
    ElementTree.SubElement(case, "error", {"message": "no tap of the model"})
    return case


def _named(name: str, comparison: Comparison) -> ElementTree.Element:
    classname = f"golden.{comparison.mode}"
    return ElementTree.Element("testcase", {"classname": classname, "name": _clean(name)})


def _clean(words: str) -> str:
    return NOT_XML.sub("?", words)
