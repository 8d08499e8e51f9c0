"""Training runs, and the choice of each method's rate."""

import functools
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.eigenbasis import problems
from benchmarks.eigenbasis.methods import METHODS
from benchmarks.shared.experiment import Method, Size
from benchmarks.shared.records import Records
from benchmarks.shared.statistics import numbers
from riemann_optax.examples import data
from riemann_optax.examples.schedule import warmup_cosine

LAST = 50  # steps whose losses are averaged into the loss a run ends with
BIN = 20  # steps averaged into one point of a curve


class Grid(NamedTuple):
    """The rates that are tried.

    Attributes:
      exponents: ``k`` of the rates ``0.01 * 2**k`` to begin with; widened for all while one is best on its
        edge.
      widenings: how often.
    """

    exponents: tuple[int, ...]
    widenings: int


# All rates and methods see the same batches of a seed. A run is 5% warm-up, then a cosine.
FULL = Size({"steps": 600, "batch": 16, "window": 64}, tuning_seeds=(0,), seeds=(10, 11, 12, 13, 14))
QUICK = Size({"steps": 20, "batch": 2, "window": 16}, tuning_seeds=(0,), seeds=(10, 11))
FULL_GRID, QUICK_GRID = Grid((-1, 0, 1), widenings=4), Grid((0, 1), widenings=0)


def rate_value(exponent: int) -> float:
    """Return the peak rate of an exponent."""
    return 0.01 * 2.0**exponent


class Run(NamedTuple):
    """One training run: how it ended.

    Attributes:
      loss: mean training loss of the last steps, in nats; infinite where it diverged.
      validation: loss on the validation part.
      curve: mean training loss of each bin of steps.
      seconds: of training, with compilation in a method's first run.
    """

    loss: float
    validation: float
    curve: list[float]
    seconds: float


def trainer(
    method: Method, steps: int, batch: int, text: Path | None = None, **shape: int
) -> Callable[[float, int], Run]:
    """Return a function that trains at a rate on a seed, compiled once for all of its calls.

    Args:
      method: what trains.
      steps: of a run.
      batch: examples in a batch.
      text: a file to learn instead of Python's help topics.
      shape: of model and examples, as :func:`benchmarks.eigenbasis.problems.load` takes it.
    """
    problem = problems.load(text, **shape)
    validation = problem.validation
    validation = jnp.asarray(validation[: len(validation) // batch * batch].reshape(-1, batch))
    model = problem.model(0)

    def loss(params: Any, part: str, indices: jax.Array) -> jax.Array:
        inputs, targets = problem.take(part, indices)
        logits = model.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @jax.jit
    def whole(params: Any, rate: jax.Array, batches: jax.Array) -> tuple[jax.Array, jax.Array]:
        tx = method.make(warmup_cosine(rate, steps))

        def step(carry: Any, indices: jax.Array) -> Any:
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params, "train", indices)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), batches)
        held_out = jax.lax.map(lambda indices: loss(params, "validation", indices), validation)
        return losses, jnp.mean(held_out)

    def run(rate: float, seed: int) -> Run:
        began = time.perf_counter()
        params = problem.model(seed).parameters
        batches = np.stack([data.batch_indices(problem.examples, batch, seed, step) for step in range(steps)])
        losses, held_out = jax.block_until_ready(whole(params, jnp.asarray(rate), batches))
        losses = np.asarray(losses, np.float64)
        finite = np.all(np.isfinite(losses))
        return Run(
            loss=float(losses[-LAST:].mean()) if finite else np.inf,
            validation=float(held_out) if finite else np.inf,
            curve=losses.reshape(-1, BIN).mean(1).tolist() if finite else [],
            seconds=time.perf_counter() - began,
        )

    return run


@functools.cache
def digest(text: Path) -> str:
    """Return the name of a file and what tells its bytes from those of another."""
    return f"{text.name} {hashlib.sha256(text.read_bytes()).hexdigest()[:12]}"


class Laboratory:
    """The runs of all methods at one size, each kept as soon as it is done."""

    def __init__(
        self,
        records: Records,
        size: Size,
        progress: Callable[[str], None] = lambda text: None,
        methods: Mapping[str, Method] = METHODS,
        text: Path | None = None,
    ) -> None:
        """``progress`` is told what is run next; ``text`` is a file to learn."""
        self._text = text
        self._methods = methods
        self._records, self._size, self._progress = records, size, progress
        self._trainers: dict[str, Callable[[float, int], Run]] = {}

    def run(self, name: str, exponent: int, seed: int) -> Run:
        """Return a run of a method, from the records or by training."""
        rate = rate_value(exponent)
        key = {"method": name, "rate": rate, "seed": seed, "length": dict(self._size.length)}
        if self._text is not None:
            key["text"] = digest(self._text)

        def make() -> dict[str, Any]:
            self._progress(f"{name}: rate {rate:g}, seed {seed}")
            if name not in self._trainers:
                self._trainers[name] = trainer(self._methods[name], text=self._text, **self._size.length)
            return self._trainers[name](rate, seed)._asdict()

        found = self._records.get(key, make)
        ended = {part: float(numbers([found[part]])[0]) for part in ("loss", "validation")}
        return Run(**found | ended)

    def tune(self, grid: Grid) -> tuple[dict[str, int], dict[str, dict[int, float]]]:
        """Return the best exponent of each tuned method, and the mean tuning loss of all of one grid."""
        tuned = [name for name, method in self._methods.items() if method.point_of is None]
        exponents = list(grid.exponents)
        for widening in range(grid.widenings + 1):
            losses = {
                name: {
                    k: float(np.mean([self.run(name, k, seed).loss for seed in self._size.tuning_seeds]))
                    for k in exponents
                }
                for name in tuned
            }
            best = {name: min(by_rate, key=by_rate.__getitem__) for name, by_rate in losses.items()}
            low, high = exponents[0] in best.values(), exponents[-1] in best.values()
            if widening == grid.widenings or not (low or high):
                break
            exponents = [exponents[0] - 1] * low + exponents + [exponents[-1] + 1] * high
        return best, losses
