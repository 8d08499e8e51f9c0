"""Who takes part: how each is built from a learning rate and other hyper-parameters, and what is tuned."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import optax

import riemann_optax as ro
from benchmarks.shared.experiment import Role
from benchmarks.shared.kl_factors import kl_factors
from benchmarks.shared.tuning import Point
from benchmarks.time_to_target import points
from riemann_optax.examples.schedule import warmup_cosine

Make = Callable[..., optax.GradientTransformation]
Side = Literal["both", "vector"]  # matrices, or vectors too

DEFAULT_BETAS, TUNED_ADAMW, MUON = "AdamW, default betas", "AdamW", "Muon"
MOMENTUM, NADAMW, SOAP, KL_SOAP = "momentum", "NAdamW", "SOAP", "KL-SOAP"
OURS, FACTORED, EIGENBASIS = "metric", "metric, factored", "metric in the eigenbasis"
FACTORED_SCHEDULE_FREE, EIGENBASIS_SCHEDULE_FREE = "factored, schedule-free", "eigenbasis, schedule-free"
VECTORS_SCHEDULE_FREE = "eigenbasis with vectors, schedule-free"
DROP_IN, SCHEDULE_FREE = "riemannian_adamw", "riemannian_schedule_free"
ONE_SIDED, ONE_SIDED_FREE = "riemannian_eigenbasis", "riemannian_schedule_free, one-sided"
OF_GRADIENTS = "riemannian_eigenbasis, of gradients"
IN_FRAME = "AdamW in the frame"
PERMUTED, LEAF_MEAN, NORM_MATCHED = "permuted phi", "leaf-mean phi", "norm-matched base"


class Method(NamedTuple):
    """One optimiser, the hyper-parameters tried with it, and how it is run.

    Attributes:
      make: from a learning rate (a schedule) and the values of a point to the optimiser. Momentum is
        written so that a steady step is as long as the rate says, for all: the best rate then moves little
        from point to point.
      points: the values tried of all hyper-parameters but the rate. Their number divides
        ``fine_trials`` of :class:`benchmarks.time_to_target.search.Tuning`, which are dealt out to them.
      role: what it is in the comparison.
      needs_loss: whether ``update`` wants ``obj_fn``.
      constant: whether the rate stays constant after the warm-up instead of falling to 0.
      evaluated: from the optimiser's state and the parameters to those that are to be judged.
    """

    make: Make
    points: tuple[Point, ...]
    role: Role = "peer"
    needs_loss: bool = False
    constant: bool = False
    evaluated: Callable[[Any, Any], Any] = lambda state, params: params

    def schedule(self, rate: jax.typing.ArrayLike, steps: int) -> optax.Schedule:
        """Return the learning rate over a run: 5% of warm-up, then a cosine to 0 (or constant)."""
        if self.constant:
            return optax.linear_schedule(0.0, rate, max(1, steps // 20))
        return warmup_cosine(rate, steps)


def _momentum(rate: optax.Schedule, momentum: Any, nesterov: bool) -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(momentum, nesterov=nesterov),
        optax.scale(1 - momentum),
        optax.scale_by_learning_rate(rate),
    )


def heavy_ball(rate: optax.Schedule, momentum: Any) -> optax.GradientTransformation:
    """Build SGD with momentum, its steady step as long as the rate says."""
    return _momentum(rate, momentum, nesterov=False)


def nesterov(rate: optax.Schedule, momentum: Any) -> optax.GradientTransformation:
    """Build the same with Nesterov momentum."""
    return _momentum(rate, momentum, nesterov=True)


def rmsprop(rate: optax.Schedule, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build RMSprop with all the liberties of ours: no bias, and Nesterov momentum behind it."""
    scaled = optax.scale_by_rms(decay, eps_in_sqrt=False, bias_correction=True)
    return optax.chain(scaled, nesterov(rate, momentum))


def adafactor(rate: optax.Schedule, decay_rate: Any, momentum: Any) -> optax.GradientTransformation:
    """Build Adafactor without the scale of the parameters, which the other methods do not have either."""
    return optax.adafactor(
        rate,
        min_dim_size_to_factor=8,  # the matrices here are small
        decay_rate=decay_rate,
        momentum=momentum,
        multiply_by_parameter_scale=False,
    )


