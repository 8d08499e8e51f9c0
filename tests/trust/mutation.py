"""Mutation check: does a test turn red when one sign, term or constant of the package is changed?

    python -m tests.trust.mutation map              # which tests run which line, and how long each takes
    python -m tests.trust.mutation run --sample 300 # tries mutants drawn at random; resumable
    python -m tests.trust.mutation report           # the share killed, and the survivors

All three work on a copy of the repository in ``--folder``, where the records are too. A parent imports JAX
once and forks a child for each mutant, which runs the tests of the changed line, quick ones first, until one
fails.
"""

import argparse
import contextlib
import json
import math
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.trust.mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]
PACKAGE = "riemann_optax"
# What a parameter update is made of; the rest (geometry, fields, eigenbasis) is drawn from with --scope all.
LEFT_OUT = ("__init__.py", "examples/", "testing/")
NOT_CORE = ("eigenbasis/", "fields/", "flow.py", "geometry.py", "retraction.py", "spectrum.py")
# Slow, and generic: what they would notice, quicker tests notice too.
UNMAPPED = [
    "tests/benchmarks",
    "tests/examples",
    "tests/contract/test_convergence.py",
    "tests/test_notebooks.py",
]
UNMAPPED += ["tests/contract/test_sharding.py", "tests/trust/test_mutants.py", f"{PACKAGE}/examples"]
CONTROL = "control"


def files(scope: str) -> list[str]:
    """Return the source files of a scope, relative to the repository."""
    left_out = LEFT_OUT if scope == "all" else LEFT_OUT + NOT_CORE
    paths = sorted(path.relative_to(ROOT / PACKAGE).as_posix() for path in (ROOT / PACKAGE).rglob("*.py"))
    return [f"{PACKAGE}/{path}" for path in paths if not path.startswith(left_out) and "__init__" not in path]


def copy_tree(folder: Path) -> Path:
    """Copy what the tests need and return where to: nothing is ever changed in the repository itself."""
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in kept.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


class Recorder:
    """A pytest plugin that notes the time of each test and the first that failed."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest for setup, call and teardown of each test."""
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """Called by pytest for each file it has imported."""
        if report.failed:
            self.failed.append(report.nodeid)


def make_map(folder: Path, chosen: list[str]) -> None:
    """Run the tests once under coverage; write which of them run each line."""
    import coverage
    import pytest

    os.chdir(copy_tree(folder))
    sys.path.insert(0, ".")
    recorder = Recorder()
    measured = coverage.Coverage(data_file=str(folder / "contexts"), source=[PACKAGE], config_file=False)

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
    (folder / "map.json").write_text(
        json.dumps({"tests": tests, "seconds": seconds, "lines": lines, "failed": failed})
    )
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


@contextlib.contextmanager
def changed(path: Path, text: str) -> Iterator[None]:
    """Let a file hold another text for a while."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


def in_child(work: Callable[[], dict[str, Any]], timeout: float) -> dict[str, Any]:
    """Return the result of ``work`` done in a forked process, or say that it took too long or died."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        with contextlib.suppress(BaseException):
            os.write(send, json.dumps(work()).encode())
        os._exit(0)
    os.close(send)
    ready, _, _ = select.select([receive], [], [], timeout)
    answer = os.read(receive, 1 << 16) if ready else b""
    os.close(receive)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if answer:
        return json.loads(answer)
    return {"outcome": "died" if ready else "timeout", "by": ""}


def judge(tests: list[str]) -> dict[str, Any]:
    """Run tests until one fails."""
    import pytest

    recorder = Recorder()
    # The parent has imported what pytest would like to rewrite.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*options, *tests], plugins=[recorder])
    by = recorder.failed[0] if recorder.failed else ""
    return {"outcome": "survived" if code == 0 else "killed", "by": by or f"exit code {code}"}


