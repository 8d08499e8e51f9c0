"""Training runs, each kept as a line of JSON as soon as it is done, so that a stopped benchmark goes on."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.language_model.contestants import Contestant
from riemann_optax.examples import data, models
from riemann_optax.examples.schedule import warmup_cosine

LAST = 50  # steps whose losses are averaged into the loss a run ends with
BIN = 20  # steps averaged into one point of a curve


class Size(NamedTuple):
    """How large the experiment is.

    Attributes:
      steps: Of a run: 5% warm-up, then a cosine.
      batch: Windows in a batch.
      window: Bytes of context.
      tuning_seeds: Seeds the rate is chosen on; all rates and contestants see the same batches of a seed.
      seeds: Fresh seeds the chosen rate is reported on.
      rates: Exponents ``k`` of the grid ``0.01 * 2**k`` to begin with; widened for all while one is best on
        its edge.
      widenings: How often.
    """

    steps: int = 600
    batch: int = 16
    window: int = 64
    tuning_seeds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    rates: tuple[int, ...] = (-1, 0, 1)
    widenings: int = 4


FULL = Size()
QUICK = Size(steps=20, batch=2, window=16, tuning_seeds=(0,), seeds=(10, 11), rates=(0, 1), widenings=0)


def rate_value(exponent: int) -> float:
    """Return the peak rate of an exponent."""
    return 0.01 * 2.0**exponent


class Run(NamedTuple):
    """One training run.

    Attributes:
      loss: Mean training loss of the last steps, in nats per byte; infinite where it diverged.
      validation: Loss on all windows of the validation text.
      curve: Mean training loss of each bin of steps.
      seconds: Of training, with compilation in a contestant's first run.
    """

    loss: float
    validation: float
    curve: list[float]
    seconds: float


def trainer(contestant: Contestant, size: Size) -> Callable[[float, int], Run]:
    """Return a function that trains at a rate on a seed, compiled once for all of its calls."""
    dataset = data.load_text(window=size.window)
    train, validation = (
        {name: jnp.asarray(array) for name, array in dataset.parts[part].items()}
        for part in ("train", "validation")
    )
    windows = dataset.evaluation_indices("validation")
    windows = jnp.asarray(windows[: len(windows) // size.batch * size.batch].reshape(-1, size.batch))
    model = models.build("transformer", dataset, seed=0)

    def loss(params: Any, part: dict[str, jax.Array], indices: jax.Array) -> jax.Array:
        inputs, targets = dataset.take(part, indices)
        logits = model.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @jax.jit
    def whole(params: Any, rate: jax.Array, batches: jax.Array) -> tuple[jax.Array, jax.Array]:
        tx = contestant.make(warmup_cosine(rate, size.steps))

        def step(carry: Any, indices: jax.Array) -> Any:
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params, train, indices)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), batches)
        return losses, jnp.mean(jax.lax.map(lambda indices: loss(params, validation, indices), windows))

    def run(rate: float, seed: int) -> Run:
        began = time.perf_counter()
        params = models.build("transformer", dataset, seed=seed).parameters
        batches = np.stack(
            [data.batch_indices(dataset.num_train, size.batch, seed, step) for step in range(size.steps)]
        )
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


class Records:
    """All runs made so far, one line each."""

    def __init__(self, path: Path, size: Size, progress: Callable[[str], None] = lambda text: None) -> None:
        """Read the runs that the file already holds."""
        self._path, self._size, self._progress = path, size, progress
        self._runs: dict[str, Run] = {}
        self._trainers: dict[str, Callable[[float, int], Run]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            record = json.loads(line)
            key = record.pop("key")
            self._runs[key] = Run(**record)

    def get(self, contestant: Contestant, exponent: int, seed: int) -> Run:
        """Return a run, from the file or by training."""
        rate, size = rate_value(exponent), self._size
        key = f"{contestant.name} | rate {rate:g} | seed {seed} | {size.steps}x{size.batch}x{size.window}"
        if key not in self._runs:
            self._progress(f"{contestant.name}: rate {rate:g}, seed {seed}")
            if contestant.name not in self._trainers:
                self._trainers[contestant.name] = trainer(contestant, size)
            self._runs[key] = self._trainers[contestant.name](rate, seed)
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, **self._runs[key]._asdict()}) + "\n")
        return self._runs[key]


def tune(
    contestants: Sequence[Contestant], records: Records, size: Size
) -> tuple[dict[str, int], dict[str, dict[int, float]]]:
    """Return the best exponent of each tuned contestant, and the mean tuning loss of all of one grid."""
    grid = list(size.rates)
    for widening in range(size.widenings + 1):
        losses = {
            contestant.name: {
                k: float(np.mean([records.get(contestant, k, seed).loss for seed in size.tuning_seeds]))
                for k in grid
            }
            for contestant in contestants
            if contestant.rate_of is None
        }
        best = {name: min(by_rate, key=by_rate.__getitem__) for name, by_rate in losses.items()}
        low, high = grid[0] in best.values(), grid[-1] in best.values()
        if widening == size.widenings or not (low or high):
            break
        grid = [grid[0] - 1] * low + grid + [grid[-1] + 1] * high
    return best, losses
