"""The tables of README and of the site, from the records alone, and what writes them into the pages.

A page marks the place of a table by two comments, ``<!-- records: NAME -->`` and ``<!-- end -->``.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.continual.streams import STREAMS
from benchmarks.continual.summary import Row, rows, sweep_rows
from benchmarks.eigenbasis.timing import over_adamw
from benchmarks.report import drop_in, energy, other_losses, packaged, page, short
from benchmarks.report.continual import BOUNDED, BOUNDED_PENALTY, PENALTY, PERMUTED_DIGITS, SLOW
from benchmarks.report.streams import every_stream, named
from benchmarks.report.suite import Suite
from benchmarks.shared.markdown import number, table
from benchmarks.shared.records import Records
from benchmarks.shared.statistics import standard_error
from benchmarks.time_to_target.methods import (
    DEFAULT_BETAS,
    EIGENBASIS,
    EIGENBASIS_SCHEDULE_FREE,
    FACTORED,
    FACTORED_SCHEDULE_FREE,
    KL_SOAP,
    MOMENTUM,
    MUON,
    NADAMW,
    SOAP,
    TUNED_ADAMW,
    VECTORS_SCHEDULE_FREE,
)
from benchmarks.time_to_target.search import MISS
from riemann_optax.examples.train import chooser

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("recipes/*.md")),
)
PLACE = re.compile(r"(<!-- records: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# A method of the suite in a reader's words.
SUITE_ROWS = {
    MOMENTUM: "momentum, tuned",
    DEFAULT_BETAS: "AdamW at its default betas",
    TUNED_ADAMW: "AdamW, tuned",
    NADAMW: "NAdamW, tuned",
    MUON: "Muon",
    "RMSprop with Nesterov": "RMSprop with Nesterov's momentum, tuned",
    SOAP: "SOAP",
    KL_SOAP: "KL-SOAP",
    "schedule-free AdamW": "schedule-free AdamW, tuned",
    "SOAP, schedule-free": "SOAP, schedule-free",
    "SOAP with vectors, schedule-free": "SOAP, vectors too, schedule-free",
    FACTORED: "**factored metric**, tuned",
    FACTORED_SCHEDULE_FREE: "**factored metric**, schedule-free",
    EIGENBASIS: "**metric in the eigenbasis**",
    EIGENBASIS_SCHEDULE_FREE: "**metric in the eigenbasis**, schedule-free",
    VECTORS_SCHEDULE_FREE: "**metric in the eigenbasis**, vectors too, schedule-free",
}


def suite_table(suite: Suite) -> str:
    """Lay out the few methods that a newcomer asks about, the fewest steps last."""
    last = suite.rows["far"][suite.of_state]
    lines = [
        (suite.ratio("far", name, TUNED_ADAMW, MISS), words, 4 * last[name].state)
        for name, words in SUITE_ROWS.items()
    ]
    cells = [[words, number(ratio), f"{state:.0f}"] for ratio, words, state in sorted(lines, reverse=True)]
    steps = f"steps, mean of {len(suite.tasks)} tasks"
    return table(["optimiser", steps, "state, bytes per weight"], cells)


def figure1_table(record: dict[str, Any]) -> str:
    """Lay out the steps on each surface, on the first with the shape of the path."""
    by_key = {(row["surface"], row["method"], row["role"]): row for row in record["rows"]}
    surfaces = list(record["surfaces"])
    shown: Sequence[tuple[str, str, str | None]] = (
        ("SGD", "SGD", None),
        ("momentum, tuned", "momentum", None),
        ("Adam, tuned", "Adam", None),
        ("secant curvature", "secant curvature", "metric"),
        ("Hutchinson curvature", "Hutchinson curvature", "metric"),
        ("secant curvature, `inverse_metric`", "secant curvature", "inverse_metric"),
        ("1 / secant curvature, `inverse_metric`", "1 / secant curvature", "inverse_metric"),
        ("1 / Hutchinson curvature, `inverse_metric`", "1 / Hutchinson curvature", "inverse_metric"),
        ("Adam `in_eigenbasis`", "Adam, eigenbasis", None),
        ("secant curvature `in_eigenbasis`", "secant curvature, eigenbasis", "metric"),
    )

    def steps(row: dict[str, Any]) -> str:
        if row["best"] is None:
            return "missed"
        return f"{row['best']['steps']:.0f} ({packaged.steps_elsewhere(row)})"

    lines = []
    for words, method, role in shown:
        found = [by_key[surface, method, role] for surface in surfaces]
        best = found[0]["best"]
        path = [f"{best['straightness']:.3f}", f"{best['sign_changes']:.0f}"] if best else ["", ""]
        lines.append([words, steps(found[0]), *path, *map(steps, found[1:])])
    first, *others = ("steps, " + ("rotated" if surface == "turned" else surface) for surface in surfaces)
    return table(["method", first, "straightness", "swings", *others], lines)


def step_cost_table(record: dict[str, Any]) -> str:
    """Lay out the time of an update of one large matrix and of a Transformer's tree over SGD's and Adam's."""
    costs = record["costs"]["matrix"]
    tree = record["costs"]["transformer"]
    shown = {
        "sgd": "`optax.sgd`",
        "adam": "`optax.adam`",
        "adafactor": "`optax.adafactor`",
        "stateless metric": "stateless metric",
        "averaged phi": "averaged phi",
        "averaged phi, bf16 state": "averaged phi, state in bfloat16",
        "averaged phi, int8 state": "averaged phi, state in int8",
        "averaged phi, momentum": "averaged phi, momentum",
        "factored phi": "factored phi",
        "factored phi, momentum": "factored phi, momentum",
        "riemannian_adamw": "`ro.riemannian_adamw`",
        "schedule_free_adamw": "`optax.contrib.schedule_free_adamw`",
        "riemannian_schedule_free": "`ro.riemannian_schedule_free`",
        "muon": "`optax.contrib.muon`",
        "riemannian_eigenbasis": "`ro.riemannian_eigenbasis`",
    }

    def over(cost: dict[str, Any], name: str, other: str) -> str:
        return number(cost[name]["seconds"] / cost[other]["seconds"]) if name in cost else "-"

    lines = [
        [
            words,
            *(over(costs, name, other) for other in ("sgd", "adam")),
            over(tree, name, "adam"),
            f"{costs.get(name, tree[name])['state_bytes_per_parameter']:.2g}",
        ]
        for name, words in shown.items()
    ]
    headings = ["update of", "time / SGD's", "time / Adam's", "a Transformer's tree: time / Adam's"]
    return table([*headings, "state, bytes per weight"], lines)


