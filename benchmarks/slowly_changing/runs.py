"""Running a method on many seeds at once, and keeping what was run so that a stopped search can go on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.slowly_changing.methods import METHODS
from benchmarks.slowly_changing.problem import draw_learner, draw_target, draw_task, learn_task

BIN = 20_000  # steps whose errors are averaged into one point of the curve


@dataclass(frozen=True)
class Size:
    """How large an experiment is.

    Attributes:
      tasks: How many times the slow bits change, and one.
      steps: Steps between two changes.
      tuning_seeds: Seeds on which the rates are chosen.
      seeds: Fresh seeds on which the chosen rate is reported.
    """

    tasks: int = 100
    steps: int = 10_000
    tuning_seeds: range = range(10)
    seeds: range = range(10, 40)

    @property
    def name(self) -> str:
        """The size in a key of the records."""
        return f"{self.tasks}x{self.steps}"


PUBLISHED = Size()
QUICK = Size(tasks=3, steps=200, tuning_seeds=range(2), seeds=range(2, 5))


@dataclass(frozen=True)
class Run:
    """Errors of one method at one rate.

    Attributes:
      whole: Mean squared error of the whole run, one number per seed.
      curve: Mean over the seeds in each bin of the run.
    """

    whole: list[float]
    curve: list[float]


def run(name: str, rates: Sequence[float], seeds: Sequence[int], size: Size) -> list[Run]:
    """Learn all tasks at every rate on every seed: target, learner, noise and inputs are the seed's own."""
    make = METHODS[name].make

    def start(rate, seed):
        target_key, learner_key, noise_key, stream_key = jax.random.split(jax.random.key(seed), 4)
        params = draw_learner(learner_key)
        return draw_target(target_key), params, make(rate, noise_key).init(params), stream_key

    def learn(rate, target, params, state, key):
        key, task_key = jax.random.split(key)
        inputs = draw_task(task_key, size.steps)
        # The key of the noise is in the state by now.
        tx = make(rate, jax.random.key(0))
        params, state, errors = learn_task(tx, params, state, inputs, target(inputs))
        return params, state, key, errors.mean()

    lanes = [jnp.asarray(axis.ravel()) for axis in np.meshgrid(rates, seeds, indexing="ij")]
    targets, params, states, keys = jax.jit(jax.vmap(start))(*lanes)
    learn_all = jax.jit(jax.vmap(learn))
    errors = []
    for _ in range(size.tasks):
        params, states, keys, error = learn_all(lanes[0], targets, params, states, keys)
        errors.append(error)
    # One table of tasks x seeds for each rate.
    tables = np.asarray(jnp.stack(errors), np.float64).reshape(size.tasks, len(rates), len(seeds))
    per_bin = max(BIN // size.steps, 1)
    runs = []
    for table in tables.transpose(1, 0, 2):
        bins = [float(table[first : first + per_bin].mean()) for first in range(0, size.tasks, per_bin)]
        runs.append(Run(whole=table.mean(0).tolist(), curve=bins))
    return runs


class Records:
    """All runs made so far, in one JSON file."""

    def __init__(self, path: Path, size: Size) -> None:
        """Read the runs that the file already holds."""
        self._path, self._size = path, size
        self._runs = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, rates: Sequence[float], seeds: range) -> list[Run]:
        """Return a run for each rate, from the file or by making them."""
        texts = ", ".join(f"{rate:g}" for rate in rates)
        key = f"{name} | rates {texts} | seeds {seeds.start}-{seeds.stop - 1} | {self._size.name}"
        if key not in self._runs:
            self._runs[key] = [asdict(one) for one in run(name, rates, seeds, self._size)]
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._runs, indent=1) + "\n")
            partial.replace(self._path)
        return [Run(**one) for one in self._runs[key]]
