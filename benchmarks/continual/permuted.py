"""Permuted images with a penalty for forgetting, as a stream: what holds at which strength of the pull."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import riemann_optax as ro
from benchmarks.continual.lanes import Scores, values_of
from benchmarks.continual.methods import Method, Values
from benchmarks.continual.network import permuted_once
from benchmarks.continual.trials import Axis, Point
from benchmarks.peers import penalties
from benchmarks.permuted_digits import runs
from benchmarks.permuted_digits.problem import Images, Params

OURS = "metric, bounded"
Transformation = optax.GradientTransformation


class Size(NamedTuple):
    """How long a run is.

    Attributes:
      tasks: permutations of the pixels, learned one after the other.
      epochs: of each.
      batch: examples per step.
    """

    tasks: int = 10
    epochs: int = 20
    batch: int = 32


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
    """Return the schedule, which starts at ``runs.RATE``, with the start that is tried."""
    return lambda count: schedule(count) * values["rate"] / runs.RATE


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
    phi = bounded(fisher(), limit_of(values))
    return ro.norm_matched_base(
        under_no_metric(values, schedule, pull_of(values, phi)), under_metric(values, schedule, phi)
    )


def on_adaptive(rule: str, optimiser: Callable[[optax.Schedule], Transformation]) -> Method:
    """Return a published penalty on an optimiser that rescales gradients, and the penalty with them."""
    build, strength = PENALTIES[rule]

    def make(values: Values, schedule: optax.Schedule) -> Transformation:
        return under_no_metric(values, schedule, build(values["strength"]), optimiser)

    return Method({"rate": Axis(0.002), "strength": Axis(strength, 4.0)}, make, "peer")


# Each with the centre of its grid on gradient descent.
PENALTIES: dict[str, tuple[Callable[[jax.typing.ArrayLike], Transformation], float]] = {
    "EWC": (penalties.ewc, 8.0),
    "synaptic intelligence": (penalties.synaptic_intelligence, 1.0),
}
ADAPTIVE = {"RMSprop": optax.rmsprop, "Adam": optax.adam}
TWO = {"rate": Axis(0.5), "strength": Axis(8.0)}
THREE = TWO | {"bound": Axis(0.05)}
# ``make`` takes the schedule of the rate in the place of key and network.
METHODS: dict[str, Method] = {
    OURS: Method(THREE, lambda v, s: under_metric(v, s, bounded(fisher(), limit_of(v))), "ours"),
    "metric": Method(TWO, lambda v, s: under_metric(v, s, fisher()), "ours"),
    "EWC": Method(TWO, lambda v, s: under_no_metric(v, s, penalties.ewc(v["strength"])), "peer"),
    "SGD": Method({"rate": Axis(0.5)}, lambda v, s: optax.sgd(schedule_of(v, s)), "base"),
    "re-tuned base: EWC, bounded": Method(
        THREE, lambda v, s: under_no_metric(v, s, pull_of(v, bounded(fisher(), limit_of(v)))), "control"
    ),
    "permuted phi": Method(
        THREE,
        lambda v, s: under_metric(v, s, permuted_once(bounded(fisher(), limit_of(v)), jax.random.key(1))),
        "control",
    ),
    "leaf-mean phi": Method(
        THREE, lambda v, s: under_metric(v, s, ro.phi.leaf_mean(bounded(fisher(), limit_of(v)))), "control"
    ),
    "norm-matched base": Method({}, norm_matched, "control", point_of=OURS),
    "online EWC, memory 0.7": Method(
        TWO, lambda v, s: under_no_metric(v, s, penalties.ewc(v["strength"], memory=0.7)), "peer"
    ),
    "metric, memory 0.7": Method(
        TWO, lambda v, s: under_metric(v, s, ro.phi.online_ewc(memory=0.7, running=False)), "ours"
    ),
    "synaptic intelligence": Method(
        {"rate": Axis(0.5), "strength": Axis(1.0)},
        lambda v, s: under_no_metric(v, s, penalties.synaptic_intelligence(v["strength"])),
        "peer",
    ),
    **{
        f"{name} + {rule}": on_adaptive(rule, optimiser)
        for rule in PENALTIES
        for name, optimiser in ADAPTIVE.items()
    },
    "untrained": Method({}, lambda v, s: optax.set_to_zero(), "control"),
}


def boundary_of(name: str) -> Callable[[optax.OptState, Params, jax.Array], optax.OptState]:
    """Return what a method does at the end of a task: most need the Fisher information, some nothing."""
    if name in ("SGD", "untrained"):
        return lambda state, params, inputs: state
    if name.endswith("synaptic intelligence"):
        return lambda state, params, inputs: ro.consolidate(state, params)
    return runs.fisher_boundary


def run(
    method: Method,
    points: Sequence[Point],
    seeds: range,
    size: Size,
    advance: Callable[[float], None],
    images: Images,
) -> list[Scores]:
    """Learn all tasks at every point on every seed; the curve is the mean accuracy over the tasks so far."""
    name = next(name for name, own in METHODS.items() if own is method)
    scale = runs.Size(size.tasks, size.epochs, size.batch, seeds)
    tables = 100 * runs.run(
        method.make, values_of(points), scale, boundary_of(name), images, advance
    )  # points x seeds x learned x tested
    return [
        Scores(
            {"all tasks": table[:, -1].mean(1), "last task": table[:, -1, -1]},
            np.asarray([table[:, task, : task + 1].mean() for task in range(size.tasks)]),
        )
        for table in tables
    ]