def trainer_table(record: dict[str, Any]) -> str:
    """Lay out the figures of the trainer's runs: the first seed, and the others in brackets."""
    runs = list(record["runs"].values())
    labels = {name: (one["label"], one["learning_rate"]) for name, one in runs[0].items()}
    of = {"metric": "`{}`, {:g}", "baseline": "`optax.{}`, tuned: {:g}"}

    def cell(name: str, figure: str, show: Callable[[float], str]) -> str:
        missed = f"not in {runs[0][name]['steps']}"
        shown = [missed if run[name][figure] is None else show(run[name][figure]) for run in runs]
        return f"{shown[0]} ({', '.join(shown[1:])})"

    shown: Sequence[tuple[str, str, Callable[[float], str]]] = (
        ("held-out accuracy, per cent", "heldout_accuracy", lambda share: f"{100 * share:.1f}"),
        ("held-out loss, nats", "heldout_loss", lambda loss: f"{loss:.3f}"),
        (f"steps to a validation loss of {record['target']:g}", "steps_to_target", lambda n: f"{n:.0f}"),
        ("energy spent, `sum abs(dw)`", "energy", lambda energy: f"{energy:.0f}"),
    )
    lines = [[words, *(cell(name, figure, show) for name in labels)] for words, figure, show in shown]
    state = [f"{runs[0][name]['state_bytes_per_parameter']:.1f}" for name in labels]
    headings = ["", *(of[name].format(*label) for name, label in labels.items())]
    return table(headings, [*lines, ["state, bytes per weight", *state]])