def key(mutant: Mutant) -> str:
    """Return what a mutant goes by in the record: it stays the same when lines move."""
    return json.dumps([mutant.file, mutant.kind, mutant.before, mutant.after, mutant.line])


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the last record of each mutant."""
    path = folder / "mutants.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["key"]: record for record in map(json.loads, lines)}


def drawn(scope: str, seed: int) -> list[Mutant]:
    """Return all mutants of a scope in an order the seed decides: each beginning of it is a random sample."""
    found = [mutant for file in files(scope) for mutant in mutants(file, (ROOT / file).read_text())]
    random.Random(seed).shuffle(found)
    return found


def run(folder: Path, scope: str, sample: int, seed: int, budget: float, minutes: float, again: bool) -> None:
    """Try mutants, and one control without a change for every fifty."""
    deadline = time.monotonic() + 60 * minutes
    recorded = json.loads((folder / "map.json").read_text())
    tree = copy_tree(folder)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    compile_cache(tree)
    import_once()
    done = read_records(folder)
    for index, mutant in enumerate(drawn(scope, seed)[:sample]):
        if time.monotonic() > deadline:
            break
        before = done.get(key(mutant))
        if before is not None and not (again and before["outcome"] == "survived"):
            continue
        attempt(folder, tree, recorded, mutant, budget)
        if index % 50 == 0:
            attempt(folder, tree, recorded, mutant._replace(kind=CONTROL, after=mutant.before), budget)


def attempt(folder: Path, tree: Path, recorded: dict[str, Any], mutant: Mutant, budget: float) -> None:
    """Try one mutant and add its record."""
    start = time.monotonic()
    source = (ROOT / mutant.file).read_text()
    tests = selection(recorded, mutant, source, budget)
    if tests:
        with changed(tree / mutant.file, mutant.apply(source)):
            result = in_child(lambda: judge(tests), timeout=60 + 4 * budget)
    else:
        result = {"outcome": "survived", "by": "no test runs this line"}
    record = mutant._asdict() | result | {"key": key(mutant), "tests": len(tests)}
    record["seconds"] = round(time.monotonic() - start, 2)
    with (folder / "mutants.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(
        f"{record['outcome']:9}{record['seconds']:6.1f} s {mutant.file}:{mutant.line} {mutant.kind}",
        flush=True,
    )


def compile_cache(tree: Path) -> None:
    """Compile all sources once, checked by their contents: a child then compiles only the changed one."""
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", str(tree)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    sys.dont_write_bytecode = True


def import_once() -> None:
    """Import what every child needs, without starting JAX's backend, which would not survive a fork."""
    import warnings

    warnings.filterwarnings("ignore", message=".*os.fork.*")
    import chex  # noqa: F401
    import flax.nnx  # noqa: F401
    import hypothesis  # noqa: F401
    import optax  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401


def interval(killed: int, tried: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share."""
    z = 1.96
    share = killed / tried
    middle = (share + z**2 / (2 * tried)) / (1 + z**2 / tried)
    half = z * math.sqrt(share * (1 - share) / tried + z**2 / (4 * tried**2)) / (1 + z**2 / tried)
    return middle - half, middle + half


def report(folder: Path) -> None:
    """Print the share killed by file, and every survivor."""
    records = list(read_records(folder).values())
    controls = [record for record in records if record["kind"] == CONTROL]
    tried = [record for record in records if record["kind"] != CONTROL]
    outcomes = Counter(record["outcome"] for record in tried)
    killed = len(tried) - outcomes["survived"]
    low, high = interval(killed, len(tried))
    print(f"{len(tried)} tried, {killed} killed ({outcomes['timeout']} by the time limit, ", end="")
    print(f"{outcomes['died']} by the death of the process): ", end="")
    print(f"{killed / len(tried):.1%} [{low:.1%}, {high:.1%}]; {len(controls)} controls, ", end="")
    print(f"{sum(control['outcome'] != 'survived' for control in controls)} of them killed")
    for file in sorted({record["file"] for record in tried}):
        of_file = [record["outcome"] == "survived" for record in tried if record["file"] == file]
        print(f"  {file}: {len(of_file) - sum(of_file)} of {len(of_file)}")
    for record in sorted(tried, key=lambda record: (record["file"], record["line"])):
        if record["outcome"] == "survived":
            print(
                f"{record['file']}:{record['line']} {record['before']!r} -> {record['after']!r}"
                f" ({record['tests']})"
            )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["map", "run", "report"])
    parser.add_argument("tests", nargs="*", help="what to map (default: everything but the slowest)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "riemann_optax_mutation")
    parser.add_argument("--scope", choices=["core", "all"], default="core")
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of tests for each mutant")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these")
    parser.add_argument("--survivors", action="store_true", help="try the survivors again")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.command == "map":
        make_map(folder, arguments.tests)
    elif arguments.command == "run":
        options = arguments.sample, arguments.seed, arguments.budget, arguments.minutes, arguments.survivors
        run(folder, arguments.scope, *options)
    else:
        report(folder)


if __name__ == "__main__":
    main()
