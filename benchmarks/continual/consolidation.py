"""Who takes part where nothing may be forgotten: penalties by importance, as part of the loss and metric."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import riemann_optax as ro
from benchmarks.continual.images import Params, mean_fisher, reversed_fisher
from benchmarks.continual.network import permuted_once
from benchmarks.continual.peers import penalties
from benchmarks.continual.renewal import Transformation, Values
from benchmarks.shared.experiment import Method, Role
from benchmarks.shared.tuning import Axis

OURS, OURS_IN_CLASSES = "metric, bounded", "metric x activity"
RATE = 0.5  # at the start of every task; it cools to 0 within each, linearly (tried: cosine, on seeds 0-19)
# From state, parameters, and the inputs and labels of a task to the state that has consolidated them.
Boundary = Callable[[optax.OptState, Params, jax.Array, jax.Array], optax.OptState]


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


def under_both(values: Values, schedule: optax.Schedule) -> Transformation:
    """Build the penalty under the product of two metrics: what was important, and what is active.

    The second is RMSprop's: on it alone this is RMSprop, and the pull is divided by both.
    """
    return optax.chain(
        ro.compute_metric(fisher(), alpha=values["rate"] * values["strength"]),
        ro.add_anchored_weights(values["strength"], ro.anchor.task_boundary_weights(), precision="phi"),
        ro.multiply_metric(
            ro.phi.weighted_sum(
                ro.phi.activity(decay=0.9), ro.phi.from_weights(jnp.ones_like), weights=[1.0, FLOOR]
            )
        ),
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
    return ro.phi.limited_mean(fisher(), limit=limit_of(values))


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


FLOOR = 1e-4  # of the second metric, where nothing is active
MEMORY = 0.7  # of the tasks before, where the Fisher information fades
ADAPTIVE = {"RMSprop": optax.rmsprop, "Adam": optax.adam}
TWO = {"rate": Axis(0.5), "strength": Axis(8.0)}
THREE = TWO | {"bound": Axis(0.05)}
# On an optimiser that rescales gradients, and the penalty with them.
SLOW, SLOW_PATH = ({"rate": Axis(0.002), "strength": Axis(strength, 4.0)} for strength in (8.0, 1.0))
# Where two classes are learned at a time it is strong pulls and small steps that keep the others.
FIRM, FIRM_PULL = ({"rate": Axis(0.05), "strength": Axis(strength, 4.0)} for strength in (4096.0, 32.0))
STRONG, STRONG_REVERSED, STRONG_PATH = (
    {"rate": Axis(0.0005), "strength": Axis(strength, 4.0)} for strength in (4096.0, 160.0, 16.0)
)

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

# With the Fisher information of the logits' negatives: it does not vanish where the network is sure.
WITH_REVERSED: dict[str, Method] = {
    "metric x activity, reversed logits": Method(under_both, "ours", STRONG_REVERSED),
    "metric, reversed logits": consolidated(lambda values: fisher(), FIRM),
    "EWC-DR": penalised(elastic, FIRM_PULL),
    **{
        f"{name} + EWC-DR": penalised(elastic, STRONG_REVERSED, optimiser=tx) for name, tx in ADAPTIVE.items()
    },
}
FIRMLY: dict[str, Mapping[str, Axis]] = {
    **dict.fromkeys(("metric", "metric, memory 0.7"), FIRM),
    **dict.fromkeys(("EWC", "online EWC, memory 0.7"), FIRM_PULL),
    **{f"{name} + EWC": STRONG for name in ADAPTIVE},
    "synaptic intelligence": {"rate": Axis(0.05), "strength": Axis(1.0, 4.0)},
    **{f"{name} + synaptic intelligence": STRONG_PATH for name in ADAPTIVE},
}
# Without the bounded metric, which is not ours here, and its controls.
IN_CLASSES = {
    OURS_IN_CLASSES: Method(under_both, "ours", STRONG),
    **{name: METHODS[name]._replace(axes=axes) for name, axes in FIRMLY.items()},
    **WITH_REVERSED,
    **WITH_NOTHING,
}
ALL = METHODS | IN_CLASSES


def boundary_of(name: str) -> Boundary:
    """Return what a method does at the end of a task: most need a Fisher information, some nothing."""
    if name in WITH_NOTHING:
        return lambda state, params, inputs, labels: state
    if name in WITH_PATH:
        return lambda state, params, inputs, labels: ro.consolidate(state, params)
    if name in WITH_REVERSED:
        return lambda state, params, inputs, labels: ro.consolidate(
            state, params, reversed_fisher(params, inputs, labels)
        )
    return lambda state, params, inputs, labels: ro.consolidate(state, params, mean_fisher(params, inputs))
