"""Who takes part, and what of each is tuned."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import optax

from benchmarks.time_to_target import makers
from riemann_optax.examples.schedule import warmup_cosine

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
FACTORED_FREE, EIGENBASIS_FREE = "factored, schedule-free", "eigenbasis, schedule-free"
VECTORS_FREE = "eigenbasis with vectors, schedule-free"
IN_FRAME = "AdamW in the frame"
PERMUTED, LEAF_MEAN, NORM_MATCHED = "permuted phi", "leaf-mean phi", "norm-matched base"

FREE_DESIGNS = _points(
    "alpha",
    "decay",
    "b1",
    values=(
        (1000.0, 0.97, 0.9),
        (1000.0, 0.95, 0.9),
        (1000.0, 0.99, 0.9),
        (1000.0, 0.97, 0.95),
        (1000.0, 0.95, 0.95),
        (1000.0, 0.9, 0.9),
        (30.0, 0.97, 0.9),
        (30.0, 0.95, 0.9),
    ),
)
EVALUATED = optax.contrib.schedule_free_eval_params

CONTESTANTS: dict[str, Contestant] = {
    "SGD": Contestant(optax.sgd, ({},)),
    MOMENTUM: Contestant(makers.heavy_ball, MOMENTA),
    "Nesterov": Contestant(makers.nesterov, MOMENTA),
    DEFAULT_BETAS: Contestant(
        optax.adamw, _points("weight_decay", values=((1e-4,), (0.0,), (1e-2,), (1e-3,)))
    ),
    TUNED_ADAMW: Contestant(optax.adamw, BETAS),
    NADAMW: Contestant(optax.nadamw, BETAS),
    "RMSprop with Nesterov": Contestant(
        makers.rmsprop,
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
        makers.adafactor,
        _points("decay_rate", "momentum", values=((0.8, 0.0), (0.8, 0.9), (0.9, 0.9), (0.9, 0.0))),
    ),
    "SM3": Contestant(makers.sm3, _points("momentum", values=((0.9,), (0.0,), (0.95,), (0.8,)))),
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
        evaluated=EVALUATED,
    ),
    SOAP: Contestant(
        makers.soap,
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
    "SOAP, schedule-free": Contestant(makers.soap_free, BETAS, constant=True, evaluated=EVALUATED),
    "SOAP with vectors, schedule-free": Contestant(
        partial(makers.soap_free, sides="vector"), BETAS, constant=True, evaluated=EVALUATED
    ),
    OURS: Contestant(makers.metric, DESIGNS, "ours"),
    FACTORED: Contestant(makers.factored, DESIGNS, "ours"),
    EIGENBASIS: Contestant(
        makers.eigenbasis,
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
    FACTORED_FREE: Contestant(
        makers.factored_free,
        _points(
            "alpha",
            "decay",
            "b1",
            values=(
                (100.0, 0.97, 0.9),
                (100.0, 0.95, 0.9),
                (100.0, 0.99, 0.9),
                (100.0, 0.97, 0.95),
                (100.0, 0.95, 0.95),
                (100.0, 0.9, 0.9),
                (1000.0, 0.97, 0.9),
                (10.0, 0.97, 0.9),
            ),
        ),
        "ours",
        constant=True,
        evaluated=EVALUATED,
    ),
    EIGENBASIS_FREE: Contestant(
        makers.eigenbasis_free, FREE_DESIGNS, "ours", constant=True, evaluated=EVALUATED
    ),
    VECTORS_FREE: Contestant(
        partial(makers.eigenbasis_free, sides="vector"),
        FREE_DESIGNS,
        "ours",
        constant=True,
        evaluated=EVALUATED,
    ),
    "metric, not conformal": Contestant(
        makers.plain,
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
    "momentum in the frame": Contestant(makers.in_frame, DESIGNS, "design"),
    "momentum on the covector": Contestant(makers.on_covector, DESIGNS, "design"),
    IN_FRAME: Contestant(
        makers.adamw_in_frame,
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
    "NAdamW in the frame": Contestant(
        makers.nadamw_in_frame,
        _points(
            "alpha",
            "b1",
            "b2",
            values=(
                (1.0, 0.9, 0.999),
                (1.0, 0.9, 0.99),
                (1.0, 0.9, 0.95),
                (1.0, 0.8, 0.95),
                (100.0, 0.9, 0.999),
                (100.0, 0.9, 0.99),
                (100.0, 0.9, 0.95),
                (100.0, 0.8, 0.95),
            ),
        ),
        "design",
    ),
    "activity and energy": Contestant(
        makers.composite,
        _points("energy", "decay", values=((0.1, 0.97), (1.0, 0.97), (0.1, 0.99), (1.0, 0.99))),
        "design",
    ),
    "alpha by schedule": Contestant(
        makers.alpha_schedule,
        _points("start", "factor", values=((100.0, 0.25), (1000.0, 0.25), (1.0, 4.0), (10.0, 4.0))),
        "design",
    ),
    PERMUTED: Contestant(makers.permuted, DESIGNS[:1], "control"),  # it sorts at every step
    LEAF_MEAN: Contestant(makers.leaf_mean, DESIGNS, "control"),
    NORM_MATCHED: Contestant(makers.norm_matched, DESIGNS, "control"),
}
