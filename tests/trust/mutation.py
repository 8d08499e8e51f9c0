"""Mutation check: does a test turn red when one sign, term or constant of the package is changed?

    python -m tests.trust.mutation map               # which tests run which line, and how long each takes
    python -m tests.trust.mutation run --sample 300  # tries mutants drawn at random; resumable
    python -m tests.trust.mutation run --survivors   # gives the survivors more time
    python -m tests.trust.mutation run --survivors tests/test_new.py::test_one  # and tests written for them
    python -m tests.trust.mutation report            # the share killed, and the survivors

All of them work on a copy of the last commit in ``--folder``, where the records are too. A parent imports JAX
once and forks a child for each mutant, which runs the tests of the changed line, quick ones first, until one
fails. Half of the mutants are of the core, half of ``phi/``.
"""

import argparse
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.trust.forked import Recorder, changed, compile_sources, import_once, in_child, judge
from tests.trust.mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PACKAGE = "riemann_optax"
SCOPES = {
    "core": ("", "anchor", "edits", "geometry", "inspect", "wrappers"),
    "phi": ("phi",),
}  # their folders
# Slow, and generic: what they would notice, quicker tests notice too.
UNMAPPED = [
    "tests/benchmarks",
    "tests/examples",
    "tests/contract/test_convergence.py",
    "tests/contract/test_sharding.py",
    "tests/test_notebooks.py",
    f"{PACKAGE}/examples",
]
CONTROL = "control"
# What a survivor is recognised by when lines have moved: its file, the text of its line, the new text.
SAME = ("file", "text", "after")


def files(tree: Path, scope: str) -> list[str]:
    """Return the source files of a scope, relative to the repository."""
    folders = (tree / PACKAGE / room for room in SCOPES[scope])
    return sorted(path.relative_to(tree).as_posix() for folder in folders for path in folder.glob("*.py"))


def copy_tree(folder: Path, commit: str = "HEAD") -> tuple[Path, str]:
    """Copy a commit; return where to and its name: nothing is ever changed in the repository itself."""
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    name = subprocess.run(["git", "rev-parse", commit], cwd=ROOT, capture_output=True, text=True, check=True)
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)
    return tree, name.stdout.strip()


def remember_compiled(folder: Path) -> None:
    """Let JAX keep what it has compiled: mutants' tests have most of it in common."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def make_map(folder: Path, chosen: list[str]) -> None:
    """Run the tests once under coverage; write which of them run each line."""
    import coverage
    import pytest

    tree, commit = copy_tree(folder)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    remember_compiled(folder)
    recorder = Recorder()
    data_file = str(folder / "contexts")
    measured = coverage.Coverage(data_file=data_file, branch=True, source=[PACKAGE], config_file=False)

    class Contexts:
        """A pytest plugin that tells coverage which test runs."""

        def pytest_runtest_logstart(self, nodeid: str) -> None:
            measured.switch_context(nodeid)

    ignored = [f"--ignore={path}" for path in UNMAPPED]
    with measured.collect():
        pytest.main([*chosen, "-q", "-p", "no:cacheprovider", *ignored], plugins=[recorder, Contexts()])
    measured.save()
    data = measured.get_data()
    tests = sorted(recorder.seconds)
    number = {test: index for index, test in enumerate(tests)}
    lines = {}
    for path in data.measured_files():
        contexts = data.contexts_by_lineno(path)
        lines[Path(path).relative_to(Path.cwd()).as_posix()] = {
            line: sorted(number[name] for name in names if name in number) for line, names in contexts.items()
        }
    seconds = [round(recorder.seconds[test], 3) for test in tests]
    failed = sorted(set(recorder.failed))
    found = {"commit": commit, "tests": tests, "seconds": seconds, "lines": lines, "failed": failed}
    (folder / "map.json").write_text(json.dumps(found))
    print(f"{len(tests)} tests, {sum(seconds):.0f} s, {len(failed)} failed")


def selection(recorded: dict[str, Any], mutant: Mutant, source: str, budget: float) -> list[str]:
    """Return the tests of a mutant's line, quick ones first, as many as ``budget`` seconds allow.

    A line that is run at import (a default, a constant) belongs to all tests of its function, or of its file.
    """
    lines = {int(line): found for line, found in recorded["lines"].get(mutant.file, {}).items()}
    numbers = set(lines.get(mutant.line, ()))
    if not numbers:
        first, last = enclosing(source, mutant.line)
        numbers = {test for line, found in lines.items() if first <= line <= last for test in found}
    tests, seconds = recorded["tests"], recorded["seconds"]
    numbers -= {tests.index(name) for name in recorded["failed"]}

    def cost(test: int) -> float:
        # Tests of every transformation alike look at types and structure: they come late.
        return seconds[test] + (3.0 if tests[test].startswith(("tests/contract", "tests/trust")) else 0.0)

    chosen, total = [], 0.0
    for test in sorted(numbers, key=cost):
        total += seconds[test] + 0.01
        if total > budget:
            break
        chosen.append(tests[test])
    return chosen


def enclosing(source: str, line: int) -> tuple[int, int]:
    """Return the lines of the innermost function around a line, or of the whole file."""
    import ast

    best = (1, len(source.splitlines()))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.lineno <= line <= node.end_lineno:
            best = max(best, (node.lineno, node.end_lineno))
    return best


def key(mutant: Mutant) -> str:
    """Return what a mutant goes by in the records of one commit."""
    return json.dumps([mutant.file, mutant.start, mutant.end, mutant.kind, mutant.after])


def read_records(folder: Path, commit: str, seed: int) -> list[dict[str, Any]]:
    """Return all records of one sample of a commit's mutants, in the order they were made."""
    path = folder / "mutants.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        record for record in map(json.loads, lines) if (record["commit"], record["seed"]) == (commit, seed)
    ]


