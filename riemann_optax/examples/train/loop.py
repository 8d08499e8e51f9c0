"""The training loop: a few steps per compiled call, with measurements kept on the way.

Everything a run is made of stands in :class:`Run`, and everything the loop does to it is a pure function of
that, the seed and the step. A run restored from a checkpoint therefore continues to the same bits.
"""

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import riemann_optax as ro
from riemann_optax._tree import find_states
from riemann_optax.boundary import consolidating_states
from riemann_optax.examples.data import PARTS, Dataset, batch_indices
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.models import Model, Parameters
from riemann_optax.examples.train.optimizers import energy_spent, recorded_metric
from riemann_optax.examples.train.placement import Placement

# Steps of one compiled call. Calls end on multiples of this whatever happens in between, so that a resumed
# run executes the same compiled programs as an unbroken one.
CHUNK = 10

_EVALUATION_BATCH = 256


class Training(NamedTuple):
    """What a step changes: the weights and the state of the optimiser."""

    parameters: Parameters
    optimizer_state: optax.OptState


@dataclass
class Run:
    """One optimiser's run so far.

    Attributes:
      training: weights and optimiser state after ``step`` steps.
      step: number of steps taken.
      history: measurements, as plain lists and numbers that JSON can hold: ``layers`` (names of the
        parameter arrays), ``training`` and ``validation`` (loss and accuracy by step), ``metric``
        (statistics of E and 1/E per layer by step), ``seconds``, ``compile_seconds`` and ``diverged``
        (the step at which the loss ceased to be finite, or None).
    """

    training: Training
    step: int = 0
    history: dict[str, Any] = field(default_factory=dict)


