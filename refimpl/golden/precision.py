"""In which precision a port computes and stores [SPEC 8.2]: unit roundoffs, coarse grids, bfloat16.

A port that stores float16 but adds up in float32 has two: the type of its files, and what it
declares with `--unit-roundoff float32`. Undeclared, it computes in the type of its files.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
from collections.abc import Iterable, Mapping

import numpy as np

from refimpl.conventions import ConfigError, GoldenFileError, did_you_mean
from refimpl.disk import read_text, unique_names
from refimpl.golden import bounds

UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, **bounds.UNITS}
LARGEST_UNIT = 0.5  # beyond it nothing is left of a number
SMALLEST = {"float16": 2.0**-24}  # its subnormals end where ordinary gradients lie
EVIDENCE = 8  # numbers that differ, for a grid to be seen in them
ROUNDED = 0.5  # of their norm: numbers that are further off are no rounded ones, such as zeros

Declared = float | str | Mapping[str, float | str]


class Units:
    """The unit roundoff of every tap of one candidate.

    declared: a number, the name of a type, or either of them by pattern of taps, of which the first
    that matches counts; None: that of the files. stored: type of the file of every real tap.
    ConfigError for what is no unit roundoff.
    """

    def __init__(self, declared: Declared | None, stored: Mapping[str, str]):
        if declared is not None and not isinstance(declared, Mapping):
            declared = {"*": declared}
        self.declared = {pattern: unit(given) for pattern, given in (declared or {}).items()}
        self.types = stored
        self.coarsest_file = max((UNITS[t] for t in stored.values()), default=UNITS["float32"])

    def of(self, name: str) -> float:
        """Of the arithmetic that gives a tap; where no file says it, that of the coarsest file."""
        for pattern, declared in self.declared.items():
            if fnmatch.fnmatchcase(name, pattern):
                return declared
        return self.in_file(name) if name in self.types else self.coarsest_file

    def in_file(self, name: str) -> float:
        """Of the numbers that were dumped of a real tap."""
        return UNITS[self.types[name]]

    def storing(self, name: str, value: np.ndarray) -> np.ndarray:
        """What a dumped tap loses in its file, beside what its arithmetic loses already."""
        if name not in self.types:
            return np.zeros(value.shape)
        lost = self.in_file(name) if self.in_file(name) > self.of(name) else 0.0
        return lost * np.abs(value) + SMALLEST.get(self.types[name], 0.0)


def unit(given: float | str) -> float:
    """A number, a number in text or the name of a type -> unit roundoff; ConfigError else."""
    if isinstance(given, str) and given in UNITS:
        return UNITS[given]
    try:
        number = float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(given, bool) or not 0 < number <= LARGEST_UNIT:
        raise ConfigError(
            f"unit roundoff {given!r:.80}: expected a number above 0 and up to {LARGEST_UNIT}, or "
            f"one of {', '.join(UNITS)}"
        )
    return number


def read(given: str) -> Declared:
    """What an option says: a number, a type, or a JSON file of them by pattern of taps.

    GoldenFileError for a file that is none, ConfigError for what is no unit roundoff.
    """
    if not given.endswith(".json"):
        return unit(given)
    where = os.fspath(given)
    try:
        found = json.loads(read_text(given), object_pairs_hook=unique_names)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GoldenFileError(f"{where}: not a readable JSON file: {reason}") from None
    if not isinstance(found, dict) or not found:
        raise GoldenFileError(
            f'{where}: expected a JSON object: {{"pattern of taps": "float16", "*": 6e-8}}'
        )
    return {pattern: _declared(f"{where}: {pattern!r}", value) for pattern, value in found.items()}


def _declared(where: str, value: float | str) -> float:
    try:
        return unit(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def require_fitting(
    declared: Declared | None, names: Iterable[str], where: str = "unit roundoff"
) -> None:
    """Raise ConfigError for a pattern that fits none of the taps: it would mean nothing, unseen.

    where: what the error begins with, such as the name of the file.
    """
    names = list(names)
    for pattern in declared if isinstance(declared, Mapping) else ():
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern, names)
            raise ConfigError(f"{where}: {pattern!r} fits no tap, expected one that does{hint}")


# --- grids: the numbers that a type has -----------------------------------------------------------


def as_stored(value: np.ndarray, dtype: str) -> np.ndarray:
    """Round to the numbers that a type of UNITS has, half to even; bfloat16 as float32."""
    with np.errstate(over="ignore"):
        if dtype != "bfloat16":
            return value.astype(dtype)
        single = np.ascontiguousarray(value, dtype=np.float32)
    bits = single.view(np.uint32).astype(np.uint64)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded & 0xFFFF0000).astype(np.uint32).view(np.float32).reshape(value.shape)


def coarser_grid(array: np.ndarray, dtype: str, golden: np.ndarray) -> str | None:
    """The coarsest type whose numbers are all of an array's, where the right values would not be.

    array: finite, as read; dtype: of its file; golden: what it should be, in float64.
    """
    if np.linalg.norm(array - golden) > ROUNDED * np.linalg.norm(golden):
        return None
    for name in sorted(UNITS, key=UNITS.get, reverse=True):
        if UNITS[name] <= UNITS[dtype]:
            return None
        lies = as_stored(array, name) == array
        should = as_stored(as_stored(golden, dtype), name) == as_stored(golden, dtype)
        if lies.all() and (~should).sum() >= EVIDENCE:
            return name
    return None
