"""The page ``tests/TRUST.md``, from the records alone."""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.trust import long_runs, reproducible

HERE = Path(__file__).parent
PAGE = HERE.parent / "TRUST.md"
RECORDS = ("inputs", "refusals", "long_runs", "reproducible", "mutation", "coverage")

OPENING = """# What has been tried on this package

Written by `python -m tests.trust` from the records in `tests/trust/results/` alone. The suite in CI runs a
short form of each of these. The long forms take an hour and more; they are run before a release.
"""


def read(folder: Path = HERE / "results") -> dict[str, Any]:
    """Return all records by name."""
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in RECORDS}


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table; a bar within a cell is escaped."""
    head = list(head)
    lines = [head, ["--"] * len(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def per_cent(part: float, whole: float = 1.0) -> str:
    """Return a share in per cent."""
    return f"{100 * part / whole:.1f}%"


def fails(names: list[str]) -> str:
    """Say which tests did not pass."""
    return f"**fail: {', '.join(names)}**" if names else "all pass"


def tried(record: dict[str, Any], what: str) -> list[int]:
    """Return how many each test has tried, of the tests that try it."""
    return [case[what] for case in record["cases"].values() if what in case]


def summary(records: dict[str, Any]) -> str:
    """Return one line per record."""
    inputs, refusals, again = records["inputs"], records["refusals"], records["reproducible"]
    failed = fails([name for name, case in inputs["cases"].items() if not case["passed"]])
    runs = [
        (name, dtype, run)
        for name, by_dtype in records["long_runs"]["phis"].items()
        for dtype, run in by_dtype.items()
    ]
    out = [f"{name}, {dtype}" for name, dtype, run in runs if long_runs.broken(name, dtype, run)]
    scopes = records["mutation"]["scopes"]
    parts = records["coverage"]["parts"]
    whole = {key: sum(part[key] for part in parts.values()) for key in next(iter(parts.values()))}
    largest = {what: max(values.values()) for what, values in again["differences"].items()}
    rows = [
        (
            "random trees of parameters",
            f"{sum(tried(inputs, 'trees')):,}, at least {min(tried(inputs, 'trees')):,} for each "
            f"transformation; {sum(tried(inputs, 'traced')):,} other trees in `scan`, `cond` and `vmap`, "
            f"{sum(tried(inputs, 'run')):,} compiled with donation and compared with eager",
            failed,
            "`python -m tests.trust inputs`",
        ),
        (
            "NaN, infinite, huge, tiny and zero gradients",
            f"{sum(tried(inputs, 'faults')):,} faults",
            failed,
            "the same",
        ),
        (
            "wrong arguments, misuse, damaged and foreign checkpoints",
            f"{refusals['tests']:,}",
            fails(refusals["not_passed"]),
            "`python -m tests.trust refusals`",
        ),
        (
            "steps of each phi",
            f"{max(run['steps'] for *_, run in runs):,} in float32 and bfloat16, {len(runs)} runs",
            f"**outside of the bounds: {'; '.join(out)}**" if out else "all within the bounds below",
            "`python -m tests.trust.long_runs`",
        ),
        (
            "the same run again",
            f"{len(again['differences']['again'])} transformations",
            "the same bits" if not largest["again"] else f"**differs by {largest['again']:.1g}**",
            "`python -m tests.trust.reproducible`",
        ),
        *(
            (
                f"the same run on {what}" if "devices" in what else f"the same run under the {what}",
                ", ".join(f"{name} {version}" for name, version in again["versions"][what].items()),
                f"weights differ by at most {largest[what]:.1g} of the largest distance moved",
                "the same" if "devices" in what else "the same, `--oldest PYTHON`",
            )
            for what in again["differences"]
            if what != "again"
        ),
        *(
            (
                f"mutants of `{'riemann_optax/phi/' if scope == 'phi' else 'riemann_optax/*.py'}`",
                f"{found['tried']} drawn from {found['mutants']:,}",
                f"{per_cent(found['as_drawn']['share'])} killed (standard error "
                f"{per_cent(found['as_drawn']['standard_error'])}); with the tests written for survivors "
                f"{per_cent(found['now']['share'])}",
                "`python -m tests.trust.mutation`",
            )
            for scope, found in scopes.items()
        ),
        (
            "coverage of `riemann_optax/`",
            f"{records['coverage']['tests']:,} tests",
            f"{per_cent(whole['covered_lines'], whole['num_statements'])} of lines, "
            f"{per_cent(whole['covered_branches'], whole['num_branches'])} of branches",
            "`python -m tests.trust coverage`",
        ),
    ]
    return table(["what", "tried", "found", "command"], rows)


def runs_table(record: dict[str, Any]) -> str:
    """Return what E and the state did in a million steps."""

    def rows() -> Iterable[Iterable[str]]:
        for name, runs in record["phis"].items():
            for dtype, run in runs.items():
                yield (
                    f"`{name.removeprefix('phi.')}`",
                    dtype,
                    f"{run['least']:.3g} to {run['largest']:.3g}",
                    f"{run['difference']:.1g}",
                    f"{long_runs.tolerance(name, dtype):g}",
                    f"{run['largest_entry']:.3g}",
                )

    head = [
        "phi",
        "weights",
        "E, least to largest",
        "error of log E against float64",
        "bound",
        "largest entry of the state",
    ]
    return table(head, rows())


def survivors_table(record: dict[str, Any]) -> str:
    """Return the mutants that no test kills, and why."""
    rows = [
        (
            f"`{one['file'].removeprefix('riemann_optax/')}`",
            f"`{one['before']}` to `{one['after']}`",
            one["verdict"],
            one["why"],
        )
        for one in record["survivors"]
    ]
    return table(["file", "change", "verdict", "why no test kills it"], rows)


def coverage_table(record: dict[str, Any]) -> str:
    """Return lines and branches of each part."""
    rows = [
        (
            f"`{part}`",
            per_cent(found["covered_lines"], found["num_statements"]),
            per_cent(found["covered_branches"], found["num_branches"] or 1),
        )
        for part, found in record["parts"].items()
    ]
    return table(["part", "lines", "branches"], rows)


def paragraph(*sentences: str) -> str:
    """Return sentences as lines of at most 118 characters."""
    return textwrap.fill(" ".join(sentences), 118, break_on_hyphens=False) + "\n"


def write_page(records: dict[str, Any] | None = None) -> str:
    """Return the page."""
    records = records or read()
    mutation, again = records["mutation"], records["reproducible"]
    closed = sorted({f"`{one['file'].removeprefix('riemann_optax/')}`" for one in mutation["closed"]})
    sections = [
        OPENING,
        summary(records),
        "## A million steps\n",
        paragraph(
            "Each phi runs on a noisy quadratic of nine weights. The same phi in float64 gets the same",
            "weights and gradients. The bounds: E is positive and finite, the state is finite, no counter is",
            "negative, and `log E` of every weight at every step is close to its value in float64. The",
            "tolerance is the rounding of a change of bfloat16 weights, or of a million changes of a rate or",
            "a deviation.",
        ),
        runs_table(records["long_runs"]),
        "## Surviving mutants\n",
        paragraph(
            "A mutant changes one sign, term, constant or condition. The tests that run its line are run",
            f"until one fails. The sample has seed {mutation['seed']} at commit {mutation['commit'][:7]}; of",
            f"{mutation['controls']} control runs without a change {mutation['controls_killed']} failed.",
            f"Tests were then written for survivors in {', '.join(closed)}.",
        ),
        survivors_table(mutation),
        "## Coverage\n",
        coverage_table(records["coverage"]),
        "## Reruns\n",
        paragraph(
            "The same seeds give the same bits. Eight devices and the oldest supported releases add in",
            f"another order: the bound is {reproducible.TOLERANCE['eight devices']:g} of the largest",
            f"distance that a weight moves in {again['steps']} steps. The state of `riemannian_eigenbasis`",
            "is kept in float32 for this: in bfloat16, its default, a value beside a tie may round the other",
            "way, by 2**-8 of itself.",
        ),
    ]
    return "\n".join(sections)