def forms_table(record: dict[str, Any]) -> str:
    """Lay out the forms of the eigenbasis and their peers, the lowest loss first."""
    rows = {row["form"]: row for row in record["rows"]}
    losses = {name: np.array(row["validation_by_seed"]) for name, row in rows.items()}
    base = rows["AdamW"]

    def held(row: dict[str, Any]) -> float:
        """Not a number in records that are older than this measurement."""
        found = row.get("memory")
        return np.nan if found is None else float(found)

    lines = [
        [
            f"**{name}**" if name == "eigenbasis, one-sided" else name,
            f"{row['rate']:g}",
            f"{np.mean(losses[name]):.3f} ± {standard_error(losses[name]):.3f}",
            number(row["state"]),
            *(number(ratio, digits) for ratio, digits in zip(over_adamw(row, base), (2, 1), strict=True)),
            number(held(row) / held(base)),
        ]
        for name, row in sorted(rows.items(), key=lambda item: float(losses[item[0]].mean()))
    ]
    headings = ["form", "its best rate", "loss, nats per byte", "state / weights"]
    beside = [f"{what} / AdamW's" for what in ("step", "compiling", "memory at peak")]
    return table([*headings, *beside], lines)


def eigenbasis_table(record: dict[str, Any]) -> str:
    """Lay out the loss of the language model, the lowest last."""
    found = sorted(record["rows"], key=lambda row: -row["loss"]["mean"])
    return table(
        ["method", "loss, nats per byte", "standard error"],
        [
            [row["method"], number(row["loss"]["mean"], 3), number(row["loss"]["standard_error"], 3)]
            for row in found
        ],
    )


def streams_table(entries: Sequence[Any]) -> str:
    """Lay out, for each stream, ours and the best rival."""
    lines = []
    for (stream, data), found in every_stream(entries).items():
        about = STREAMS[stream]
        if stream == PERMUTED_DIGITS:  # has a table of its own, over the strength of the pull
            continue
        ours = next(row for row in found if row.method == about.ours)
        rival = next((row for row in found if about.methods[row.method].role == "peer"), None)
        if rival is None:
            continue
        better = ours.mean > rival.mean if about.higher else ours.mean < rival.mean
        ahead = "**ours**" if better else "rival"
        interval = f"{rival.difference:+.3g} [{rival.low:+.3g}, {rival.high:+.3g}]"
        lines.append(
            [
                f"{named(stream, data)}, {ours.seeds} seeds",
                f"{about.measure}, {'higher' if about.higher else 'lower'} is better",
                f"{ours.method}: {ours.mean:.3g}",
                f"{rival.method}: {rival.mean:.3g}",
                interval,
                "level" if rival.low <= 0 <= rival.high else ahead,
            ]
        )
    headings = ["stream", "measure", "ours", "best rival", "rival less ours, paired [95%]", "ahead"]
    return table(headings, lines)


def slow_table(entries: Sequence[Any]) -> str:
    """Lay out what each part of ours does on the slowly changing stream."""
    shown = (
        "metric + pull + noise",
        "metric + pull",
        "metric",
        "metric + noise",
        "leaf-mean phi + pull + noise",
        "leaf-mean phi",
        "re-tuned base: pull + noise",
        "RMSprop + L2-Init",
        "RMSprop",
        "SGD",
    )
    by_method: dict[str, Row] = {row.method: row for row in rows(entries, SLOW)}
    ours = by_method[STREAMS[SLOW].ours]
    lines = []
    for method in (name for name in shown if name in by_method):
        row = by_method[method]
        against = ["", ""]
        if row.method != ours.method:
            against = [
                f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
                f"{row.ours_ahead} of {row.seeds}",
            ]
        lines.append([method, f"{row.mean:.3f}", *against])
    return table(["method", "error", "less the first row, paired [95%]", "first row better on"], lines)


