"""Time, traffic and memory of one update."""

import time
from typing import Any, NamedTuple

import jax
import optax

from benchmarks.shared import memory
from benchmarks.shared.statistics import quartiles
from benchmarks.step_cost import problems
from benchmarks.step_cost.methods import ALL

COPY, COPY_BYTES = "copy", 8  # the yardstick of bandwidth: each value is read, changed and written
_METHODS = {COPY: lambda: optax.GradientTransformation(optax.init_empty_state, _leave), **ALL}


def _leave(updates: Any, state: Any, params: Any = None) -> Any:
    """Move each weight without looking at its gradient, which is then not read."""
    del updates
    return jax.tree.map(lambda p: 1e-3 * p, params), state


class Cost(NamedTuple):
    """What one update of an optimiser costs on one problem.

    Attributes:
      seconds: median over rounds of the seconds of one update.
      spread: interquartile range of the same.
      compile_seconds: seconds to trace and compile the update.
      bytes_per_parameter: XLA's own count of bytes moved, per parameter.
      state_bytes_per_parameter: bytes of optimiser state, per parameter.
      peak_bytes_per_parameter: bytes that an update holds at once as XLA plans it, gradient and weights among
        them; None in older records.
    """

    seconds: float
    spread: float
    compile_seconds: float
    bytes_per_parameter: float
    state_bytes_per_parameter: float
    peak_bytes_per_parameter: float | None = None


class _Stepper:
    """One optimiser with its own parameters and state, compiled, ready to take steps."""

    def __init__(self, name: str, tree: Any, gradients: Any) -> None:
        tx = optax.with_extra_args_support(_METHODS[name]())
        self.params = problems.values(tree, 0.1, seed=1)
        self.state = tx.init(self.params)
        self.gradients = gradients
        self.weights = problems.size(tree)

        def update(gradients: Any, params: Any, state: Any) -> Any:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        start = time.perf_counter()
        self.step = jax.jit(update, donate_argnums=(1, 2)).lower(gradients, self.params, self.state).compile()
        self.compile_seconds = time.perf_counter() - start
        self.seconds: list[float] = []

    def run(self, steps: int) -> None:
        start = time.perf_counter()
        for _ in range(steps):
            self.params, self.state = self.step(self.gradients, self.params, self.state)
        jax.block_until_ready(self.params)
        self.seconds.append((time.perf_counter() - start) / steps)

    def cost(self) -> Cost:
        low, middle, high = quartiles(self.seconds)
        analysis, peak = self.step.cost_analysis() or {}, memory.of_program(self.step)
        return Cost(
            seconds=middle,
            spread=high - low,
            compile_seconds=self.compile_seconds,
            bytes_per_parameter=analysis.get("bytes accessed", float("nan")) / self.weights,
            state_bytes_per_parameter=sum(leaf.nbytes for leaf in jax.tree.leaves(self.state)) / self.weights,
            peak_bytes_per_parameter=None if peak is None else peak / self.weights,
        )


def measure(problem: str, names: list[str], rounds: int, steps: int, report: Any = None) -> dict[str, Cost]:
    """Time all optimisers on one problem in one run, taking turns.

    Args:
      problem: A name of ``problems.PROBLEMS``.
      names: optimisers, names of ``methods.ALL``, or ``COPY``.
      rounds: how many turns each takes, at least 4; the first is thrown away.
      steps: updates in a turn.
      report: called with the name before each compilation and turn.

    Returns:
      The costs by name.
    """
    tree = problems.PROBLEMS[problem]()
    gradients = problems.values(tree, 0.01, seed=0)
    steppers = {}
    for name in names:
        if report is not None:
            report(f"compiling {name}")
        steppers[name] = _Stepper(name, tree, gradients)
    for round_number in range(rounds):
        for name in names if round_number % 2 else reversed(names):
            if report is not None:
                report(f"round {round_number + 1}/{rounds}: {name}")
            steppers[name].run(steps)
    for stepper in steppers.values():
        del stepper.seconds[0]
    return {name: stepper.cost() for name, stepper in steppers.items()}
