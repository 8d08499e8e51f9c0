"""How the contestants are built from a learning rate and their other hyper-parameters."""

from typing import Any, Literal

import jax
import optax

import riemann_optax as ro

Side = Literal["both", "vector"]  # matrices, or vectors too


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
    """Build Adafactor without the scale of the parameters, which the other contestants do not have either."""
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
    return ro.riemannian_adamw(
        rate, b1, b2, nesterov=False, phi=ro.phi.activity(decay=0.99), alpha=alpha, conformal=None
    )


def nadamw_in_frame(rate: optax.Schedule, alpha: Any, b1: Any, b2: Any) -> optax.GradientTransformation:
    """Build Riemannian AdamW with Nesterov momentum."""
    return ro.riemannian_adamw(
        rate, b1, b2, nesterov=True, phi=ro.phi.activity(decay=0.99), alpha=alpha, conformal=None
    )


def _schedule_free(
    rate: optax.Schedule, b1: Any, base: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Build the average of iterates that stands in for momentum and the falling rate."""
    base = optax.chain(base, optax.scale_by_learning_rate(rate))
    return optax.contrib.schedule_free(base, rate, b1)


def factored_free(rate: optax.Schedule, alpha: Any, decay: Any, b1: Any) -> optax.GradientTransformation:
    """Build the factored metric under schedule-free averaging: half of the state of Adam."""
    return _schedule_free(rate, b1, stages(ro.phi.factored_activity(decay=decay), alpha))


def eigenbasis_free(
    rate: optax.Schedule, alpha: Any, decay: Any, b1: Any, sides: Side = "both"
) -> optax.GradientTransformation:
    """Build the metric in the eigenbasis under schedule-free averaging."""
    turned = ro.in_eigenbasis(stages(ro.phi.activity(decay=decay), alpha), sides=sides)
    return _schedule_free(rate, b1, turned)


def soap_free(rate: optax.Schedule, b1: Any, b2: Any, sides: Side = "both") -> optax.GradientTransformation:
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
