"""Gates: a weight moves less where a move would undo its contribution."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Phi
from riemann_optax._state_fields import declare_fields
from riemann_optax._tree import inner
from riemann_optax.phi import _state


def metaplasticity(*, strength: float = 1.35) -> Phi:
    r"""Hidden weights that are easily strengthened and hard to weaken.

    .. math::
      \varphi = \begin{cases} \sinh^2(m\,w) & g\,w > 0 \text{ (the step would shrink } |w|) \\
      0 & \text{otherwise} \end{cases}

    At ``alpha = 1`` the rate is ``1/E = 1 - tanh(m*w)**2`` towards zero and 1 away from it, the published
    rule for the hidden weights of binarised networks. That rule compares the sign of the weight with the sign
    of Adam's *averaged* gradient, and exempts biases: put ``optax.scale_by_adam()`` before
    ``compute_metric``, and keep biases out with ``optax.masked`` or ``partition_by_kind``. It is then equal
    to the authors' program in float64.

    ``phi >= 0``. No state. No collective. Needs ``params``. The product ``m * abs(w)`` saturates at 30 (300
    in float64), where the rate is below 1e-25.

    Args:
      strength: ``m``, positive, in units of one over the weight. Published default 1.35 (permuted MNIST).

    Returns:
      A phi without state.

    Raises:
      ValueError: for a ``strength`` that is not positive; at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.metaplasticity(strength=1.0)
      >>> params = jnp.array([2.0, 2.0, -2.0])
      >>> gradients = jnp.array([1.0, -1.0, 1.0])  # a descent step shrinks the first weight only
      >>> values, _ = phi.update(gradients, phi.init(params), params)
      >>> print(1 / (1 + values), 1 - jnp.tanh(2.0) ** 2)
      [0.0707 1. 1. ] 0.0707

    References:
      Laborieux et al, `Synaptic metaplasticity in binarized neural networks
      <https://doi.org/10.1038/s41467-021-22768-y>`_, Nature Communications, 2021
    """
    _check.check_number("strength", strength, low=0.0, low_open=True)

    def rigidity(gradient: jax.Array, weight: jax.Array) -> jax.Array:
        size = _tree.magnitude(weight)
        limit = 300.0 if size.dtype.itemsize > 4 else 30.0
        hidden = jnp.minimum(jnp.asarray(strength).astype(size.dtype) * size, limit)
        return jnp.where(inner(gradient, weight) > 0, jnp.square(jnp.sinh(hidden)), jnp.zeros_like(size))

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        return jax.tree.map(rigidity, updates, _check.require_params(params, "metaplasticity")), state

    return Phi(optax.init_empty_state, update, name="metaplasticity")


@declare_fields(squared=("utility",))
class UtilityGateState(NamedTuple):
    """State of :func:`utility_gate`.

    Attributes:
      utility: running mean of ``-g * w``, not bias-corrected, shaped like the parameters.
    """

    utility: optax.Updates


def utility_gate(
    *, decay: float = 0.999, over: Literal["tree", "leaf"] = "tree", state_dtype: Any = None
) -> Phi:
    r"""Gate of utility-based perturbed gradient descent (UPGD): useful weights move less.

    .. math::
      \bar u_t = \beta \bar u_{t-1} + (1 - \beta)\,(-g_t\,w_t), \qquad
      U = \frac{\bar u}{\max \bar u}, \qquad \varphi = e^U - 1

    ``-g*w`` is the loss that setting the weight to 0 would cost, to first order. At ``alpha = 1/2`` the rate
    is ``1/E = 2 * (1 - sigmoid(U))``: 1 at utility 0, at most 2, and 0.54 for the most useful weight of the
    tree, so this is a gate and not a lock. The published stand-alone code at rate ``lr`` is ours at ``lr``;
    the paper's algorithm, without the factor 2, ours at ``lr / 2``. The whole rule also has noise inside the
    gate and weight decay outside of it: put ``on_gradient(optax.add_noise(...))`` between the stages and
    ``optax.add_decayed_weights`` after them.

    Equal in float64 to the paper's rule, which corrects mean and maximum for the same bias, so that the
    correction cancels. The authors' program corrects the mean alone: its gate starts at ``sigmoid(U /
    (1 - decay))`` and is closed or wide open for about ``1 / (1 - decay)`` updates. Its local form divides
    the utilities of each neuron by the root of the sum of their squares, where ``over="leaf"`` divides by the
    maximum of the layer.

    Where no weight of the group has positive utility nothing can be protected and ``phi = 0``. (The program
    divides by the negative maximum, which turns the order round.)

    ``phi > -1``, and negative for weights of negative utility, which move faster: ``alpha`` has to be below
    1. State: 1 value per weight. Needs ``params``. Under sharding one all-reduce of a scalar per leaf (the
    maximum), which XLA combines. The running mean is the memory window.

    Args:
      decay: of the running mean, in [0, 1), per update. Published default 0.999.
      over: where the maximum is taken: ``"tree"``, the published global utility, or ``"leaf"``, that within
        each layer.
      state_dtype: of the running mean; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`UtilityGateState`.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1), an unknown ``over`` or a ``state_dtype`` that is
        not real floating point; at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.utility_gate()
      >>> params, gradients = jnp.array([1.0, 1.0, 2.0]), jnp.array([-2.0, 0.0, 0.5])
      >>> values, _ = phi.update(gradients, phi.init(params), params)  # utilities 1, 0, -1/2
      >>> print(1 / (1 + 0.5 * values), 2 * (1 - jax.nn.sigmoid(1.0)))
      [0.538 1. 1.245 ] 0.538

    References:
      Elsayed and Mahmood, `Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning
      <https://arxiv.org/abs/2404.00781>`_, ICLR, 2024
    """
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_choice("over", over, ("tree", "leaf"))
    _check.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> UtilityGateState:
        return UtilityGateState(_tree.zeros_like(params, state_dtype))

    def update(
        updates: optax.Updates, state: UtilityGateState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, UtilityGateState]:
        del extra_args
        params = _check.require_params(params, "utility_gate")
        cost_of_loss = jax.tree.map(lambda g, w: -inner(g, w), updates, params)
        utility = _state.running_mean(cost_of_loss, state.utility, decay)
        everywhere = _state.extreme(jnp.max, utility, -jnp.inf)

        def gate(u: jax.Array) -> jax.Array:
            scale = everywhere.astype(u.dtype) if over == "tree" else jnp.max(u, initial=-jnp.inf)
            # A NaN is not <= 0: it stays visible instead of opening the gate for good.
            nothing_useful = scale <= 0
            ratio = u / jnp.where(nothing_useful, jnp.ones_like(scale), scale)
            return jnp.expm1(jnp.where(nothing_useful, jnp.zeros_like(u), ratio))

        values = jax.tree.map(gate, utility)
        return values, UtilityGateState(_state.cast_like(utility, state.utility))

    return Phi(init, update, name="utility_gate", least=-1.0)
