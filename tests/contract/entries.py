"""What an entry of the registry is, and its builders: a minimal chain around one transformation.

- ``with_phi(make_phi)``: a phi inside both stages;
- ``with_edit(make_edit)``: something that stands between the stages;
- ``with_stage_2(make_stage_2)``: another second stage;
- ``with_tangent(make_tangent)``: something that stands after stage 2, before the learning rate;
- ``with_last(make_last)``: something that stands behind the learning rate;
- ``optimiser(make)``: a whole optimiser, ``make(learning_rate, alpha=alpha)``.

Flags: ``learning_rate`` is one with which the four convergence targets are reached within 30,000 steps,
``needs_loss`` says that ``update`` wants the extra argument ``obj_fn``, ``optax_promotes`` that an Optax
transformation inside relies on implicit promotion of dtypes, which our own code must not, ``real_only``
that complex weights are refused, ``reduces_state`` that the state of a leaf may be smaller than the leaf,
``loops`` that an update holds a loop, which the tests then only run compiled, ``rounds_weights`` that the
updated narrow weight is right to its last place, not the update, and ``mixes_weights`` that the step of a
weight depends on the gradients of others, so that a leaf goes downhill only as a whole. ``all_reduced`` is
how many arrays, scalars or one value per neuron, an update all-reduces for a matrix and a vector whose rows
are spread over devices; what declares none is elementwise. ``averages_weights`` that an update depends on the
learning rates of all steps so far.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import riemann_optax as ro
from riemann_optax import riemannian_sgd

from .supplied import needs_loss, supplied


class Entry(NamedTuple):
    """A transformation under test: ``make(learning_rate, alpha)`` returns a whole optimiser."""

    make: Callable[..., optax.GradientTransformationExtraArgs]
    learning_rate: float = 1e-3
    needs_loss: bool = False
    optax_promotes: bool = False
    real_only: bool = False
    reduces_state: bool = False
    loops: bool = False
    mixes_weights: bool = False
    rounds_weights: bool = False
    all_reduced: int = 0
    averages_weights: bool = False

    def build(self) -> optax.GradientTransformationExtraArgs:
        """Return the optimiser at the entry's own learning rate."""
        return self.make(self.learning_rate)

    def extra_args(self, loss: Callable[[Any], Any]) -> dict[str, Any]:
        """Return the extra arguments that ``update`` needs for ``loss``."""
        return {"obj_fn": loss} if self.needs_loss else {}


def with_phi(make_phi, role="metric", conformal=None, **flags) -> Entry:
    def make(learning_rate, alpha=1.0):
        return optax.chain(
            ro.compute_metric(supplied(make_phi()), alpha, role, conformal=conformal),
            ro.scale_by_inverse_metric(),
            optax.scale_by_learning_rate(learning_rate),
        )

    return Entry(make, needs_loss=needs_loss(make_phi()), **flags)


def with_edit(make_edit, role="metric", **flags) -> Entry:
    def make(learning_rate, alpha=1.0):
        return optax.chain(
            ro.compute_metric(ro.phi.activity(), alpha, role),
            make_edit(),
            ro.scale_by_inverse_metric(),
            optax.scale_by_learning_rate(learning_rate),
        )

    return Entry(make, **flags)


def with_stage_2(make_stage_2, **flags) -> Entry:
    def make(learning_rate, alpha=1.0):
        return optax.chain(
            ro.compute_metric(ro.phi.activity(), alpha),
            make_stage_2(),
            optax.scale_by_learning_rate(learning_rate),
        )

    return Entry(make, **flags)


def with_tangent(make_tangent, **flags) -> Entry:
    return Entry(
        lambda learning_rate, alpha=1.0: optax.chain(
            ro.scale_by_metric(ro.phi.activity(), alpha),
            make_tangent(),
            optax.scale_by_learning_rate(learning_rate),
        ),
        **flags,
    )


def with_last(make_last, **flags) -> Entry:
    return Entry(
        lambda learning_rate, alpha=1.0: optax.chain(riemannian_sgd(learning_rate, alpha=alpha), make_last()),
        **flags,
    )


def optimiser(
    make, learning_rate=1e-3, optax_promotes=False, reduces_state=False, all_reduced=0, **arguments
) -> Entry:
    # No functools.partial: inject_hyperparams must see learning_rate and alpha, and nothing else.
    return Entry(
        lambda learning_rate, alpha=1.0: make(learning_rate, alpha=alpha, **arguments),
        learning_rate=learning_rate,
        optax_promotes=optax_promotes,
        reduces_state=reduces_state,
        all_reduced=all_reduced,
    )


def with_momentum_from_phi(nesterov, conformal=None, **flags) -> Entry:
    return Entry(
        lambda learning_rate, alpha=1.0: optax.chain(
            ro.compute_metric(ro.phi.momentum_activity(), alpha, conformal=conformal),
            ro.momentum_from_phi(nesterov),
            ro.scale_by_inverse_metric(),
            optax.scale_by_learning_rate(learning_rate),
        ),
        **flags,
    )


def energetic_activity() -> optax.GradientTransformationExtraArgs:
    """The paper's own reading of phi: plasticity plus energy."""
    return ro.phi.weighted_sum(ro.phi.activity(), ro.phi.maintenance_energy(), weights=[1.0, 0.5])


def half_open_gate(over="tree") -> optax.GradientTransformationExtraArgs:
    """The utility gate at alpha = 1/2, its published strength, beside a phi that alpha always changes."""
    return ro.phi.weighted_sum(ro.phi.utility_gate(over=over), ro.phi.activity(), weights=[0.5, 0.5])
