"""Presynaptic release: plasticity and energy of one synapse in a single variable."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Phi
from riemann_optax._state_fields import declare_fields


@declare_fields(squared=("release_probability",))
class PresynapticReleaseState(NamedTuple):
    """State of :func:`presynaptic_release`.

    Attributes:
      release_probability: of each synapse, between ``minimum`` and ``maximum``, shaped like the parameters.
    """

    release_probability: optax.Updates


def presynaptic_release(
    *,
    minimum: float = 0.25,
    maximum: float = 1.0,
    up: float = 0.0520,
    down: float = 0.0516,
    threshold: float = 1e-3,
    frozen_from: float = 0.9353,
    form: Literal["proportional", "constant"] = "proportional",
    state_dtype: Any = None,
) -> Phi:
    r"""Release probability: a synapse that matters transmits reliably, costs more and changes less.

    .. math::
      \varphi = \frac{p - p_\mathrm{min}}{p_\mathrm{max} - p}, \qquad
      E = 1 + \varphi = \frac{p_\mathrm{max} - p_\mathrm{min}}{p_\mathrm{max} - p} \quad (\alpha = 1)

    .. math::
      p \leftarrow \begin{cases}
        p + (p_\mathrm{max} - p)\,\mathrm{up} & |g| \ge \mathrm{threshold} \\
        p - (p_\mathrm{max} - p)\,\mathrm{down} & |g| < \mathrm{threshold}
      \end{cases}

    clipped to ``[minimum, maximum]``, starting at ``minimum`` and frozen once it reaches ``frozen_from``. The
    weight moves with the release probability from before its change. The defaults come from the published
    experiments. With ``form="constant"`` the steps do
    not shrink towards ``maximum``; only the clip bounds them:

    .. math::
      p \leftarrow \mathrm{clip}\big(p + \mathrm{up}\big) \ \text{or} \ \mathrm{clip}\big(p -
      \mathrm{down}\big)

    The first is the form of the authors' program for their lifelong experiments, equal to it in float64 at
    ``maximum - minimum`` (0.75) times its learning rate: there the rate of a weight is ``maximum - p``, here
    ``1 / E``.

    The largest ``E`` that can be reached is a step up from just below ``frozen_from``: ``(maximum - minimum)
    / ((maximum - frozen_from) * (1 - up))``, 12.23 by default, or ``(maximum - minimum) / (maximum -
    frozen_from - up)``, 59.06, with constant steps. The energy a network of such synapses spends on
    transmission is ``sum p * abs(w)`` (``sum abs(w)`` where inputs are normalised).

    ``phi >= 0``. State: 1 value per weight. No collective.

    Args:
      minimum: ``p_min``, the probability at the start, at least 0.
      maximum: ``p_max``, above ``minimum``, at most 1.
      up: the share of the distance to ``maximum`` gained by a large gradient, in [0, 1); or, with constant
        steps, the probability gained, below ``maximum - frozen_from``.
      down: the share of that distance, or the probability, lost by a small one, at least 0.
      threshold: the gradient size that counts as large, in the units of the gradient: scale it with the loss.
      frozen_from: the probability from which a synapse is frozen, between ``minimum`` and ``maximum``.
      form: ``"proportional"`` to the distance to ``maximum``, or ``"constant"`` steps.
      state_dtype: of ``p``; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`PresynapticReleaseState`.

    Raises:
      ValueError: for a concrete argument outside its range, or a ``state_dtype`` that is not real floating
        point.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.presynaptic_release(up=0.5)
      >>> state = phi.init(jnp.zeros(2))
      >>> values, state = phi.update(jnp.array([0.0, 1.0]), state)
      >>> print(values, state.release_probability)  # moved with the old p; then p rose half-way to 1
      [0. 0.] [0.25  0.625]
      >>> print(phi.update(jnp.array([0.0, 1.0]), state)[0])
      [0. 1.]

    References:
      Schug, Benzing and Steger, `Presynaptic stochasticity improves energy efficiency and helps alleviate
      the stability-plasticity dilemma <https://doi.org/10.7554/eLife.69884>`_, eLife, 2021

      Malkin et al, `Signatures of Bayesian inference emerge from energy-efficient synapses
      <https://doi.org/10.7554/eLife.92595>`_, eLife, 2024
    """
    _check.check_number("minimum", minimum, low=0.0)
    _check.check_number("maximum", maximum, high=1.0)
    if _check.is_concrete_number(minimum) and _check.is_concrete_number(maximum):
        _check.check_number("maximum", maximum, low=minimum, low_open=True)
    if _check.is_concrete_number(maximum):
        _check.check_number("frozen_from", frozen_from, high=maximum, high_open=True)
    if _check.is_concrete_number(minimum):  # or all synapses would be frozen from the start
        _check.check_number("frozen_from", frozen_from, low=minimum, low_open=True)
    _check.check_number("up", up, low=0.0, high=1.0, high_open=True)
    _check.check_number("down", down, low=0.0)
    _check.check_number("threshold", threshold, low=0.0)
    _check.check_choice("form", form, ("proportional", "constant"))
    if form == "constant" and all(map(_check.is_concrete_number, (up, maximum, frozen_from))):
        # A step to the maximum itself would make the metric infinite, and the next step of its weights 0.
        _check.check_number("up", up, low=0.0, high=maximum - frozen_from, high_open=True)
    _check.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> PresynapticReleaseState:
        return PresynapticReleaseState(_tree.full_like(params, minimum, state_dtype))

    def update(
        updates: optax.Updates,
        state: PresynapticReleaseState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PresynapticReleaseState]:
        del params, extra_args

        def below(dtype: Any) -> jax.Array:
            """Return the largest number below the maximum, where E is infinite."""
            top = jnp.asarray(maximum).astype(dtype)
            return jnp.nextafter(top, jnp.zeros_like(top))

        def rigidity(gradient: jax.Array, p: jax.Array) -> jax.Array:
            # In a narrow state the minimum itself is rounded, and p may be rounded up to the maximum.
            p = jnp.maximum(p.astype(_tree.working_dtype(gradient)), minimum)
            return (p - minimum) / (maximum - jnp.minimum(p, below(p.dtype)))

        def release(gradient: jax.Array, p: jax.Array) -> jax.Array:
            size = _tree.magnitude(gradient)
            wide = p.astype(size.dtype)
            room = maximum - wide if form == "proportional" else jnp.ones_like(wide)
            moved = jnp.where(size >= threshold, wide + room * up, wide - room * down)
            moved = jnp.clip(moved, minimum, maximum)
            # A NaN gradient compares as small: it lowers p by one step and leaves no NaN.
            kept = jnp.where(wide >= frozen_from, wide, moved).astype(p.dtype)
            return jnp.minimum(kept, below(p.dtype))

        values = jax.tree.map(rigidity, updates, state.release_probability)
        return values, PresynapticReleaseState(jax.tree.map(release, updates, state.release_probability))

    return Phi(init, update, name="presynaptic_release")
