"""One training run, compiled once for all rates, points and seeds of a method on a task."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.shared import memory
from benchmarks.shared.statistics import numbers
from benchmarks.shared.tuning import Point
from benchmarks.time_to_target.methods import Method
from benchmarks.time_to_target.task import Task


class Run(NamedTuple):
    """What one run measured.

    Attributes:
      steps: at which the loss was evaluated, the last being the whole run.
      loss: the followed loss there; infinite from where it was not finite any more.
      energy: ``sum |dw|`` over all weights, up to there.
      held_out: loss at the end on examples not trained on, nan where the task has none.
      seconds: of the run, without compiling.
      compile_seconds: of the program that made it.
    """

    steps: np.ndarray
    loss: np.ndarray
    energy: np.ndarray
    held_out: float
    seconds: float
    compile_seconds: float = 0.0

    def first_at(self, target: float) -> int | None:
        """Return the index of the first evaluation at or below ``target``, None if there is none."""
        reached = np.flatnonzero(self.loss <= target)
        return int(reached[0]) if reached.size else None

    def steps_to(self, target: float) -> float:
        """Return the steps to ``target``; a miss is infinite."""
        index = self.first_at(target)
        return np.inf if index is None else float(self.steps[index])

    def energy_to(self, target: float) -> float:
        """Return ``sum |dw|`` up to ``target``; a miss is infinite."""
        index = self.first_at(target)
        return np.inf if index is None else float(self.energy[index])


def recorded(found: Mapping[str, Any]) -> Run:
    """Return a run as its record has it; what was not finite stands there as None."""
    return Run(
        np.asarray(found["steps"]),
        numbers(found["loss"]),
        numbers(found["energy"]),
        float(numbers([found["held_out"]], np.nan)[0]),
        found["seconds"],
        found["compile_seconds"],
    )


class Trainer:
    """Trains a method on a task.

    Attributes:
      compile_seconds: of the first call.
      state_bytes: of the optimiser, per byte of the parameters.
    """

    def __init__(self, task: Task, method: Method, steps: int | None = None) -> None:
        """Prepare; ``steps`` shortens the task."""
        self._task, self._method = task, method
        self._steps = steps or task.steps
        self._every = max(1, self._steps // task.evaluations)
        self._compiled: Callable[..., Any] | None = None
        self._parameters: dict[int, Any] = {}
        self.compile_seconds = 0.0
        self.state_bytes = self._state_bytes()

    def _build(self, rate: jax.typing.ArrayLike, point: Point) -> optax.GradientTransformationExtraArgs:
        schedule = self._method.schedule(rate, self._steps)
        return optax.with_extra_args_support(self._method.make(schedule, **point))

    def _state_bytes(self) -> float:
        params = self.parameters(0)
        tx = self._build(1e-3, self._method.points[0])

        def size(tree: Any) -> int:
            return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

        return size(jax.eval_shape(tx.init, params)) / size(params)

    def parameters(self, seed: int) -> Any:
        """Return the initial parameters of a seed."""
        if seed not in self._parameters:
            self._parameters[seed] = self._task.init(seed)
        return self._parameters[seed]

    def _step(
        self, tx: optax.GradientTransformationExtraArgs, params: Any, state: Any, batch: Any
    ) -> tuple[Any, Any, Any]:
        """Return the new parameters and state, and the updates between them."""
        loss = self._task.loss
        gradients = jax.grad(loss)(params, batch)
        extra = {"obj_fn": lambda p: loss(p, batch)} if self._method.needs_loss else {}
        updates, state = tx.update(gradients, state, params, **extra)
        return optax.apply_updates(params, updates), state, updates

    def step_bytes(self) -> int | None:
        """Return the bytes that a training step holds at once, as XLA plans them; None where it has no plan.

        They are weights, state, a batch and all that is made of them on the way. Nothing is run.
        """
        tx = self._build(1e-3, self._method.points[0])
        params = jax.eval_shape(lambda: self._task.init(0))
        state = jax.eval_shape(tx.init, params)
        batch = jax.eval_shape(self._task.sample, jax.random.key(0))
        step = jax.jit(lambda *held: self._step(tx, *held)[:2], donate_argnums=(0, 1))
        return memory.of_program(step.lower(params, state, batch).compile())

    def _train(self, params: Any, rate: jax.Array, point: Point, key: jax.Array) -> Any:
        task, method = self._task, self._method
        tx = self._build(rate, point)

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state, energy = carry
            params, state, updates = self._step(tx, params, state, task.sample(key))
            return (params, state, energy + optax.tree.norm(updates, ord=1)), None

        def between_evaluations(carry: Any, keys: jax.Array) -> Any:
            carry, _ = jax.lax.scan(step, carry, keys)
            params, state, energy = carry
            return carry, (task.followed(method.evaluated(state, params)), energy)

        keys = jax.random.split(key, (self._steps // self._every, self._every))
        start = (params, tx.init(params), jnp.zeros([]))
        (params, state, _), (losses, energies) = jax.lax.scan(between_evaluations, start, keys)
        params = method.evaluated(state, params)
        return losses, energies, task.held_out(params) if task.held_out else jnp.nan

    def __call__(self, rate: float, point: Point, seed: int) -> Run:
        """Train at a rate and a point on a seed."""
        arguments = (
            self.parameters(seed),
            jnp.float32(rate),
            {name: jnp.float32(value) for name, value in point.items()},
            jax.random.fold_in(jax.random.key(1), seed),
        )
        if self._compiled is None:
            began = time.perf_counter()
            self._compiled = jax.jit(self._train).lower(*arguments).compile()
            self.compile_seconds = time.perf_counter() - began
        began = time.perf_counter()
        losses, energies, held_out = jax.block_until_ready(self._compiled(*arguments))
        seconds = time.perf_counter() - began
        losses = np.asarray(losses, np.float64)
        # A run that has diverged once does not count as recovered.
        losses[np.cumsum(~np.isfinite(losses)) > 0] = np.inf
        steps = self._every * np.arange(1, len(losses) + 1)
        return Run(
            steps, losses, np.asarray(energies, np.float64), float(held_out), seconds, self.compile_seconds
        )


def untrained(task: Task, seed: int) -> float:
    """Return the followed loss of the initial parameters."""
    return float(task.followed(task.init(seed)))


def zero_rate(task: Task, method: Method, seed: int) -> float:
    """Return the followed loss after a short run at a rate of 0."""
    return float(Trainer(task, method, steps=20)(0.0, method.points[0], seed).loss[-1])