def permuted_table(entries: Sequence[Any]) -> str:
    """Lay out the permuted digits over the strength of the pull."""
    names = {
        BOUNDED: "metric, mean of `E` bounded",
        "metric": "metric",
        BOUNDED_PENALTY: "penalty with the same bound",
        PENALTY: "plain penalty",
    }
    swept = sweep_rows(entries, PERMUTED_DIGITS)
    names = {name: words for name, words in names.items() if any(row.method == name for row in swept)}
    found = {(row.method, row.point["strength"]): row.means for row in swept}
    strengths = sorted({row.point["strength"] for row in swept if row.method in names})

    def cell(name: str, strength: float) -> str:
        means = found.get((name, strength))
        return f"{means['all tasks']:.1f} / {means['last task']:.1f}" if means else ""

    lines = [[f"{strength:g}", *(cell(name, strength) for name in names)] for strength in strengths]
    return table(["strength of the pull", *names.values()], lines)


def chooser_table() -> str:
    """Lay out which phi answers which question: the table that the trainer prints at ``--phi help``."""
    lines = [
        [
            entry.question,
            f"`{entry.name}`",
            entry.reads,
            f"{entry.state:g}",
            "" if entry.time is None else number(entry.time),
            entry.seen,
        ]
        for entry in chooser.entries()
    ]
    return table(["you say", "phi", "it reads", "state per weight", "step / AdamW's", "seen"], lines)


def tables(suite: Suite, entries: Sequence[Any], results: Path) -> dict[str, Callable[[], str]]:
    """Return every table by the name that pages use."""

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((results / name).read_text())
        return found

    return {
        "suite": lambda: suite_table(suite.complete),
        "rate_only": lambda: page.rate_only_table(suite),
        "untuned": lambda: page.untuned_table(suite),
        "energy": lambda: energy.short_table(Records(results / "energy.jsonl")),
        "energy_widths": lambda: energy.widths_table(Records(results / "energy.jsonl")),
        "twins": lambda: short.twins_table(suite.complete),
        "figure1": lambda: figure1_table(read("figure1.json")),
        "step_cost": lambda: step_cost_table(read("step_cost.json")),
        "eigenbasis": lambda: eigenbasis_table(read("language_model.json")),
        "trainer": lambda: trainer_table(read("trainer.json")),
        "forms": lambda: forms_table(read("eigenbasis_forms.json")),
        "forms_full": lambda: forms_table(read("eigenbasis_forms_full.json")),
        "forms_long": lambda: forms_table(read("eigenbasis_forms_long.json")),
        "forms_full_long": lambda: forms_table(read("eigenbasis_forms_full_long.json")),
        "forms_20m_cpu": lambda: forms_table(read("eigenbasis_forms_20m_cpu.json")),
        "drop_in": lambda: drop_in.shapes_table(Records(results / "drop_in.jsonl")),
        "relative": lambda: drop_in.relative_table(Records(results / "drop_in.jsonl")),
        "other_losses": lambda: other_losses.losses_table(Records(results / "other_losses.jsonl")),
        "million": lambda: drop_in.million_table(Records(results / "drop_in.jsonl")),
        "streams": lambda: streams_table(entries),
        "slowly_changing": lambda: slow_table(entries),
        "chooser": chooser_table,
        "permuted_digits": lambda: permuted_table(entries),
    }


def filled(text: str, known: dict[str, Callable[[], str]]) -> str:
    r"""Return a page with the tables of the records in their places.

    Examples:
      >>> filled("<!-- records: one -->\nold\n<!-- end -->", {"one": lambda: "new"})
      '<!-- records: one -->\nnew\n\n<!-- end -->'
    """
    return PLACE.sub(lambda place: f"{place[1]}{known[place[2]]()}\n\n{place[3]}", text)
