"""What a training step of one form costs: time, compilation and memory."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.eigenbasis import problems
from benchmarks.eigenbasis.form import Form
from benchmarks.shared import memory
from riemann_optax.examples import data

NEVER = 10**6  # steps between two refreshes where only the other steps are timed
STEADY, ATTEMPTS = 0.05, 4  # of the two measurements of AdamW around a form


class Cost(NamedTuple):
    """What one form costs.

    Attributes:
      state: bytes of state over those of the weights.
      compiling: seconds to trace and compile a training step.
      step: milliseconds of a training step without a refresh.
      refresh: milliseconds that refreshes add to a step, on the average; None where there are none.
      longest: milliseconds of the longest step of a period.
      memory: bytes that a training step holds at once, as XLA plans it; None in older records.
      device_peak: bytes in use at the device's peak, where it counts them and this form raised it.
      step_over_adamw: the mean step, refreshes included, over that of AdamW in the same process, measured
        just before and after; None in older records.
      compiling_over_adamw: likewise of the compilation, over the shorter of the two.
    """

    state: float
    compiling: float
    step: float
    refresh: float | None
    longest: float
    memory: int | None = None
    device_peak: int | None = None
    step_over_adamw: float | None = None
    compiling_over_adamw: float | None = None

    def mean_step(self) -> float:
        """Return milliseconds of a step, refreshes included."""
        return self.step + (self.refresh or 0.0)

    def over(self, base: "Cost") -> tuple[float, float]:
        """Return step and compilation over those of AdamW: of the same process, or of its own record."""
        if self.step_over_adamw is None or self.compiling_over_adamw is None:
            return self.mean_step() / base.mean_step(), self.compiling / base.compiling
        return self.step_over_adamw, self.compiling_over_adamw


def measure(form: Form, length: dict[str, Any], text: Path | None = None, seconds: float = 3.0) -> Cost:
    """Time training steps of one form, one by one: three periods, and more until ``seconds`` have passed."""
    shape = {name: value for name, value in length.items() if name not in ("steps", "batch")}
    problem = problems.load(text, **shape)
    model, period, before = problem.model(0), 10, memory.device_peak()

    def stepper(**options: Any) -> tuple[Any, Any, float]:
        if form.every == "update_every":
            options["settling_steps"] = 0  # the cost of a step once the bases have settled
        tx = optax.with_extra_args_support(form.make(0.003, **options))

        def loss(params: Any, indices: jax.Array) -> jax.Array:
            inputs, targets = problem.take("train", indices)
            logits = model.apply(params, inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        def step(params: Any, state: Any, indices: jax.Array) -> Any:
            updates, state = tx.update(jax.grad(loss)(params, indices), state, params)
            return optax.apply_updates(params, updates), state

        params = jax.tree.map(jnp.copy, model.parameters)
        state = tx.init(params)
        began = time.perf_counter()
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch(0)).compile()
        return compiled, (params, state), time.perf_counter() - began

    def batch(number: int) -> Any:
        return data.batch_indices(problem.examples, length["batch"], 0, number)

    def times(step: Any, carry: Any) -> np.ndarray[Any, Any]:
        """Return milliseconds of the steps by their place in a period, medians over periods."""
        found: list[float] = []
        while len(found) < 1 + 3 * period or len(found) % period != 1 or sum(found) < 1e3 * seconds:
            indices = batch(len(found))
            began = time.perf_counter()
            carry = jax.block_until_ready(step(*carry, indices))
            found.append(1e3 * (time.perf_counter() - began))
        # The first step finds the bases, and is left out.
        return np.median(np.reshape(found[1:], (-1, period)), axis=0)

    step, carry, compiling = stepper()
    params, state = carry
    whole, kept = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (params, state))
    each = times(step, carry)
    share, held = kept / whole, (memory.of_program(step), memory.raised(before))
    if not form.every:
        return Cost(share, compiling, float(np.mean(each)), None, float(np.max(each)), *held)
    idle, carry, _ = stepper(**{form.every: NEVER})
    alone = float(np.mean(times(idle, carry)))
    return Cost(share, compiling, alone, max(float(np.mean(each)) - alone, 0.0), float(np.max(each)), *held)


def measure_beside(
    adamw: Form, form: Form, length: dict[str, Any], text: Path | None = None, seconds: float = 3.0
) -> Cost:
    """Time a form between two measurements of AdamW: a machine that is slow today is slow for both.

    A machine that changes its speed in between is not: where the two differ by more than ``STEADY``, all is
    measured again, and of ``ATTEMPTS`` those are kept between which they differ least.
    """

    def unsteadiness(attempt: tuple[Cost, Cost, Cost]) -> float:
        steps = attempt[0].mean_step(), attempt[2].mean_step()
        return max(steps) / min(steps) - 1

    attempts: list[tuple[Cost, Cost, Cost]] = []
    while not attempts or (len(attempts) < ATTEMPTS and unsteadiness(attempts[-1]) > STEADY):
        before, found, after = (measure(each, length, text, seconds) for each in (adamw, form, adamw))
        attempts.append((before, found, after))
    before, found, after = min(attempts, key=unsteadiness)
    return found._replace(
        step_over_adamw=2 * found.mean_step() / (before.mean_step() + after.mean_step()),
        compiling_over_adamw=found.compiling / min(before.compiling, after.compiling),
    )


def over_adamw(row: dict[str, Any], adamw: dict[str, Any]) -> tuple[float, float]:
    """Return step and compilation of a recorded row over those of AdamW."""
    return of_record(row).over(of_record(adamw))


def of_record(row: dict[str, Any]) -> Cost:
    """Return what a record has of a cost; older ones lack some of it."""
    return Cost(**{name: row[name] for name in Cost._fields if name in row})
