"""Training runs of the optimisers at one rate, kept as soon as they are done."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

import riemann_optax as ro
from benchmarks.drop_in.shapes import Shape, task
from benchmarks.shared.records import Records
from benchmarks.shared.statistics import numbers
from benchmarks.time_to_target.methods import Method
from benchmarks.time_to_target.runs import Trainer

ADAMW, NADAMW, OURS = "optax.adamw", "optax.nadamw", "ro.riemannian_adamw"
SOAP, MUON = "ro.soap", "optax.contrib.muon, consistent_rms=0.2"  # which takes AdamW's rates
EIGENBASIS = "ro.riemannian_eigenbasis"
OF_MOMENTUM = "ro.riemannian_eigenbasis, gradient_share=0.0"
OF_GRADIENTS = "ro.riemannian_eigenbasis, gradient_share=1.0"
RELATIVE = "ro.riemannian_adamw, multiply_by_parameter_scale"
METHODS = {
    ADAMW: Method(optax.adamw, ({},)),
    NADAMW: Method(optax.nadamw, ({},)),
    OURS: Method(ro.riemannian_adamw, ({},), "ours"),
    MUON: Method(partial(optax.contrib.muon, consistent_rms=0.2), ({},)),
    SOAP: Method(ro.soap, ({},)),
    EIGENBASIS: Method(ro.riemannian_eigenbasis, ({},), "ours"),
    OF_MOMENTUM: Method(partial(ro.riemannian_eigenbasis, gradient_share=0.0), ({},), "ours"),
    OF_GRADIENTS: Method(partial(ro.riemannian_eigenbasis, gradient_share=1.0), ({},), "ours"),
    # At the alpha that was the default when these runs were made: at 10,000 OURS differs by a thousandth.
    RELATIVE: Method(
        partial(ro.riemannian_adamw, multiply_by_parameter_scale=True, alpha=100.0), ({},), "ours"
    ),
}
AT_ONE_RATE = (ADAMW, NADAMW, OURS, MUON, SOAP, OF_GRADIENTS, EIGENBASIS, OF_MOMENTUM)  # on the largest
RATES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
# Of a relative step, as wide a range, 16 times higher: the root mean square of a kernel is about 1/16.
RELATIVE_RATES = tuple(16 * rate for rate in RATES)


def rates_of(name: str) -> tuple[float, ...]:
    """Return the rates that an optimiser is tried at."""
    return RELATIVE_RATES if name == RELATIVE else RATES


def called(name: str, rate: float) -> str:
    """Return an optimiser at a rate, as a program has it."""
    maker, _, options = name.partition(", ")
    return f"{maker}({rate:g}, {options})" if options else f"{maker}({rate:g})"


class Run(NamedTuple):
    """What one run measured.

    Attributes:
      validation: loss at the end on text that was not trained on, in nats per byte; infinite if it diverged.
      state: bytes of the optimiser's state per byte of parameters.
      weights: their number.
      seconds_per_step: of training, without compiling.
    """

    validation: float
    state: float
    weights: int
    seconds_per_step: float


class Laboratory:
    """The runs of all optimisers."""

    def __init__(self, records: Records, progress: Callable[[str], None] = lambda text: None) -> None:
        """``progress`` is told what is run next."""
        self._records, self._progress = records, progress
        self._last: tuple[Any, Trainer] | None = None

    def run(self, shape: Shape, name: str, rate: float, seed: int) -> Run:
        """Return a run, from the records or by training."""
        key = {"shape": shape._asdict(), "optimizer": name, "rate": rate, "seed": seed}

        def make() -> dict[str, Any]:
            self._progress(f"width {shape.width}, depth {shape.depth}: {name} at {rate:g}, seed {seed}")
            if self._last is None or self._last[0] != (shape, name):
                self._last = (shape, name), Trainer(task(shape), METHODS[name])
            trainer = self._last[1]
            run = trainer(rate, {}, seed)
            weights = sum(leaf.size for leaf in jax.tree.leaves(trainer.parameters(seed)))
            return Run(float(run.loss[-1]), trainer.state_bytes, weights, run.seconds / shape.steps)._asdict()

        found = self._records.get(key, make)
        return Run(**found | {"validation": float(numbers([found["validation"]])[0])})
