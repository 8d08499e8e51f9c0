"""What has been tried on this package at length, as ``tests/TRUST.md``.

    python -m tests.trust                       # write the page from the records in tests/trust/results/
    python -m tests.trust inputs --trees 2000   # random trees and bad gradients at length; an hour
    python -m tests.trust refusals              # wrong arguments, misuse, damaged checkpoints
    python -m tests.trust coverage              # the suite with its coverage counted

The other records have commands of their own, named on the page: ``tests.trust.long_runs``,
``tests.trust.reproducible`` and ``tests.trust.mutation``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.trust.page import HERE, PAGE, write_page

ROOT = HERE.parents[1]


def versions() -> dict[str, str]:
    """Return the releases a record was made with."""
    import jax
    import optax

    return {"jax": jax.__version__, "optax": optax.__version__}


def run_tests(*arguments: str, **environment: str) -> Path:
    """Run pytest in a process of its own; return its report."""
    report = Path(tempfile.mkdtemp()) / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-n",
        "auto",
        "--dist",
        "worksteal",
        f"--junitxml={report}",
    ]
    command += ["-o", "junit_family=xunit1", *arguments]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False)
    return report


def cases(report: Path) -> dict[str, dict[str, Any]]:
    """Return of each test in a report whether it passed, and what it has tried."""
    found: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        passed = case.find("failure") is None and case.find("error") is None
        tried = {one.attrib["name"]: int(one.attrib["value"]) for one in case.iter("property")}
        found[f"{case.attrib['classname']}::{case.attrib['name']}"] = {"passed": passed} | tried
    return found


def inputs(trees: int, expression: str) -> dict[str, Any]:
    """Run the tests of inputs and of bad gradients at length, or some of them anew."""
    files = [str(HERE.parent / "contract" / name) for name in ("test_inputs.py", "test_bad_gradients.py")]
    found = cases(run_tests(*files, "-k", expression, RIEMANN_OPTAX_TREES=str(trees)))
    path = HERE / "results/inputs.json"
    if expression and path.exists():
        found = json.loads(path.read_text())["cases"] | found
    return {"trees": trees, "cases": found, "versions": versions()}


def told(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return how many tests there are, and which did not pass."""
    return {"tests": len(found), "not_passed": [name for name, case in found.items() if not case["passed"]]}


def refusals() -> dict[str, Any]:
    """Run the tests of what has to be refused."""
    files = ("contract/test_bad_arguments.py", "test_misuse.py", "checkpoint/test_damage.py")
    found = cases(run_tests(*(str(HERE.parent / name) for name in files)))
    return told(found) | {"versions": versions()}


def coverage() -> dict[str, Any]:
    """Run the suite and count which lines and branches of each part it runs."""
    report = Path(tempfile.mkdtemp()) / "coverage.json"
    # Without those of the page, of which this makes a part.
    skipped = f"--ignore={HERE / 'test_page.py'}"
    found = cases(run_tests("--cov", f"--cov-report=json:{report}", skipped))
    files = json.loads(report.read_text())["files"]
    parts: dict[str, Counter[str]] = {}
    for name, file in files.items():
        inside = Path(name).parts[1:]
        part = inside[0] if len(inside) > 1 else "core"
        parts.setdefault(part, Counter()).update(file["summary"])
    keys = ("num_statements", "covered_lines", "num_branches", "covered_branches")
    shares = {part: {key: summed[key] for key in keys} for part, summed in sorted(parts.items())}
    return told(found) | {"parts": shares, "versions": versions()}


def main() -> None:
    """Make a record, or write the page from all of them."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.trust",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    makers = {"inputs": lambda: inputs(options.trees, options.k), "refusals": refusals, "coverage": coverage}
    parser.add_argument("command", nargs="?", choices=["page", *makers], default="page")
    parser.add_argument("--trees", type=int, default=2000, help="for each transformation")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="only these of the inputs, as in pytest")
    options = parser.parse_args()
    if options.command != "page":
        record = makers[options.command]()
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / f"results/{options.command}.json").write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(write_page())


if __name__ == "__main__":
    main()
