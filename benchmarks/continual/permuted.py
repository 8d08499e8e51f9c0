"""Permuted images with a penalty for forgetting, as a stream: what holds at which strength of the pull."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import riemann_optax as ro
from benchmarks.continual.images import (
    LAYERS,
    Data,
    Params,
    accuracy,
    draw_network,
    forward,
    loss,
    make_data,
    mean_fisher,
    orders,
)
from benchmarks.continual.job import Job
from benchmarks.continual.measures import DEAD, PROBE, RANK, forgetting, liveliness
from benchmarks.continual.network import permuted_once
from benchmarks.continual.peers import penalties
from benchmarks.continual.renewal import Values
from benchmarks.shared import lanes
from benchmarks.shared.experiment import Method, Role
from benchmarks.shared.tuning import Axis

OURS = "metric, bounded"
RATE = 0.5  # at the start of every task; it cools to 0 within each, linearly (tried: cosine, on seeds 0-19)
Transformation = optax.GradientTransformation
Boundary = Callable[[optax.OptState, Params, jax.Array], optax.OptState]


def bounded(phi: Transformation, limit: jax.Array) -> optax.GradientTransformationExtraArgs:
    """Scale phi down where its mean over the tree exceeds ``limit``: a bounded sum of consolidation.

    The sum of the Fisher information over tasks grows without end, and with it the rigidity of everything;
    bounded, each new task shares what there is with the ones before.
    """
    phi = optax.with_extra_args_support(phi)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        values, state = phi.update(updates, state, params, **extra_args)
        leaves = jax.tree.leaves(values)
        mean = sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)
        share = jnp.where(mean > limit, limit / jnp.where(mean > 0, mean, 1), 1)
        return jax.tree.map(lambda value: share * value, values), state

    return optax.GradientTransformationExtraArgs(phi.init, update)


def fisher() -> optax.GradientTransformationExtraArgs:
    """Build phi: the sum of the Fisher information of the finished tasks."""
    return ro.phi.online_ewc(running=False)


def schedule_of(values: Values, schedule: optax.Schedule) -> optax.Schedule:
    """Return the schedule, which starts at ``RATE``, with the start that is tried."""
    return lambda count: schedule(count) * values["rate"] / RATE


def under_metric(
    values: Values, schedule: optax.Schedule, phi: Transformation, precision: Any = "phi"
) -> Transformation:
    """Build the penalty under the metric ``E = 1 + rate * lambda * phi``."""
    return optax.chain(
        ro.compute_metric(phi, alpha=values["rate"] * values["strength"]),
        ro.add_anchored_weights(values["strength"], ro.anchor.task_boundary_weights(), precision=precision),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(schedule_of(values, schedule)),
    )


def under_no_metric(
    values: Values,
    schedule: optax.Schedule,
    penalty: Transformation,
    optimiser: Callable[[optax.Schedule], Transformation] = optax.sgd,
) -> Transformation:
    """Build a penalty as part of the loss of an optimiser."""
    return optax.chain(penalty, optimiser(schedule_of(values, schedule)))


def limit_of(values: Values) -> jax.Array:
    """Return the largest mean phi: that at which the mean of E is ``1 + bound``."""
    return values["bound"] / (values["rate"] * values["strength"])


def pull_of(values: Values, phi: Transformation) -> Transformation:
    """Build the penalty weighted by a phi, as part of the loss."""
    return ro.add_anchored_weights(values["strength"], ro.anchor.task_boundary_weights(), precision=phi)


def norm_matched(values: Values, schedule: optax.Schedule) -> Transformation:
    """Build the plain penalty with the step lengths of ours."""
    phi = bounded_fisher(values)
    return ro.norm_matched_base(
        under_no_metric(values, schedule, pull_of(values, phi)), under_metric(values, schedule, phi)
    )


def consolidated(
    phi: Callable[[Values], Transformation], axes: Mapping[str, Axis], role: Role = "ours"
) -> Method:
    """Return the penalty under the metric of a phi."""
    return Method(lambda values, schedule: under_metric(values, schedule, phi(values)), role, axes)


def penalised(
    penalty: Callable[[Values], Transformation],
    axes: Mapping[str, Axis],
    role: Role = "peer",
    optimiser: Callable[[optax.Schedule], Transformation] = optax.sgd,
) -> Method:
    """Return a penalty as part of the loss."""
    return Method(
        lambda values, schedule: under_no_metric(values, schedule, penalty(values), optimiser), role, axes
    )


def bounded_fisher(values: Values) -> Transformation:
    """Return the phi of ours."""
    return bounded(fisher(), limit_of(values))


def elastic(values: Values) -> Transformation:
    """Return the penalty of elastic weight consolidation."""
    return penalties.ewc(values["strength"])


def fading(values: Values) -> Transformation:
    """Return the penalty of online elastic weight consolidation."""
    return penalties.ewc(values["strength"], memory=MEMORY)


def path_integral(values: Values) -> Transformation:
    """Return the penalty of synaptic intelligence."""
    return penalties.synaptic_intelligence(values["strength"])


def shuffled(values: Values) -> Transformation:
    """Return the phi of ours on the wrong weights."""
    return permuted_once(bounded_fisher(values), jax.random.key(1))


def plain(values: Values, schedule: optax.Schedule) -> Transformation:
    """Build gradient descent."""
    return optax.sgd(schedule_of(values, schedule))


def nothing(values: Values, schedule: optax.Schedule) -> Transformation:
    """Build what leaves the weights as they are drawn."""
    return optax.set_to_zero()


MEMORY = 0.7  # of the tasks before, where the Fisher information fades
ADAPTIVE = {"RMSprop": optax.rmsprop, "Adam": optax.adam}
TWO = {"rate": Axis(0.5), "strength": Axis(8.0)}
THREE = TWO | {"bound": Axis(0.05)}
# On an optimiser that rescales gradients, and the penalty with them.
SLOW, SLOW_PATH = ({"rate": Axis(0.002), "strength": Axis(strength, 4.0)} for strength in (8.0, 1.0))

# By what a method has to know at the end of a task. ``make`` takes values and the schedule of the rate.
WITH_FISHER: dict[str, Method] = {
    OURS: consolidated(bounded_fisher, THREE),
    "metric": consolidated(lambda values: fisher(), TWO),
    "EWC": penalised(elastic, TWO),
    "re-tuned base: EWC, bounded": penalised(
        lambda values: pull_of(values, bounded_fisher(values)), THREE, "control"
    ),
    "permuted phi": consolidated(shuffled, THREE, "control"),
    "leaf-mean phi": consolidated(lambda values: ro.phi.leaf_mean(bounded_fisher(values)), THREE, "control"),
    "norm-matched base": Method(norm_matched, "control", {}, point_of=OURS),
    "online EWC, memory 0.7": penalised(fading, TWO),
    "metric, memory 0.7": consolidated(lambda values: ro.phi.online_ewc(memory=MEMORY, running=False), TWO),
    **{f"{name} + EWC": penalised(elastic, SLOW, optimiser=tx) for name, tx in ADAPTIVE.items()},
}
WITH_PATH: dict[str, Method] = {
    "synaptic intelligence": penalised(path_integral, {"rate": Axis(0.5), "strength": Axis(1.0)}),
    **{
        f"{name} + synaptic intelligence": penalised(path_integral, SLOW_PATH, optimiser=tx)
        for name, tx in ADAPTIVE.items()
    },
}
WITH_NOTHING: dict[str, Method] = {
    "SGD": Method(plain, "base", {"rate": Axis(0.5)}),
    "untrained": Method(nothing, "control", {}),
}
METHODS = WITH_FISHER | WITH_PATH | WITH_NOTHING


def boundary_of(name: str) -> Boundary:
    """Return what a method does at the end of a task: most need the Fisher information, some nothing."""
    if name in WITH_NOTHING:
        return lambda state, params, inputs: state
    if name in WITH_PATH:
        return lambda state, params, inputs: ro.consolidate(state, params)
    return lambda state, params, inputs: ro.consolidate(state, params, mean_fisher(params, inputs))


class Task(NamedTuple):
    """What belongs to a seed while a task is learned.

    Attributes:
      data: of the seed.
      inputs: those to train on, with the task's permutation of the pixels.
      labels: of them.
      batches: which examples each step has.
    """

    data: Any
    inputs: jax.Array
    labels: jax.Array
    batches: jax.Array


class Protocol(NamedTuple):
    """What a task is, and how all of them are tested.

    Attributes:
      draw: from the data of a seed, the seed, the number of a task, epochs and batch to the task.
      tested: from parameters and the data of a seed to the accuracy on each task.
      tasks: how many there are.
      epochs: of each.
      batch: examples per step.
    """

    draw: Callable[..., Task]
    tested: Callable[[Params, Any], jax.Array]
    tasks: int
    epochs: int
    batch: int


def batches_of(seed: jax.Array, number: jax.Array, examples: int, epochs: int, batch: int) -> jax.Array:
    """Return the rows of every step of a task."""
    key = jax.random.fold_in(jax.random.key(seed), number + 1)
    return orders(key, jnp.arange(examples), epochs, batch)


def draw_task(data: Data, seed: jax.Array, number: jax.Array, epochs: int, batch: int) -> Task:
    """Draw the batches of a task."""
    batches = batches_of(seed, number, len(data.train_labels), epochs, batch)
    return Task(data, data.train_inputs[:, data.permutations[number]], data.train_labels, batches)


def tested(params: Params, data: Data) -> jax.Array:
    """Return the accuracy on every permutation."""
    return jax.vmap(lambda p: accuracy(params, data.test_inputs[:, p], data.test_labels))(data.permutations)


def learner(boundary: Boundary, tested: Callable[[Params, Any], jax.Array]) -> Callable[..., Any]:
    """Return what learns a task, consolidates at its end, tests all tasks and looks at the hidden units."""

    def learn(build, values, params, state, task: Task):
        tx = build(values, None)

        def step(carry, batch):
            params, state = carry
            gradients = jax.grad(loss)(params, task.inputs[batch], task.labels[batch])
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, state), task.batches)
        state = boundary(state, params, task.inputs)
        hidden = forward(params, task.inputs[:PROBE])[1][1:]
        return params, state, jnp.concatenate([tested(params, task.data), jnp.stack(liveliness(hidden))])

    return learn


def learned(job: Job, data: Any, protocol: Protocol) -> list[lanes.Scores]:
    """Learn all tasks; the curve is the mean accuracy over the tasks so far.

    Args:
      job: what is run.
      data: of all seeds, with a first axis for them.
      protocol: what a task is.
    """
    layers = (job.images.inputs.shape[1], *LAYERS[1:-1], job.images.classes)
    tasks, seeds = protocol.tasks, jnp.asarray(job.seeds)

    def of_number(data: Any, seed: jax.Array, number: jax.Array) -> Task:
        return protocol.draw(data, seed, number, protocol.epochs, protocol.batch)

    draw = jax.jit(jax.vmap(of_number, (0, 0, None)))
    steps = jax.eval_shape(draw, data, seeds, 0).batches.shape[1]
    cooling = optax.linear_schedule(RATE, 0.0, steps)

    def schedule(count: jax.Array) -> jax.Array:
        return cooling(count % steps)

    def build(values: Values, key: Any) -> Transformation:
        return METHODS[job.method].make(values, schedule)

    def drawn() -> Iterator[Task]:
        for number in range(tasks):
            yield draw(data, seeds, number)
            job.advance(1 / tasks)

    keys = jax.vmap(jax.random.key)(seeds)
    params = jax.jit(jax.vmap(lambda key: draw_network(key, layers)))(keys)
    learn = learner(boundary_of(job.method), protocol.tested)
    measured = lanes.learned(learn, build, job.points, params, keys, drawn())
    # points x seeds x learned x (tested, then what is measured of the units)
    return [scores(of_point, tasks) for of_point in np.stack([*measured], axis=2)]


def scores(measured: np.ndarray, tasks: int) -> lanes.Scores:
    """Sum up measures of shape (seeds, learned, tasks + 2): accuracies of all tasks, rank and dead units."""
    table = 100 * measured[..., :tasks]
    return lanes.Scores(
        {
            "all tasks": table[:, -1].mean(1),
            "last task": table[:, -1, -1],
            "forgetting": forgetting(table),
            RANK: measured[:, -1, tasks],
            DEAD: measured[:, -1, tasks + 1],
        },
        np.asarray([table[:, task, : task + 1].mean() for task in range(tasks)]),
    )


def run(job: Job, *, tasks: int, epochs: int, batch: int) -> list[lanes.Scores]:
    """Learn permutations of the pixels, one after the other.

    Args:
      job: what is run.
      tasks: how many.
      epochs: of each.
      batch: examples per step.
    """
    data = [make_data(seed, tasks, job.images) for seed in job.seeds]
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)
    return learned(job, data, Protocol(draw_task, tested, tasks, epochs, batch))
