"""Who takes part, and what of each is tuned."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import optax

import riemann_optax as ro
from riemann_optax.examples.optimizers import warmup_cosine

Point = Mapping[str, float]
Make = Callable[..., optax.GradientTransformation]


class Contestant(NamedTuple):
    """One optimiser and the hyper-parameters tried with it.

    Attributes:
      make: from a learning rate (a schedule) and the values of a point to the optimiser. Momentum is
        written so that a steady step is as long as the rate says, for all: the best rate then moves little
        from point to point.
      points: the values tried of all hyper-parameters but the rate. Their number divides
        :data:`benchmarks.time_to_target.search.FINE_TRIALS`, which are dealt out to them.
      kind: ``"peer"``; ``"ours"``; ``"design"``, another form of ours; ``"control"``, ours without what is
        said to help.
      needs_loss: whether ``update`` wants ``obj_fn``.
      constant: whether the rate stays constant after the warm-up instead of falling to 0.
      evaluated: from the optimiser's state and the parameters to those that are to be judged.
    """

    make: Make
    points: tuple[Point, ...]
    kind: Literal["peer", "ours", "design", "control"] = "peer"
    needs_loss: bool = False
    constant: bool = False
    evaluated: Callable[[Any, Any], Any] = lambda state, params: params

    def schedule(self, rate: jax.typing.ArrayLike, steps: int) -> optax.Schedule:
        """Return the learning rate over a run: 5% of warm-up, then a cosine to 0 (or constant)."""
        if self.constant:
            return optax.linear_schedule(0.0, rate, max(1, steps // 20))
        return warmup_cosine(rate, steps)


def _points(*names: str, values: tuple[tuple[float, ...], ...]) -> tuple[Point, ...]:
    return tuple(dict(zip(names, entry, strict=True)) for entry in values)


def _momentum(rate: optax.Schedule, momentum: Any, nesterov: bool) -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(momentum, nesterov=nesterov),
        optax.scale(1 - momentum),
        optax.scale_by_learning_rate(rate),
    )


def _heavy_ball(rate: optax.Schedule, momentum: Any) -> optax.GradientTransformation:
    return _momentum(rate, momentum, nesterov=False)


def _nesterov(rate: optax.Schedule, momentum: Any) -> optax.GradientTransformation:
    return _momentum(rate, momentum, nesterov=True)


def _rmsprop(rate: optax.Schedule, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build RMSprop with all the liberties of ours: no bias, and Nesterov momentum behind it."""
    scaled = optax.scale_by_rms(decay, eps_in_sqrt=False, bias_correction=True)
    return optax.chain(scaled, _nesterov(rate, momentum))


def _adafactor(rate: optax.Schedule, decay_rate: Any, momentum: Any) -> optax.GradientTransformation:
    return optax.adafactor(
        rate,
        min_dim_size_to_factor=8,  # the matrices here are small
        decay_rate=decay_rate,
        momentum=momentum,
        multiply_by_parameter_scale=False,
    )


def _sm3(rate: optax.Schedule, momentum: Any) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_sm3(momentum), optax.scale_by_learning_rate(rate))


def _soap(rate: optax.Schedule, b1: Any, b2: Any) -> optax.GradientTransformation:
    adam = ro.in_eigenbasis(optax.scale_by_adam(b1, b2), second_moments="keep")
    return optax.chain(adam, optax.scale_by_learning_rate(rate))


def stages(
    phi: optax.GradientTransformation, alpha: Any, conformal: bool = True
) -> optax.GradientTransformation:
    """Return both stages, with the scale of the gradient's own if ``conformal``."""
    edits = [ro.conformal("tree")] if conformal else []
    return optax.chain(ro.compute_metric(phi, alpha), *edits, ro.scale_by_inverse_metric())