class Problem:
    """A model and its data: the loss of a batch and the scores of a part.

    Args:
      model: the model in functional form.
      dataset: the data, which is put on the device here, once. On several devices, the training part stays
        where it is: each process then brings its share of each batch.
      placement: the devices.
    """

    def __init__(self, model: Model, dataset: Dataset, placement: Placement | None = None) -> None:
        self.model = model
        self.dataset = dataset
        self.placement = placement or Placement()
        parts = [part for part in PARTS if part != "train" or not self.placement.is_sharded]
        self.parts = {part: self.placement.copies(dataset.parts[part]) for part in parts}
        self._evaluate = jax.jit(self._scores)

    def losses(
        self, parameters: Parameters, inputs: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the cross-entropy in nats and the correctness of each prediction, in the targets' shape."""
        logits = self.model.apply(parameters, inputs)
        correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets), correct

    def _scores(
        self, parameters: Parameters, part: dict[str, jax.Array], indices: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def block_sums(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            losses, correct = self.losses(parameters, *self.dataset.take(part, block[0]))
            by_example = (block[1].size, -1)
            return (
                jnp.sum(losses.reshape(by_example).mean(axis=1) * block[1]),
                jnp.sum(correct.reshape(by_example).mean(axis=1) * block[1]),
            )

        loss_sums, correct_sums = jax.lax.map(block_sums, (indices, weights))
        return loss_sums.sum() / weights.sum(), correct_sums.sum() / weights.sum()

    def evaluate(self, part: str, parameters: Parameters) -> dict[str, float]:
        """Return the mean loss and the accuracy over every example of a part."""
        indices, devices = self.dataset.evaluation_indices(part), self.placement.num_devices
        size = -(-min(_EVALUATION_BATCH, len(indices)) // devices) * devices
        padding = -len(indices) % size
        weights = np.pad(np.ones(len(indices), np.float32), (0, padding)).reshape(-1, size)
        blocks = np.pad(indices, (0, padding)).reshape(-1, size)
        mine = self.placement.share(size)
        blocks, weights = self.placement.batches((blocks[:, mine], weights[:, mine]))
        loss, accuracy = self._evaluate(parameters, self.parts[part], blocks, weights)
        return {"loss": float(loss), "accuracy": float(accuracy)}


# What every step gives an optimiser, as Optax's own rules ask for it.
ALWAYS_GIVEN = ("value", "grad", "value_fn", "obj_fn")


def first_of_an_epoch(problem: Problem, state: optax.OptState, targets: int) -> jax.Array | None:
    """Return whether this step begins a new epoch, which is a new task; None where no phi asks.

    The boundaries are counted from the phi's own state, so that a resumed run has them where the unbroken one
    has. An epoch is as many steps as it takes to see as many targets as the training part has.

    Args:
      problem: model and data.
      state: that of the optimiser before the step.
      targets: in a batch: its images, or its positions of a text.
    """
    counts = list(_counts(state))
    if not counts:
        return None
    steps_per_epoch = max(1, problem.dataset.num_train // targets)
    # Some states count from the last boundary and some from the start: this is right for both. All are told
    # of the same boundaries, so one of them is enough.
    begins: jax.Array = (counts[0] > 0) & (counts[0] % steps_per_epoch == 0)
    return begins


def _counts(state: optax.OptState) -> Iterator[jax.Array]:
    """Yield the counts of updates of the states that consolidate at boundaries, in an eigenbasis too."""
    for node in consolidating_states(state):
        if isinstance(node, ro.BoundaryInEigenbasisState):
            yield from _counts(node.inner_state)
        elif callable(node.count):  # the method of tuples
            raise InputError(
                f"{type(node).__name__} consolidates at task boundaries, and the trainer tells where an "
                "epoch begins by its field count, which it lacks: give it one, the number of its updates."
            )
        else:
            yield node.count


def evaluation_parameters(training: Training) -> Parameters:
    """Return the weights to score: the average of a schedule-free optimiser, else the weights themselves."""
    parameters, state = training
    averaged: Parameters = parameters
    if find_states(state, ro.ScheduleFreeState):
        averaged = ro.eval_params(state, parameters)
    for other in find_states(state, optax.contrib.ScheduleFreeState):
        averaged = optax.contrib.schedule_free_eval_params(other, parameters)
    return averaged


def train_steps(
    problem: Problem,
    transformation: optax.GradientTransformationExtraArgs,
    training: Training,
    part: dict[str, jax.Array] | None,
    batches: Any,
) -> tuple[Training, tuple[jax.Array, jax.Array]]:
    """Take one step for each of ``batches``; to be compiled by the caller.

    These are indices ``i32[steps, batch]`` into ``part``; where that is None, the rows themselves, as
    :meth:`riemann_optax.examples.data.Dataset.gather` gives them.

    Beside the gradient, the optimiser gets what its phi declares, and what any Optax optimiser may ask for by
    name: the batch's loss as a function of the weights (``obj_fn`` and ``value_fn``), its ``value`` and its
    ``grad``. The trainer has a single task: for the phis that consolidate at task boundaries a task is an
    epoch.

    Returns:
      The new state and, for each step, the batch's loss and accuracy before it, ``f32[steps]``.
    """

    def objective(parameters: Parameters, examples: Any) -> tuple[jax.Array, jax.Array]:
        losses, correct = problem.losses(parameters, *examples)
        return losses.mean(), correct.mean()

    value_and_grad = ro.value_and_grad(
        objective, (transformation, *ALWAYS_GIVEN), has_aux=True, num_terms=lambda batch: batch[1].size
    )

    def step(training: Training, batch: Any) -> tuple[Training, tuple[jax.Array, jax.Array]]:
        examples = problem.dataset.decode(batch if part is None else problem.dataset.gather(part, batch))
        parameters, state = training
        boundary = first_of_an_epoch(problem, state, examples[1].size)
        told = {} if boundary is None else {"task_boundary": boundary}
        (loss, accuracy), gradients, extra = value_and_grad(parameters, examples, state=state, **told)
        updates, state = transformation.update(gradients, state, parameters, **extra)
        return Training(optax.apply_updates(parameters, updates), state), (loss, accuracy)

    return jax.lax.scan(step, training, batches)


def layer_names(parameters: Parameters) -> list[str]:
    """Return the path of each parameter array, in the order of ``jax.tree.leaves``.

    Examples:
      >>> layer_names({"head": {"kernel": 1.0, "bias": 0.0}})
      ['head/bias', 'head/kernel']
    """
    paths = jax.tree_util.tree_leaves_with_path(parameters)
    return ["/".join(str(key.key) for key in path) for path, _ in paths]


def start(problem: Problem, transformation: optax.GradientTransformationExtraArgs) -> Run:
    """Return a run of no steps from the model's initial weights."""
    # A copy, for the compiled step takes over the buffers it is given.
    parameters = problem.placement.parameters(problem.model.parameters)
    history: dict[str, Any] = {
        "layers": layer_names(parameters),
        "training": [],
        "validation": [],
        "metric": [],
    }
    history |= {"seconds": 0.0, "compile_seconds": 0.0, "diverged": None}
    return Run(Training(parameters, problem.placement.state(transformation, parameters)), 0, history)


def _metric_row(run: Run, schedule: optax.Schedule) -> dict[str, Any] | None:
    """Statistics of E and of the effective rate 1/E per layer, with the learning rate that went with them."""
    recorded = recorded_metric(run.training.optimizer_state)
    if recorded is None:
        return None
    names = ("metric_min", "metric_mean", "metric_max", "rate_min", "rate_mean", "rate_max")
    row: dict[str, Any] = {name: np.asarray(getattr(recorded, name)).tolist() for name in names}
    return {"step": run.step, "learning_rate": float(schedule(run.step - 1)), **row}


def _validate(run: Run, problem: Problem) -> None:
    scores = problem.evaluate("validation", evaluation_parameters(run.training))
    energy = energy_spent(run.training.optimizer_state)
    run.history["validation"].append({"step": run.step, **scores, "energy": energy})


def train(
    run: Run,
    problem: Problem,
    transformation: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    evaluate_every: int,
) -> Iterator[Run]:
    """Train from where ``run`` stands to ``steps`` steps, yielding it after every compiled call.

    Args:
      run: the run to continue; changed in place.
      problem: model and data.
      transformation: the optimiser.
      schedule: its learning rate, only to report effective rates.
      steps: number of steps of the whole run.
      batch_size: examples in a batch.
      seed: the seed of the order of examples.
      evaluate_every: steps between two validations, a multiple of :data:`CHUNK`.

    Yields:
      ``run``, after its weights and its history have moved on.
    """
    compiled: dict[int, Any] = {}
    dataset, placement = problem.dataset, problem.placement
    part = problem.parts.get("train")
    metric_every = CHUNK * max(1, steps // (200 * CHUNK))

    # The data is an argument: as a constant it would be compiled into the program.
    chunk = jax.jit(
        functools.partial(train_steps, problem, transformation),
        donate_argnums=0,
        **placement.outputs(run.training),
    )

    def batches_until(stop: int) -> Any:
        indices = np.stack(
            [batch_indices(dataset.num_train, batch_size, seed, step) for step in range(run.step, stop)]
        )
        if part is not None:
            return indices
        return placement.batches(
            dataset.gather(dataset.parts["train"], indices[:, placement.share(batch_size)])
        )

    if not run.history["validation"]:
        _validate(run, problem)
    while run.step < steps and run.history["diverged"] is None:
        stop = min(steps, run.step + CHUNK - run.step % CHUNK)
        batches, size = batches_until(stop), stop - run.step
        if size not in compiled:
            began = time.perf_counter()
            try:
                lowered = chunk.lower(run.training, part, batches)
            except ValueError as error:  # a phi says what it cannot do
                raise InputError(f"this optimiser cannot train this model: {error}") from error
            compiled[size] = lowered.compile()
            run.history["compile_seconds"] += time.perf_counter() - began
        began = time.perf_counter()
        run.training, (losses, accuracies) = compiled[size](run.training, part, batches)
        loss, accuracy = float(np.mean(losses)), float(np.mean(accuracies))
        run.history["seconds"] += time.perf_counter() - began
        run.step = stop
        run.history["training"].append({"step": stop, "loss": loss, "accuracy": accuracy})
        if not math.isfinite(loss):
            run.history["diverged"] = stop
        ended = stop == steps or run.history["diverged"] is not None
        if ended or stop % metric_every == 0:
            row = _metric_row(run, schedule)
            if row is not None:
                run.history["metric"].append(row)
        if ended or stop % evaluate_every == 0:
            _validate(run, problem)
        yield run