def drawn(tree: Path, scope: str, seed: int) -> list[Mutant]:
    """Return all mutants of a scope in an order the seed decides: each beginning of it is a random sample."""
    found = [mutant for file in files(tree, scope) for mutant in mutants(file, (tree / file).read_text())]
    random.Random(seed).shuffle(found)
    return found


def run(folder: Path, sample: int, seed: int, budget: float, minutes: float) -> None:
    """Try mutants not yet tried, and one control without a change for every fifty."""
    deadline = time.monotonic() + 60 * minutes
    recorded, tree = prepare(folder)
    done = {record["key"] for record in read_records(folder, recorded["commit"], seed)}
    how = {"seed": seed, "budget": budget, "added": []}
    halves = [drawn(tree, scope, seed)[: (sample + 1) // 2] for scope in SCOPES]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*halves))
    for index, mutant in enumerate(mutant for mutant in turns if mutant is not None):
        if time.monotonic() > deadline:
            break
        if key(mutant) not in done:
            attempt(folder, recorded, mutant, **how)
            if index % 50 == 0:
                control = mutant._replace(kind=CONTROL, after=mutant.before)
                attempt(folder, recorded, control, **how)


def run_again(folder: Path, added: list[str], seed: int, budget: float, minutes: float) -> None:
    """Try the survivors again: with more time, or with tests written for them."""
    deadline = time.monotonic() + 60 * minutes
    recorded, tree = prepare(folder)
    how = {"seed": seed, "budget": budget, "added": added}
    for path in {test.split("::")[0] for test in added}:
        shutil.copy(ROOT / path, tree / path)
    if added and in_child(lambda: judge(added), timeout=60 + 4 * budget)["outcome"] != "survived":
        raise SystemExit(f"a test fails where nothing is changed: {' '.join(added)}")
    last = {record["key"]: record for record in read_records(folder, recorded["commit"], seed)}
    for record in last.values():
        if time.monotonic() > deadline:
            break
        if record["outcome"] == "survived" and record["kind"] != CONTROL:
            mutant = Mutant(**{field: record[field] for field in Mutant._fields})
            attempt(folder, recorded, mutant, **how)


def prepare(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the map and a fresh copy of its commit, ready to be tested in forked processes."""
    recorded = json.loads((folder / "map.json").read_text())
    tree, _ = copy_tree(folder, recorded["commit"])
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    remember_compiled(folder)
    compile_sources(tree)
    import_once()
    return recorded, tree


def attempt(folder: Path, recorded: dict[str, Any], mutant: Mutant, **how: Any) -> None:
    """Try one mutant and add its record.

    Args:
      folder: where the records and the copy of the repository are.
      recorded: the map.
      mutant: the change.
      **how: ``seed`` of the sample, ``budget`` in seconds, ``added`` tests to run instead of the mapped.
    """
    start = time.monotonic()
    path = folder / "tree" / mutant.file
    source = path.read_text()
    tests = how["added"] or selection(recorded, mutant, source, how["budget"])
    if tests:
        with changed(path, mutant.apply(source)):
            result = in_child(lambda: judge(tests), timeout=60 + 4 * how["budget"])
    else:
        result = {"outcome": "survived", "by": "no test runs this line"}
    record = mutant._asdict() | result | how | {"key": key(mutant), "commit": recorded["commit"]}
    record |= {"text": source.splitlines()[mutant.line - 1].strip(), "tests": len(tests)}
    record |= {"seconds": round(time.monotonic() - start, 2)}
    with (folder / "mutants.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    where = f"{mutant.file}:{mutant.line}"
    print(f"{record['outcome']:9}{record['seconds']:6.1f} s {where} {mutant.kind}", flush=True)


def share(killed: int, tried: int) -> dict[str, Any]:
    """Return a share killed with its standard error."""
    part = killed / tried
    error = math.sqrt(part * (1 - part) / tried)
    return {"killed": killed, "share": round(part, 4), "standard_error": round(error, 4)}


def summary(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Return the counts of each scope and every survivor with its explanation.

    ``as_drawn`` is an estimate for all mutants of the scope: what the tests killed before any was written for
    a survivor. ``now`` counts those tests too, and says something about this sample only.
    """
    commit = json.loads((folder / "map.json").read_text())["commit"]
    records = read_records(folder, commit, seed)
    before = {record["key"]: record for record in records if not record["added"]}
    after = {record["key"]: record for record in records}
    explained = json.loads((HERE / "survivors.json").read_text())
    scopes, survivors, closed = {}, [], []
    for scope in SCOPES:
        of_scope = [key(mutant) for mutant in drawn(folder / "tree", scope, seed)]
        tried = [name for name in of_scope if name in after and after[name]["outcome"] != "error"]
        left = [after[name] for name in tried if after[name]["outcome"] == "survived"]
        first = [before[name]["outcome"] for name in tried]
        scopes[scope] = {
            "mutants": len(of_scope),
            "tried": len(tried),
            "as_drawn": share(len(tried) - first.count("survived"), len(tried)),
            "now": share(len(tried) - len(left), len(tried)),
            "by_time_limit": first.count("timeout"),
            "by_death": first.count("died"),
        }
        for record in sorted(left, key=lambda record: (record["file"], record["line"])):
            said = [one for one in explained if all(one[name] == record[name] for name in SAME)]
            told = said[0] if said else {"verdict": "open", "why": ""}
            shown = (*SAME, "line", "kind", "before")
            survivors.append(told | {name: record[name] for name in shown})
        noticed = [
            name for name in tried if before[name]["outcome"] == "survived" and after[name] not in left
        ]
        closed += [{name: after[one][name] for name in (*SAME, "by")} for one in noticed]
    controls = [record["outcome"] for record in records if record["kind"] == CONTROL]
    found = {"commit": commit, "seed": seed, "scopes": scopes, "controls": len(controls)}
    found |= {"controls_killed": len(controls) - controls.count("survived")}
    found |= {"errors": sum(record["outcome"] == "error" for record in after.values())}
    return found | {"survivors": survivors, "closed": closed}


def report(folder: Path, seed: int) -> None:
    """Print the share killed and every survivor, and write them to ``tests/trust/results/``."""
    found = summary(folder, seed)
    for scope, counts in found["scopes"].items():
        print(f"{scope}: {counts['tried']} of {counts['mutants']} mutants tried")
        for when in ("as_drawn", "now"):
            part = counts[when]
            print(f"  {when}: {part['killed']} killed, {part['share']:.1%} +- {part['standard_error']:.1%}")
    print(f"{found['controls']} controls, {found['controls_killed']} killed; {found['errors']} errors")
    for one in found["survivors"]:
        print(
            f"{one['file']}:{one['line']} {one['before']!r} -> {one['after']!r}\n"
            f"  {one['verdict']}: {one['why']}"
        )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/mutation.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["map", "run", "report"])
    parser.add_argument(
        "tests", nargs="*", help="to map (default: all but the slowest), or for the survivors"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "riemann_optax_mutation")
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of tests for each mutant")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these")
    parser.add_argument("--survivors", action="store_true", help="try the survivors again")
    arguments = parser.parse_intermixed_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.command == "map":
        make_map(folder, arguments.tests)
    elif arguments.command == "report":
        report(folder, arguments.seed)
    elif arguments.survivors:
        run_again(folder, arguments.tests, arguments.seed, arguments.budget, arguments.minutes)
    else:
        run(folder, arguments.sample, arguments.seed, arguments.budget, arguments.minutes)


if __name__ == "__main__":
    main()