def metric(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build the conformal activity metric with Nesterov momentum on the tangent."""
    return optax.chain(stages(ro.phi.activity(decay), alpha), _nesterov(rate, momentum))


def factored(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    """Build the same of a value per row and column: half of Adam's state."""
    return optax.chain(stages(ro.phi.factored_activity(decay), alpha), _nesterov(rate, momentum))


def _plain(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    return optax.chain(stages(ro.phi.activity(decay), alpha, conformal=False), _nesterov(rate, momentum))


def _eigenbasis(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    inner = optax.chain(stages(ro.phi.activity(decay), alpha), optax.trace(momentum, nesterov=True))
    return optax.chain(ro.in_eigenbasis(inner), optax.scale(1 - momentum), optax.scale_by_learning_rate(rate))


def _between(
    rate: optax.Schedule, alpha: Any, decay: Any, *last: optax.GradientTransformation
) -> optax.GradientTransformation:
    return optax.chain(
        ro.compute_metric(ro.phi.activity(decay), alpha),
        ro.conformal("tree"),
        *last,
        optax.scale_by_learning_rate(rate),
    )


def _in_frame(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    trace = optax.chain(optax.trace(momentum, nesterov=True), optax.scale(1 - momentum))
    return _between(rate, alpha, decay, ro.in_orthonormal_frame(trace))


def _on_covector(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    trace = optax.chain(optax.trace(momentum, nesterov=True), optax.scale(1 - momentum))
    return _between(rate, alpha, decay, ro.on_gradient(trace), ro.scale_by_inverse_metric())


def _adamw_in_frame(rate: optax.Schedule, alpha: Any, b1: Any, b2: Any) -> optax.GradientTransformation:
    return ro.riemannian_adamw(rate, b1, b2, alpha=alpha, phi=ro.phi.activity(0.99))


def _composite(rate: optax.Schedule, energy: Any, decay: Any) -> optax.GradientTransformation:
    """Build the paper's own reading, plasticity and energy: activity and ``|w|``, each of mean 1."""
    parts = ro.phi.activity(decay), ro.phi.maintenance_energy()
    phi = ro.phi.weighted_sum([ro.phi.unit_mean(part, over="tree") for part in parts], [1.0, energy])
    return optax.chain(stages(phi, 100.0), _nesterov(rate, 0.9))


def _alpha_schedule(rate: optax.Schedule, start: Any, factor: Any) -> optax.GradientTransformation:
    """Build the metric with an alpha that changes by ``factor`` every hundred steps."""

    def alpha(count: jax.Array) -> jax.Array:
        return start * factor ** (count / 100)

    return metric(rate, alpha, 0.97, 0.9)


def _permuted(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    return optax.chain(stages(ro.phi.permuted(ro.phi.activity(decay)), alpha), _nesterov(rate, momentum))


def _leaf_mean(rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any) -> optax.GradientTransformation:
    return optax.chain(stages(ro.phi.leaf_mean(ro.phi.activity(decay)), alpha), _nesterov(rate, momentum))


def _norm_matched(
    rate: optax.Schedule, alpha: Any, decay: Any, momentum: Any
) -> optax.GradientTransformation:
    return ro.norm_matched_base(_nesterov(1.0, momentum), metric(rate, alpha, decay, momentum))


MOMENTA = _points("momentum", values=((0.9,), (0.8,), (0.95,), (0.98,), (0.7,), (0.5,), (0.85,), (0.99,)))
BETAS = _points(
    "b1",
    "b2",
    values=(
        (0.9, 0.999),
        (0.9, 0.99),
        (0.9, 0.95),
        (0.8, 0.95),
        (0.95, 0.99),
        (0.95, 0.95),
        (0.8, 0.9),
        (0.8, 0.99),
    ),
)
DESIGNS = _points(
    "alpha",
    "decay",
    "momentum",
    values=(
        (100.0, 0.97, 0.9),
        (100.0, 0.99, 0.9),
        (100.0, 0.999, 0.9),
        (10.0, 0.97, 0.9),
        (100.0, 0.97, 0.95),
        (100.0, 0.99, 0.95),
        (100.0, 0.95, 0.8),
        (100.0, 0.97, 0.8),
    ),
)
DEFAULT_BETAS, TUNED_ADAMW, MUON = "AdamW, default betas", "AdamW", "Muon"
MOMENTUM, NADAMW, SOAP = "momentum", "NAdamW", "SOAP"
OURS, FACTORED, EIGENBASIS = "metric", "metric, factored", "metric in the eigenbasis"
IN_FRAME = "AdamW in the frame"
PERMUTED, LEAF_MEAN, NORM_MATCHED = "permuted phi", "leaf-mean phi", "norm-matched base"

CONTESTANTS: dict[str, Contestant] = {
    "SGD": Contestant(optax.sgd, ({},)),
    MOMENTUM: Contestant(_heavy_ball, MOMENTA),
    "Nesterov": Contestant(_nesterov, MOMENTA),
    DEFAULT_BETAS: Contestant(
        optax.adamw, _points("weight_decay", values=((1e-4,), (0.0,), (1e-2,), (1e-3,)))
    ),
    TUNED_ADAMW: Contestant(optax.adamw, BETAS),
    NADAMW: Contestant(optax.nadamw, BETAS),
    "RMSprop with Nesterov": Contestant(
        _rmsprop,
        _points(
            "decay",
            "momentum",
            values=(
                (0.97, 0.9),
                (0.99, 0.9),
                (0.999, 0.9),
                (0.97, 0.0),
                (0.97, 0.95),
                (0.99, 0.95),
                (0.95, 0.8),
                (0.97, 0.8),
            ),
        ),
    ),
    "Adagrad": Contestant(
        optax.adagrad, _points("initial_accumulator_value", values=((0.1,), (1e-3,), (1e-6,), (1e-2,)))
    ),
    "Adafactor": Contestant(
        _adafactor,
        _points("decay_rate", "momentum", values=((0.8, 0.0), (0.8, 0.9), (0.9, 0.9), (0.9, 0.0))),
    ),
    "SM3": Contestant(_sm3, _points("momentum", values=((0.9,), (0.0,), (0.95,), (0.8,)))),
    "Lion": Contestant(
        optax.lion, _points("b1", "b2", values=((0.9, 0.99), (0.95, 0.98), (0.9, 0.95), (0.8, 0.95)))
    ),
    MUON: Contestant(
        optax.contrib.muon,
        _points(
            "beta",
            "adam_b2",
            values=(
                (0.95, 0.999),
                (0.9, 0.999),
                (0.95, 0.95),
                (0.9, 0.95),
                (0.8, 0.999),
                (0.8, 0.95),
                (0.7, 0.95),
                (0.98, 0.999),
            ),
        ),
    ),
    "Sophia": Contestant(
        optax.contrib.sophia,
        _points("b1", "gamma", values=((0.965, 0.01), (0.965, 0.1), (0.9, 0.01), (0.9, 0.1))),
        needs_loss=True,
    ),
    "schedule-free AdamW": Contestant(
        optax.contrib.schedule_free_adamw,
        BETAS,
        constant=True,
        evaluated=optax.contrib.schedule_free_eval_params,
    ),
    SOAP: Contestant(
        _soap,
        _points(
            "b1",
            "b2",
            values=(
                (0.95, 0.95),
                (0.9, 0.95),
                (0.9, 0.99),
                (0.8, 0.95),
                (0.8, 0.9),
                (0.9, 0.9),
                (0.95, 0.99),
                (0.7, 0.9),
            ),
        ),
    ),
    OURS: Contestant(metric, DESIGNS, "ours"),
    FACTORED: Contestant(factored, DESIGNS, "ours"),
    EIGENBASIS: Contestant(
        _eigenbasis,
        _points(
            "alpha",
            "decay",
            "momentum",
            values=(
                (30.0, 0.97, 0.9),
                (1000.0, 0.97, 0.9),
                (30.0, 0.95, 0.9),
                (30.0, 0.97, 0.95),
                (30.0, 0.95, 0.8),
                (30.0, 0.9, 0.8),
                (30.0, 0.9, 0.9),
                (30.0, 0.99, 0.9),
            ),
        ),
        "ours",
    ),
    "metric, not conformal": Contestant(
        _plain,
        _points(
            "alpha",
            "decay",
            "momentum",
            values=(
                (1.0, 0.97, 0.9),
                (1.0, 0.99, 0.9),
                (30.0, 0.97, 0.9),
                (30.0, 0.99, 0.9),
                (1000.0, 0.97, 0.9),
                (1000.0, 0.99, 0.9),
                (30.0, 0.97, 0.8),
                (30.0, 0.999, 0.9),
            ),
        ),
        "design",
    ),
    "momentum in the frame": Contestant(_in_frame, DESIGNS, "design"),
    "momentum on the covector": Contestant(_on_covector, DESIGNS, "design"),
    IN_FRAME: Contestant(
        _adamw_in_frame,
        _points(
            "alpha",
            "b1",
            "b2",
            values=(
                (1.0, 0.9, 0.999),
                (100.0, 0.9, 0.999),
                (1e4, 0.9, 0.999),
                (1.0, 0.9, 0.95),
                (1.0, 0.8, 0.95),
                (100.0, 0.8, 0.95),
                (1e4, 0.8, 0.95),
                (100.0, 0.9, 0.95),
            ),
        ),
        "design",
    ),
    "activity and energy": Contestant(
        _composite,
        _points("energy", "decay", values=((0.1, 0.97), (1.0, 0.97), (0.1, 0.99), (1.0, 0.99))),
        "design",
    ),
    "alpha by schedule": Contestant(
        _alpha_schedule,
        _points("start", "factor", values=((100.0, 0.25), (1000.0, 0.25), (1.0, 4.0), (10.0, 4.0))),
        "design",
    ),
    PERMUTED: Contestant(_permuted, DESIGNS[:1], "control"),  # it sorts at every step
    LEAF_MEAN: Contestant(_leaf_mean, DESIGNS, "control"),
    NORM_MATCHED: Contestant(_norm_matched, DESIGNS, "control"),
}
