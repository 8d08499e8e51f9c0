"""Results as JSON: a stopped benchmark goes on where it was, and every number can be traced."""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

PACKAGES = ("riemann-optax", "jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn")
DIGITS = 5  # significant digits kept of a measured number; far more than the spread between seeds allows


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Return the command and the versions that a run is made with."""
    return {
        "command": " ".join(command),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "machine": f"{platform.machine()} {platform.system()}{_card()}",
    }


def _card() -> str:
    """Return the accelerator's name, empty where there is none."""
    device = jax.devices()[0]
    return "" if device.platform == "cpu" else f", {device.device_kind}"


def rounded(value: Any, digits: int | None = DIGITS) -> Any:
    """Return arrays as lists and floats to some digits, or all; what is not finite becomes None.

    Examples:
      >>> rounded({"loss": np.array([0.123456789, np.inf]), "steps": 3})
      {'loss': [0.12346, None], 'steps': 3}
    """
    if isinstance(value, Mapping):
        return {name: rounded(entry, digits) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        return rounded(value.tolist(), digits)
    if isinstance(value, (list, tuple)):
        return [rounded(entry, digits) for entry in value]
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            return None
        return float(value if digits is None else f"{value:.{digits}g}")
    return value


def write_record(path: Path, command: Sequence[str], content: Mapping[str, Any]) -> None:
    """Write all that one run has found, and what it was made with, as one JSON document."""
    text = json.dumps(environment(command) | rounded(content, digits=None), indent=1, allow_nan=False)
    path.write_text(text + "\n")


class Records:
    """A file of results, one line each, written as soon as a result is there.

    A line is ``{"key": {...}, "result": {...}, "environment": id}``; before the first line of an environment
    stands ``{"environment": id, "made_with": {...}}``. A last line cut short by a kill does not count, and
    the next result takes its place.

    Attributes:
      made_with: by id, the command and the versions that results in the file were made with.
    """

    def __init__(self, path: Path, command: Sequence[str] = (), digits: int | None = DIGITS) -> None:
        """Read what the file holds; ``command`` is noted beside new results, which keep so many digits.

        Raises:
          ValueError: for a line that is no result, unless it is the last and not finished.
        """
        self._path, self._results, self._digits = path, {}, digits
        self.made_with: dict[str, dict[str, Any]] = {}
        self._here = environment(command)
        self._environment = hashlib.sha256(json.dumps(self._here).encode()).hexdigest()[:8]
        *lines, self._rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for number, line in enumerate(lines, start=1):
            try:
                self._take(line)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no result: mend it, or take the line out of the file."
                ) from error
        if _is_entry(self._rest):  # all of it but the end of its line
            self._take(self._rest)

    def _take(self, line: bytes) -> None:
        """Take in a line of the file; an empty one holds nothing."""
        entry = json.loads(line) if line.strip() else None
        if entry is not None and "made_with" in entry:
            self.made_with[entry["environment"]] = entry["made_with"]
        elif entry is not None:
            self._results[_identity(entry["key"])] = entry | {"result": entry["result"]}

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return _identity(key) in self._results

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over all entries, in the order in which they were made."""
        return iter(self._results.values())

    def __len__(self) -> int:
        return len(self._results)

    def __getitem__(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result of ``key``, which has to be there."""
        return self._results[_identity(key)]["result"]

    def put(self, key: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keep a result under a key that is not there yet."""
        entry = {"key": dict(key), "result": rounded(result, self._digits), "environment": self._environment}
        lines = [entry]
        if self._environment not in self.made_with:
            lines.insert(0, {"environment": self._environment, "made_with": self._here})
            self.made_with[self._environment] = self._here
        self._finish_last_line()
        with self._path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        # What a fresh run returns is what a resumed one reads, to the last digit.
        self._results[_identity(key)] = json.loads(json.dumps(entry))

    def _finish_last_line(self) -> None:
        """End a whole last line, and take back one that was cut short, unless somebody went on with it."""
        rest, self._rest = self._rest, b""
        if not rest or not self._path.exists() or self._path.stat().st_size < len(rest):
            return
        with self._path.open("r+b") as file:
            file.seek(-len(rest), os.SEEK_END)
            if file.read() != rest:
                return
            if _is_entry(rest):
                file.write(b"\n")
            else:
                file.seek(-len(rest), os.SEEK_END)
                file.truncate()

    def get(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the result of ``key``: from the file, or made now and kept."""
        if key not in self:
            self.put(key, make())
        return self[key]


def _is_entry(line: bytes) -> bool:
    """Return whether a line is whole but for its end."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and ("made_with" in entry or {"key", "result"} <= entry.keys())


def _identity(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
