"""The forms of the eigenbasis and their peers on one network: quality, state and time of each.

Each form has its own best rate of a grid in steps of 2, chosen on other seeds than it is reported on; peers
have the same liberties as ours, Nesterov's momentum among them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.table import Table

import riemann_optax as ro
from benchmarks.eigenbasis import runs
from benchmarks.eigenbasis.form import Form
from benchmarks.eigenbasis.runs import BIN, Run, digest, rate_value
from benchmarks.eigenbasis.sizes import Scale
from benchmarks.eigenbasis.timing import Cost, measure, measure_beside, of_record
from benchmarks.shared import terminal
from benchmarks.shared.experiment import Size
from benchmarks.shared.kl_factors import kl_factors
from benchmarks.shared.records import Records
from benchmarks.shared.statistics import numbers, standard_error

ADAMW, MUON = "AdamW", "Muon"
ONE_SIDED, BOTH_SIDES = "eigenbasis, one-sided", "eigenbasis, both sides"
DECAY = 1e-4  # of weights, in all


def ours(**options: Any) -> Form:
    """Return a form of riemannian_eigenbasis."""
    return Form(
        lambda schedule, **more: ro.riemannian_eigenbasis(schedule, weight_decay=DECAY, **options | more),
        "update_every",
    )


def soap(**options: Any) -> Form:
    """Return a form of SOAP, staggered, so that its longest step can be compared."""
    return Form(
        lambda schedule, **more: ro.soap(schedule, weight_decay=DECAY, staggered=True, **options | more),
        "precondition_frequency",
    )


def kl(**options: Any) -> Form:
    """Return a form whose factors are fitted by the Kullback-Leibler divergence, as published."""
    return Form(
        lambda schedule, **more: kl_factors(schedule, weight_decay=DECAY, **options | more),
        "precondition_frequency",
    )


def in_eight_bits(**options: Any) -> Form:
    """Return a form whose momentum and mean squares take eight bits of each weight."""
    narrow = {"mu_dtype": None, "nu_dtype": None}

    def make(schedule: optax.Schedule, **more: Any) -> optax.GradientTransformation:
        wide = ro.riemannian_eigenbasis(schedule, weight_decay=DECAY, **narrow | options | more)
        return ro.low_precision_state(wide, "int8")

    return Form(make, "update_every")


# Means of rows and columns instead of a mean square of each weight; momentum in float32.
FACTORED = {"phi": ro.phi.factored_activity(decay=0.97), "mu_dtype": None}
OF_GRADIENTS = {"gradient_share": 1.0}
PLAIN = OF_GRADIENTS | {"correlate": "gradients"}
UNSETTLED = PLAIN | {"settling_steps": 0}
FORMS = {
    ADAMW: Form(lambda schedule: optax.adamw(schedule, b2=0.95, weight_decay=DECAY)),
    "NAdamW": Form(lambda schedule: optax.nadamw(schedule, b2=0.95, weight_decay=DECAY)),
    MUON: Form(lambda schedule: optax.contrib.muon(schedule, weight_decay=DECAY, consistent_rms=0.2)),
    "SOAP": soap(),
    "SOAP, Nesterov": soap(b1=0.9, nesterov=True),
    "SOAP, one-sided": soap(one_sided=True),
    "SOAP, one-sided, Nesterov": soap(b1=0.9, nesterov=True, one_sided=True),
    "KL-SOAP": kl(second_moment=True),
    "KL-SOAP, Nesterov": kl(second_moment=True, nesterov=True),
    "KL factors, no second moment": kl(),
    "KL factors, no second moment, Nesterov": kl(nesterov=True),
    "KL factors, no second moment, scale-free, Nesterov": kl(nesterov=True, scale_free=True, b2=0.97),
    "no basis, no Nesterov": Form(
        lambda schedule: ro.riemannian_adamw(schedule, weight_decay=DECAY, nesterov=False)
    ),
    "no basis": Form(lambda schedule: ro.riemannian_adamw(schedule, weight_decay=DECAY)),
    f"{ONE_SIDED}, no Nesterov": ours(nesterov=False),
    ONE_SIDED: ours(),
    f"{ONE_SIDED}, metric of the momentum": ours(gradient_share=0.0),
    f"{ONE_SIDED}, metric of the gradient": ours(**OF_GRADIENTS),
    f"{ONE_SIDED}, row times column": ours(**FACTORED),
    f"{ONE_SIDED}, eight bits": in_eight_bits(),
    BOTH_SIDES: ours(sides="both"),
    f"{BOTH_SIDES}, metric of the momentum": ours(sides="both", gradient_share=0.0),
    f"{BOTH_SIDES}, metric of the gradient": ours(sides="both", **OF_GRADIENTS),
    f"{BOTH_SIDES}, row times column": ours(sides="both", **FACTORED),
    f"{BOTH_SIDES}, row times column, whitened": ours(
        sides="both", correlate="whitened_gradients", **FACTORED
    ),
    # What was recommended before correlations were of tempered gradients.
    f"{ONE_SIDED}, plain correlations": ours(**PLAIN),
    f"{BOTH_SIDES}, row times column, plain correlations": ours(sides="both", **PLAIN, **FACTORED),
    # And before that: the same from the first step on as after 300.
    f"{ONE_SIDED}, no Nesterov, no settling": ours(nesterov=False, **UNSETTLED),
    f"{ONE_SIDED}, no settling": ours(**UNSETTLED),
    f"{ONE_SIDED}, row times column, no settling": ours(**UNSETTLED, **FACTORED),
    f"{ONE_SIDED}, eight bits, no settling": in_eight_bits(**UNSETTLED),
    f"{BOTH_SIDES}, no settling": ours(sides="both", **UNSETTLED),
    f"{BOTH_SIDES}, row times column, no settling": ours(sides="both", **UNSETTLED, **FACTORED),
    f"{BOTH_SIDES}, row times column, whitened, no settling": ours(
        sides="both", correlate="whitened_gradients", settling_steps=0, **FACTORED
    ),
}

WIDENINGS = 3


class Row(NamedTuple):
    """A form at its best rate.

    Attributes:
      name: of the form.
      rate: its rate.
      runs: on the fresh seeds.
      cost: what it costs.
    """

    name: str
    rate: float
    runs: list[Run]
    cost: Cost

    def values(self) -> np.ndarray[Any, Any]:
        """Return the validation losses of the fresh seeds."""
        return np.array([run.validation for run in self.runs])

    def reached(self, loss: float) -> float:
        """Return the steps until the mean training curve is at a loss; infinite where it never is."""
        curves = [run.curve for run in self.runs]
        if not all(curves):
            return np.inf
        below = np.flatnonzero(np.mean(curves, axis=0) <= loss)
        return float((below[0] + 1) * BIN) if below.size else np.inf


def compare(
    names: list[str],
    scale: Scale,
    records: Records,
    progress: Callable[[str], None] = lambda text: None,
    text: Path | None = None,
    known: Mapping[str, Form] = FORMS,
) -> list[Row]:
    """Tune each form, run it on fresh seeds and measure its cost, unless the records have it.

    Whatever ``progress`` raises stops the comparison between two runs.
    """
    size = scale.size
    methods = {name: known[name].method() for name in names}
    laboratory = runs.Laboratory(records, size, progress, methods, text)
    rows = []

    def timed(name: str) -> Cost:
        length = dict(size.length)
        if name == ADAMW:
            return measure(FORMS[ADAMW], length, text)
        return measure_beside(FORMS[ADAMW], known[name], length, text)

    for name in names:
        losses: dict[int, float] = {}
        exponents = list(scale.exponents)
        for _ in range(WIDENINGS + 1):
            for exponent in exponents:
                if exponent not in losses:
                    seeds = size.tuning_seeds
                    losses[exponent] = float(np.mean([laboratory.run(name, exponent, s).loss for s in seeds]))
            best = min(losses, key=losses.__getitem__)
            if min(losses) < best < max(losses):
                break
            exponents = [best - 1] if best == min(losses) else [best + 1]
        found = [laboratory.run(name, best, seed) for seed in size.seeds]
        progress(f"{name}: cost")
        key = {"cost of": name, "length": dict(size.length), "on": jax.devices()[0].device_kind}
        cost = records.get(key, lambda name=name: timed(name)._asdict())
        rows.append(Row(name, rate_value(best), found, Cost(**cost)))
    return rows


def with_recorded(rows: list[Row], path: Path, size: Size, text: Path | None = None) -> list[Row]:
    """Return these rows and those that a record has of other forms, in the order of FORMS; controls last.

    Raises:
      ValueError: if the record was made at another size, of another text or on another device.
    """
    if not path.exists():
        return rows
    record = json.loads(path.read_text())
    here = content(size, [], text)
    for part in ("protocol", "device"):
        if record[part] != json.loads(json.dumps(here[part])):
            raise ValueError(
                f"{path} is of another {part}, {record[part]}: give another folder with --out, or compare "
                "all forms, without --only."
            )
    found = {row["form"]: _row(row) for row in record["rows"]} | {row.name: row for row in rows}
    return [found[name] for name in dict.fromkeys([*FORMS, *found]) if name in found]


def _row(recorded: dict[str, Any]) -> Row:
    """Return a row of a record; its runs have the mean curve, which is all that is kept of them."""
    losses, validations = (numbers(recorded[f"{part}_by_seed"]) for part in ("loss", "validation"))
    found = [
        Run(float(loss), float(validation), recorded["curve"], np.nan)
        for loss, validation in zip(losses, validations, strict=True)
    ]
    return Row(recorded["form"], recorded["rate"], found, of_record(recorded))


def table(rows: list[Row]) -> Table:
    """Lay out all rows, the lowest loss first."""
    base = next((row for row in rows if row.name == ADAMW), rows[0])
    target = float(np.mean([run.loss for run in base.runs]))
    cells = []
    for row in sorted(rows, key=lambda row: float(np.mean(row.values()))):
        steps, cost = row.reached(target), row.cost
        cells.append(
            [
                row.name,
                f"{row.rate:g}",
                f"{np.mean(row.values()):.3f} +- {standard_error(row.values()):.3f}",
                f"{steps:.0f}" if np.isfinite(steps) else "never",
                f"{cost.state:.2f}",
                "-" if cost.memory is None else f"{cost.memory / 1e6:.1f}",
                f"{cost.step:.1f}",
                "" if cost.refresh is None else f"{cost.refresh:.2f}",
                f"{cost.longest:.1f}",
                f"{cost.over(base.cost)[0]:.2f}",
                f"{cost.over(base.cost)[1]:.1f}",
            ]
        )
    headings = ["form", "rate", "validation", "steps", "state", "MB", "ms", "+ refresh", "longest", "x"]
    shown = terminal.table("Forms of the eigenbasis and peers", [*headings, "compile"], cells)
    shown.caption = (
        f'"steps" to {base.name}\'s training loss at its end; "state" in units of the weights; "MB" that '
        'a training step holds at once, activations and all; "ms" of a '
        'training step without refreshes, what these add to each on average, the longest step of ten; "x" '
        f"the mean step over {ADAMW}'s in the same process, and the compilation."
    )
    return shown


def claims(rows: list[Row]) -> dict[str, bool]:
    """Return what is to be shown, and whether it holds."""
    by_name = {row.name: row for row in rows}
    if not {ADAMW, MUON, ONE_SIDED} <= by_name.keys():
        return {}
    adamw, muon, form = (by_name[name] for name in (ADAMW, MUON, ONE_SIDED))
    losses = [float(np.mean(row.values())) for row in (form, muon)]
    step, compiling = form.cost.over(adamw.cost)
    limit = 1.5 if jax.default_backend() == "cpu" else 1.25
    return {
        f"{ONE_SIDED}: loss {losses[0]:.3f}, at most Muon's {losses[1]:.3f}": losses[0] <= losses[1],
        f"{ONE_SIDED}: state {form.cost.state:.2f} of the weights, at most 1.5": form.cost.state <= 1.51,
        f"{ONE_SIDED}: step {step:.2f} of AdamW's, at most {limit}": step <= limit,
        f"{ONE_SIDED}: compiles in {compiling:.2f} of AdamW's time, at most 2": compiling <= 2,
    }


def content(size: Size, rows: list[Row], text: Path | None = None) -> dict[str, Any]:
    """Return everything the table shows, for the record."""
    return {
        "protocol": {"length": size.length, "tuning_seeds": size.tuning_seeds, "seeds": size.seeds}
        | ({} if text is None else {"text": digest(text)}),
        "device": jax.devices()[0].device_kind,
        "claims": claims(rows),
        "rows": [
            {
                "form": row.name,
                "rate": row.rate,
                "validation_by_seed": [run.validation for run in row.runs],
                "loss_by_seed": [run.loss for run in row.runs],
                "curve": np.mean([run.curve for run in row.runs], axis=0).tolist()
                if all(run.curve for run in row.runs)
                else [],
                **row.cost._asdict(),
            }
            for row in rows
        ],
    }