def sm3(rate: optax.Schedule, momentum: Any) -> optax.GradientTransformation:
    """Build SM3."""
    return optax.chain(optax.scale_by_sm3(momentum), optax.scale_by_learning_rate(rate))


def soap(rate: optax.Schedule, b1: Any, b2: Any) -> optax.GradientTransformation:
    """Build Adam in the eigenbasis of Shampoo's factors."""
    adam = ro.in_eigenbasis(optax.scale_by_adam(b1, b2), second_moments="keep")
    return optax.chain(adam, optax.scale_by_learning_rate(rate))


def stages(
    phi: optax.GradientTransformation, alpha: Any, conformal: bool = True
) -> optax.GradientTransformation:
    """Return both stages, with the scale of the gradient's own if ``conformal``."""
    return ro.scale_by_metric(phi, alpha, conformal="tree" if conformal else None)


def metric(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build the conformal activity metric with Nesterov momentum on the tangent."""
    return optax.chain(stages(ro.phi.activity(decay=decay), alpha), nesterov(rate, momentum))


def factored(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build the same of a value per row and column: half of Adam's state."""
    return optax.chain(stages(ro.phi.factored_activity(decay=decay), alpha), nesterov(rate, momentum))


def plain(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build the metric of the equations alone, with Nesterov momentum on the tangent."""
    return optax.chain(stages(ro.phi.activity(decay=decay), alpha, conformal=False), nesterov(rate, momentum))


def eigenbasis(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build the conformal activity metric and its momentum in the eigenbasis."""
    inner = optax.chain(stages(ro.phi.activity(decay=decay), alpha), optax.trace(momentum, nesterov=True))
    return optax.chain(ro.in_eigenbasis(inner), optax.scale(1 - momentum), optax.scale_by_learning_rate(rate))


def _between(
    rate: optax.Schedule, alpha: Any, decay: Any, *last: optax.GradientTransformation
) -> optax.GradientTransformation:
    return optax.chain(
        ro.compute_metric(ro.phi.activity(decay=decay), alpha, conformal="tree"),
        *last,
        optax.scale_by_learning_rate(rate),
    )


def in_frame(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build Nesterov momentum in the orthonormal frame, between both roots of the metric."""
    trace = optax.chain(optax.trace(momentum, nesterov=True), optax.scale(1 - momentum))
    return _between(rate, alpha, decay, ro.in_orthonormal_frame(trace))


def on_covector(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build Nesterov momentum on the gradient, before the metric divides."""
    trace = optax.chain(optax.trace(momentum, nesterov=True), optax.scale(1 - momentum))
    return _between(rate, alpha, decay, ro.on_gradient(trace), ro.scale_by_inverse_metric())


def adamw_in_frame(rate: optax.Schedule, alpha: Any, b1: Any, b2: Any) -> optax.GradientTransformation:
    """Build Riemannian AdamW."""
    return _adam_in_frame(rate, alpha, optax.scale_by_adam(b1, b2))


def nadamw_in_frame(rate: optax.Schedule, alpha: Any, b1: Any, b2: Any) -> optax.GradientTransformation:
    """Build Riemannian AdamW with Nesterov momentum."""
    return _adam_in_frame(rate, alpha, optax.scale_by_adam(b1, b2, nesterov=True))


def _adam_in_frame(
    rate: optax.Schedule, alpha: Any, adam: optax.GradientTransformation
) -> optax.GradientTransformation:
    return optax.chain(
        ro.compute_metric(ro.phi.activity(decay=0.99), alpha),
        ro.in_orthonormal_frame(adam),
        optax.add_decayed_weights(1e-4),
        optax.scale_by_learning_rate(rate),
    )


def _schedule_free(
    rate: optax.Schedule, b1: Any, base: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Build the average of iterates that stands in for momentum and the falling rate."""
    base = optax.chain(base, optax.scale_by_learning_rate(rate))
    return optax.contrib.schedule_free(base, rate, b1)


def factored_schedule_free(
    rate: optax.Schedule, alpha: Any, decay: Any, b1: Any
) -> optax.GradientTransformation:
    """Build the factored metric under schedule-free averaging: half of the state of Adam."""
    return _schedule_free(rate, b1, stages(ro.phi.factored_activity(decay=decay), alpha))


def eigenbasis_schedule_free(
    rate: optax.Schedule, alpha: Any, decay: Any, b1: Any, sides: Side = "both"
) -> optax.GradientTransformation:
    """Build the metric in the eigenbasis under schedule-free averaging."""
    turned = ro.in_eigenbasis(stages(ro.phi.activity(decay=decay), alpha), sides=sides)
    return _schedule_free(rate, b1, turned)


def soap_schedule_free(
    rate: optax.Schedule, b1: Any, b2: Any, sides: Side = "both"
) -> optax.GradientTransformation:
    """Build RMSprop in the eigenbasis, the peer of the former."""
    rms = optax.scale_by_rms(b2, eps_in_sqrt=False, bias_correction=True)
    return _schedule_free(rate, b1, ro.in_eigenbasis(rms, sides=sides, second_moments="keep"))


def composite(rate: optax.Schedule, energy: Any, decay: Any) -> optax.GradientTransformation:
    """Build the paper's own reading, plasticity and energy: activity and ``|w|``, each of mean 1."""
    parts = ro.phi.activity(decay=decay), ro.phi.maintenance_energy()
    phi = ro.phi.weighted_sum(*[ro.phi.unit_mean(part, over="tree") for part in parts], weights=[1.0, energy])
    return optax.chain(stages(phi, 100.0), nesterov(rate, 0.9))


def alpha_schedule(rate: optax.Schedule, start: Any, factor: Any) -> optax.GradientTransformation:
    """Build the metric with an alpha that changes by ``factor`` every hundred steps."""

    def alpha(count: jax.Array) -> jax.Array:
        return start * factor ** (count / 100)

    return metric(rate, alpha, 0.97, 0.9)


def permuted(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build the metric with the values of phi in random places."""
    return optax.chain(stages(ro.phi.permuted(ro.phi.activity(decay=decay)), alpha), nesterov(rate, momentum))


def leaf_mean(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build the metric with the mean of phi in every leaf."""
    return optax.chain(
        stages(ro.phi.leaf_mean(ro.phi.activity(decay=decay)), alpha), nesterov(rate, momentum)
    )


def norm_matched(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build Nesterov momentum whose steps are as long as those of the metric."""
    return ro.norm_matched_base(nesterov(1.0, momentum), metric(rate, alpha, decay, momentum))


EVALUATED = optax.contrib.schedule_free_eval_params


def averaged(
    make: Make,
    points: tuple[Point, ...],
    role: Role = "peer",
    evaluated: Callable[[Any, Any], Any] = EVALUATED,
) -> Method:
    """Return a schedule-free method: its rate stays constant, and averages of iterates are judged."""
    return Method(make, points, role, constant=True, evaluated=evaluated)


# Whole optimisers at their own defaults: nothing but the rate is tuned. The warm-up is the suite's.
ALIASES: dict[str, Method] = {
    DROP_IN: Method(ro.riemannian_adamw, ({},), "ours"),
    SCHEDULE_FREE: averaged(
        partial(ro.riemannian_schedule_free, warmup_steps=0), ({},), "ours", ro.eval_params
    ),
    ONE_SIDED: Method(ro.riemannian_eigenbasis, ({},), "ours"),
    OF_GRADIENTS: Method(partial(ro.riemannian_eigenbasis, gradient_share=1.0), ({},), "ours"),
    ONE_SIDED_FREE: averaged(
        partial(ro.riemannian_schedule_free, warmup_steps=0, sides="smaller"), ({},), "ours", ro.eval_params
    ),
}

# The peers of the aliases: Optax's own at their published defaults, and nothing but the rate tuned either.
PUBLISHED: dict[str, Method] = {
    "NAdamW, published": Method(optax.nadamw, ({},)),
    "Muon, published": Method(optax.contrib.muon, ({},)),
    "SOAP, published": Method(ro.soap, ({},)),
    "schedule-free AdamW, published": averaged(optax.contrib.schedule_free_adamw, ({},)),
}
RATE_ONLY = ALIASES | PUBLISHED
# What finds its rate by itself, and is run at a rate of 1 without any trial.
RATE_FREE: dict[str, Method] = {"Prodigy": Method(optax.contrib.prodigy, ({},))}
# What is run with nothing tuned: Muon's rate has other units than ``ro.starting_rate``.
UNTUNED = tuple(name for name in (*RATE_ONLY, *RATE_FREE) if name != "Muon, published")


def starting_exponent(params: Any) -> float:
    """Return where the library tells people to begin with a model of that size, as a power of two."""
    return round(math.log2(ro.starting_rate(params)), 4)


def untuned_exponent(name: str, params: Any) -> float:
    """Return the rate at which a method is run with nothing tuned, as a power of two."""
    return 0.0 if name in RATE_FREE else starting_exponent(params)


METHODS: dict[str, Method] = RATE_ONLY | {
    "SGD": Method(optax.sgd, ({},)),
    MOMENTUM: Method(heavy_ball, points.MOMENTA),
    "Nesterov": Method(nesterov, points.MOMENTA),
    DEFAULT_BETAS: Method(optax.adamw, points.WEIGHT_DECAYS),
    TUNED_ADAMW: Method(optax.adamw, points.BETAS),
    NADAMW: Method(optax.nadamw, points.BETAS),
    "RMSprop with Nesterov": Method(rmsprop, points.RMSPROP),
    "Adagrad": Method(optax.adagrad, points.ADAGRAD),
    "Adafactor": Method(adafactor, points.ADAFACTOR),
    "SM3": Method(sm3, points.SM3),
    "Lion": Method(optax.lion, points.LION),
    MUON: Method(optax.contrib.muon, points.MUON),
    "Sophia": Method(optax.contrib.sophia, points.SOPHIA, needs_loss=True),
    "schedule-free AdamW": averaged(optax.contrib.schedule_free_adamw, points.BETAS),
    SOAP: Method(soap, points.SOAP),
    KL_SOAP: Method(partial(kl_factors, second_moment=True), points.KL_SOAP),
    "SOAP, schedule-free": averaged(soap_schedule_free, points.BETAS),
    "SOAP with vectors, schedule-free": averaged(partial(soap_schedule_free, sides="vector"), points.BETAS),
    OURS: Method(metric, points.DESIGNS, "ours"),
    FACTORED: Method(factored, points.DESIGNS, "ours"),
    EIGENBASIS: Method(eigenbasis, points.EIGENBASIS, "ours"),
    FACTORED_SCHEDULE_FREE: averaged(factored_schedule_free, points.SCHEDULE_FREE_FACTORED, "ours"),
    EIGENBASIS_SCHEDULE_FREE: averaged(eigenbasis_schedule_free, points.SCHEDULE_FREE_DESIGNS, "ours"),
    VECTORS_SCHEDULE_FREE: averaged(
        partial(eigenbasis_schedule_free, sides="vector"), points.SCHEDULE_FREE_DESIGNS, "ours"
    ),
    "metric, not conformal": Method(plain, points.NOT_CONFORMAL, "design"),
    "momentum in the frame": Method(in_frame, points.DESIGNS, "design"),
    "momentum on the covector": Method(on_covector, points.DESIGNS, "design"),
    IN_FRAME: Method(adamw_in_frame, points.ADAMW_IN_FRAME, "design"),
    "NAdamW in the frame": Method(nadamw_in_frame, points.NADAMW_IN_FRAME, "design"),
    "activity and energy": Method(composite, points.COMPOSITE, "design"),
    "alpha by schedule": Method(alpha_schedule, points.ALPHA_SCHEDULE, "design"),
    PERMUTED: Method(permuted, points.DESIGNS[:1], "control"),  # it sorts at every step
    LEAF_MEAN: Method(leaf_mean, points.DESIGNS, "control"),
    NORM_MATCHED: Method(norm_matched, points.DESIGNS, "control"),
}
