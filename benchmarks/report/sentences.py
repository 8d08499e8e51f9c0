"""The numbers that stand in sentences: of README, of the site and of docstrings, filled in from the records.

A sentence is written with ``{}`` in the place of each number. The program finds it in its file, however its
lines are broken, and writes the numbers of the records into it.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import riemann_optax as ro
from benchmarks.continual.chains import DORMANT_CHAIN, LONG_CHAIN, LONG_ISOMETRIC_CHAIN, SILENT_CHAIN
from benchmarks.continual.family import FAMILIES, TOGETHER, judged
from benchmarks.drop_in.runs import ADAMW, OURS
from benchmarks.drop_in.shapes import SEEDS, SHAPES, Shape
from benchmarks.eigenbasis.timing import over_adamw
from benchmarks.energy.table import Row
from benchmarks.report import drop_in, energy, other_losses, suite
from benchmarks.shared.records import Records
from benchmarks.step_cost.problems import matrix, transformer
from benchmarks.time_to_target import summary
from benchmarks.time_to_target.methods import (
    DROP_IN,
    ONE_SIDED,
    ONE_SIDED_FREE,
    SCHEDULE_FREE,
    SOAP,
    TUNED_ADAMW,
)
from benchmarks.time_to_target.search import FULL

ROOT = Path(__file__).parents[2]
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WITH_ONE_STREAM = ("RMSprop + L2-Init", "SGD + continual backprop")  # each leads on one of the two streams
ON_RMSPROP = ("RMSprop + continual backprop", "RMSprop + ReDo", "RMSprop + soft resets")
GATED, UNGATED = "gated multiplicative metric + caching", "multiplicative metric + caching"
HOLE = r"([^\s|]+?)"


class Sentence(NamedTuple):
    """A sentence with numbers from a record.

    Attributes:
      files: that have it, relative to the repository.
      text: with ``{}`` for each number.
      numbers: returns them as they are to be read.
    """

    files: tuple[str, ...]
    text: str
    numbers: Callable[[], Sequence[str]]

    @property
    def pattern(self) -> re.Pattern[str]:
        """The sentence with any numbers and any breaks of lines."""
        parts = [r"\s+".join(map(re.escape, part.split(" "))) for part in self.text.split("{}")]
        return re.compile(HOLE.join(parts) + r"(?!\d)")

    def filled(self, page: str) -> str:
        r"""Return a page with the numbers of the records in this sentence.

        Raises:
          ValueError: where the page does not have the sentence, or more than once.

        Examples:
          >>> sentence = Sentence(("a.md",), "It needs {} steps.", lambda: ["3"])
          >>> sentence.filled("First. It needs\n30 steps. Last.")
          'First. It needs\n3 steps. Last.'
        """
        found = list(self.pattern.finditer(page))
        if len(found) != 1:
            raise ValueError(f"{len(found)} times in {self.files}, and not once: {self.text}")
        for group, number in reversed(list(enumerate(self.numbers(), start=1))):
            page = page[: found[0].start(group)] + number + page[found[0].end(group) :]
        return page


def word(number: int) -> str:
    """Return a small number in letters."""
    return WORDS[number] if number < len(WORDS) else str(number)


def millions(number: float) -> str:
    """Return a number of weights in millions, to two figures or to one decimal."""
    return f"{number / 1e6:.2g}" if number < 1e6 else f"{number / 1e6:.1f}"


def sentences(results: Path) -> tuple[Sentence, ...]:
    """Return all of them; a record is read when its numbers are asked for."""

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((results / name).read_text())
        return found

    @functools.cache
    def tasks() -> suite.Suite:
        return suite.load(results / "time_to_target")

    def runs(shape: Shape, *names: str) -> dict[str, Any]:
        return drop_in.recorded(Records(results / "drop_in.jsonl"), shape, names)

    def valley() -> list[str]:
        best = {
            (row["method"], row["role"]): row["best"]["steps"]
            for row in read("figure1.json")["rows"]
            if row["surface"] == "axis-aligned" and row["best"]
        }
        shown = (("secant curvature", "metric"), ("Adam", None), ("momentum", None), ("SGD", None))
        return [f"{best[key]:.0f}" for key in shown]

    def weights(name: str) -> int:
        return int(runs(SHAPES[name], ADAMW)[ADAMW][0].weights)

    def sizes() -> list[str]:
        counts = [weights(name) for name in SHAPES]
        return [millions(min(counts)), millions(max(counts))]

    def adamw_factor() -> str:
        """Return how far AdamW's best rates are from the rule's, rounded up."""
        factors = []
        for shape in SHAPES.values():
            found = runs(shape, ADAMW)[ADAMW]
            rate = drop_in.RATES[int(np.argmin([run.validation for run in found]))]
            ours = ro.starting_rate(jax.ShapeDtypeStruct((found[0].weights,), np.float32))
            factors.append(max(rate / ours, ours / rate))
        return str(math.ceil(max(factors)))

    def turning() -> list[str]:
        share = {
            (row[0], row[1], row[2]): row[3:]
            for row in read("eigenbasis_cost.json")["share_of_a_training_step"]
        }
        small, large = share[768, 10, 8192], share[768, 10, 524288]
        return [f"{small[0]:.0%}", f"{small[1]:.0%}", f"{math.ceil(100 * sum(large))}%"]

    def forms(name: str) -> list[str]:
        record = read(name)
        best = min(record["rows"], key=lambda row: np.mean(row["validation_by_seed"]))
        protocol = record["protocol"]
        return [best["form"], str(protocol["length"]["steps"]), word(len(protocol["seeds"]))]

    def language_model() -> list[str]:
        protocol = read("language_model.json")["protocol"]
        return [str(protocol["steps"]), str(len(protocol["seeds"])), word(len(protocol["tuning_seeds"]))]

    def trials() -> list[str]:
        found = tasks().complete
        most = max(
            len(made)
            for records in found.records.values()
            for name, made in summary.trials(records).items()
            if name in found.everywhere("far")
        )
        return [str(len(FULL.coarse) + FULL.fine_trials), str(most)]

    def tables_of_embeddings() -> list[str]:
        by_method = other_losses.recorded(Records(results / "other_losses.jsonl"))["factorisation"]
        error = {name: row.means["held out"] for name, row in by_method.items()}
        shown = ("ro.riemannian_schedule_free", "optax schedule_free_adamw", OURS)
        return [f"{error[name] / error[ADAMW]:.2f}" for name in shown]

    def untuned_misses() -> list[str]:
        found = tasks()
        rows = [found.untuned("far", name).values() for name in (DROP_IN, SCHEDULE_FREE, ONE_SIDED)]
        first, *others = (str(sum(math.isinf(row.median_steps) for row in own)) for own in rows)
        return [first, str(len(rows[0])), *others]

    def untuned_steps() -> list[str]:
        found = tasks()
        shown = (ONE_SIDED, f"{SOAP}, published", ONE_SIDED_FREE, DROP_IN)
        misses, *_ = untuned_misses()
        return [*(f"{suite.mean_against(found, found.untuned('far', name)):.2f}" for name in shown), misses]

    def step_of_one_sided() -> list[str]:
        rows = {row["form"]: row for row in read("eigenbasis_forms_full.json")["rows"]}
        ours, base = rows["eigenbasis, one-sided"], rows[TUNED_ADAMW]
        step, compiling = over_adamw(ours, base)
        return [f"{step:.2f}", f"{compiling:.1f}"]

    @functools.cache
    def spent() -> Mapping[tuple[str, str], list[Row]]:
        return energy.recorded(Records(results / "energy.jsonl"))

    def over_caching(rule: str, measure: str, digits: int) -> list[str]:
        ratios = []
        for protocol in ("van_rossum_pache", "li_van_rossum"):
            by_rule = {row.method: getattr(row, measure) for row in spent()[protocol, "digits"]}
            ratios.append(by_rule[rule] / by_rule["synaptic caching, nothing fades"])
        return [f"{ratio:.{digits}f}" for ratio in ratios]

    def modern(*names: str) -> list[str]:
        """Return on how many seeds of the modern network some rules all arrive, and what they spend there."""
        by_rule = {row.method: row.energies for row in spent()["modern", "digits"]}
        energies = np.array([by_rule[name] for name in names])
        there = np.isfinite(energies).all(0)
        return [word(there.sum()), *(f"{mean:.0f}" for mean in energies[:, there].mean(1))]

    def trees() -> list[str]:
        counts = [[leaf.size for leaf in jax.tree.leaves(tree)] for tree in (matrix(), transformer())]
        return [millions(sum(counts[0])), millions(sum(counts[1])), str(len(counts[1]))]

    def phi_cost() -> list[str]:
        record = read("phi_cost.json")
        spread = max(
            max(phi["high"] / phi["ratio"], phi["ratio"] / phi["low"]) for phi in record["phis"].values()
        )
        return [str(record["batch_size"]), word(record["rounds"]), f"{math.ceil(100 * (spread - 1))}%"]

    def phi_ratio(name: str) -> list[str]:
        return [f"{read('phi_cost.json')['phis'][name]['ratio']:.2f}"]

    def relative() -> list[str]:
        plain, own = (
            {label: runs(shape, name)[name] for label, shape in SHAPES.items()}
            for name in (OURS, drop_in.RELATIVE)
        )
        lowest = [
            min(run.validation for run in plain[k]) - min(run.validation for run in own[k]) for k in SHAPES
        ]
        return [f"{max(map(abs, lowest)):.2f}"]

    def relative_loss() -> list[str]:
        cells = drop_in.relative_table(Records(results / "drop_in.jsonl")).splitlines()[-1].split("|")
        return [cells[5].strip(), cells[3].strip()]

    def relative_rate() -> list[str]:
        return [
            drop_in.relative_table(Records(results / "drop_in.jsonl")).splitlines()[-1].split("|")[4].strip()
        ]

    def one_setting(family: str, digits: tuple[int, int], *methods: str) -> list[str]:
        """Return what methods reach on each stream of a family, with the setting that all streams chose."""
        entries = list(Records(results / "continual.jsonl"))
        found = [
            {row.method: row.mean for row in judged(entries, stream, TOGETHER)} for stream in FAMILIES[family]
        ]
        return [
            f"{of[method]:.{places}f}" for method in methods for of, places in zip(found, digits, strict=True)
        ]

    return (
        Sentence(
            ("README.md", "docs/index.md"),
            "On a steep valley the metric arrives in {} steps; tuned Adam needs {}, tuned momentum {} "
            "and SGD {}]",
            valley,
        ),
        Sentence(
            ("README.md",),
            "on a small GPT, on a CPU, each training step of `ro.riemannian_eigenbasis` takes {} of AdamW's "
            "time, and compilation {}. - With nothing tuned, at `ro.starting_rate`, "
            "`ro.riemannian_eigenbasis` needs {} of the steps of tuned AdamW, SOAP {}, "
            '`ro.riemannian_schedule_free(sides="smaller")` {}; '
            "`ro.riemannian_adamw` {}, with {} misses",
            lambda: [*step_of_one_sided(), *untuned_steps()],
        ),
        Sentence(
            ("README.md", "docs/recipes/energy.md"),
            "with the loss as a gate and synaptic caching it needs {} and {} of the energy of caching alone, "
            "and {} and {} times the examples",
            lambda: [*over_caching(GATED, "energy", 2), *over_caching(GATED, "examples", 1)],
        ),
        Sentence(
            ("docs/recipes/energy.md",),
            "Without the gate it needs {} and {} of that energy.",
            lambda: over_caching(UNGATED, "energy", 2),
        ),
        Sentence(
            ("docs/evidence.md",),
            "on the {} seeds on which all three arrive the averaged gradient spends {} flat, {} shifted "
            "and {} in the metric.",
            lambda: modern(
                "SGD, averaged gradient",
                "shifted multiplicative metric, averaged gradient",
                "multiplicative metric, averaged gradient",
            ),
        ),
        Sentence(
            ("docs/evidence.md",),
            "On the {} seeds of the modern network on which competition alone arrives it spends {}, with the "
            "metric {}.",
            lambda: modern("competition by layer", "multiplicative metric + competition"),
        ),
        Sentence(
            ("README.md",),
            "A million weights, AdamW's best rate, {} seeds, on CPUs:",
            lambda: [word(len(SEEDS))],
        ),
        Sentence(("docs/evidence.md",), "Means of {} fresh seeds, on text", lambda: [word(len(SEEDS))]),
        Sentence(
            ("docs/evidence.md",),
            "Every optimiser has the same {} trials on each (up to {} where",
            trials,
        ),
        Sentence(
            ("docs/evidence.md",),
            "{} million weights in one matrix, and a Transformer's tree of {} million in {} arrays;",
            trees,
        ),
        Sentence(
            ("docs/optimisers.md",),
            "(width 64 has {} million weights, width 512 has {} million):",
            sizes,
        ),
        Sentence(
            ("docs/optimisers.md",),
            "and AdamW's best rates in the table within a factor of {}.",
            lambda: [adamw_factor()],
        ),
        Sentence(
            ("docs/limits.md",),
            "A factorisation of users and items ended at {} times the error of AdamW with a schedule "
            "(Optax's own form at {}, `riemannian_adamw` at {}).",
            tables_of_embeddings,
        ),
        Sentence(
            ("docs/optimisers.md",),
            "With nothing else tuned `riemannian_adamw` misses {} of {} far targets of the "
            "[report](../benchmarks/REPORT.md) at that rate, `riemannian_schedule_free` {} and "
            "`riemannian_eigenbasis` {}.",
            untuned_misses,
        ),
        Sentence(
            ("riemann_optax/optimizers/rate.py",),
            "AdamW's best ones on Transformers of {} to {} million weights "
            "(``python -m benchmarks.drop_in``) within a factor of {}.",
            lambda: [*sizes(), adamw_factor()],
        ),
        Sentence(
            ("docs/optimisers.md",),
            "At width 768 and 8k tokens a step is {} more operations "
            "(and {} for the refresh every 10 steps); at 512k tokens it is under {}.",
            turning,
        ),
        Sentence(
            ("docs/evidence.md",),
            "Byte-level language model, {} steps, loss over {} fresh seeds, each rate tuned alike on "
            "{} other seed:",
            language_model,
        ),
        Sentence(
            ("docs/evidence.md",),
            "and peers at a smaller size: {} steps, {} fresh seeds,",
            lambda: forms("eigenbasis_forms.json")[1:],
        ),
        Sentence(
            ("docs/evidence.md",),
            "a network of five times as many weights: {} steps, {} fresh seeds.",
            lambda: forms("eigenbasis_forms_full.json")[1:],
        ),
        Sentence(
            ("docs/phis.md",),
            "(batches of {}, medians of {} turns, `python -m benchmarks.phi_cost`). "
            "Half of the turns lie within {} of the median.",
            phi_cost,
        ),
        Sentence(
            ("docs/recipes/precision.md",),
            "On a CPU a whole training step takes {} of AdamW's time",
            lambda: phi_ratio("momentum_activity"),
        ),
        Sentence(
            ("docs/evidence.md",),
            "the chain pulled to the initial weights has {} and {}, that to isometries {} and {}, RMSprop "
            "with L2-Init {} and {}, SGD with continual backpropagation {} and {}.",
            lambda: one_setting("published", (1, 1), LONG_CHAIN, LONG_ISOMETRIC_CHAIN, *WITH_ONE_STREAM),
        ),
        Sentence(
            ("docs/evidence.md",),
            "The chain that renews dormant units has {} on permuted labels and {} on the noise shift, where "
            "less is better; the chain that renews silent units has {} and {}. RMSprop has {} and {} with "
            "continual backpropagation, {} and {} with ReDo, {} and {} with soft resets.",
            lambda: one_setting("digits", (1, 3), DORMANT_CHAIN, SILENT_CHAIN, *ON_RMSPROP),
        ),
        Sentence(("docs/recipes/training.md",), "no longer AdamW's: begin at {}, and", relative_rate),
        Sentence(
            ("docs/recipes/training.md",),
            "One rate for all six networks costs at most {} nats per byte with the rule, and {} without. At "
            "each network's own best rate the loss is the same to {} with the rule and without:",
            lambda: [*relative_loss(), *relative()],
        ),
    )


def fill(results: Path) -> dict[Path, str]:
    """Return every file that has such sentences, with the numbers of the records."""
    pages: dict[Path, str] = {}
    for sentence in sentences(results):
        for name in sentence.files:
            path = ROOT / name
            pages[path] = sentence.filled(pages.get(path) or path.read_text())
    return pages
