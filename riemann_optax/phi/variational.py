"""Variational synapses: a weight is a Gaussian, and the less is known of it the more it moves."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import ABOVE_MINUS_1, Phi, required
from riemann_optax._state_fields import declare_fields
from riemann_optax._tree import inner
from riemann_optax.phi import _state

# E = (s0 / s)**2 stays between 1e-4 and 1e12: above, 1 + phi would round to 0 in float32.
_LARGEST_RATIO = 1e2
_SMALLEST_RATIO = 1e-6


@declare_fields(squared=("deviation",))
class VariationalState(NamedTuple):
    """State of :func:`bayesian_gradient_descent` and :func:`mesu`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      key: the random key of the perturbations.
      deviation: the standard deviation ``s`` of each weight, shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    key: jax.Array
    deviation: optax.Updates


def bayesian_gradient_descent(
    *, initial_deviation: float = 0.06, key: jax.Array | int = 0, state_dtype: Any = None
) -> Phi:
    r"""Bayesian gradient descent: the rate of a weight is its posterior variance.

    .. math::
      E = \frac{s_0^2}{s^2}, \qquad s \leftarrow s \sqrt{1 + (s G/2)^2} - \frac{s^2 G}{2}, \qquad
      G = \mathrm{mean}_k\big(g_k\,\varepsilon_k\big)

    with ``g_k`` the gradient at the perturbed weights ``w + s * eps_k``. The weight moves with the ``s`` from
    before its change. Use ``alpha = 1``, the base rate ``eta * s0**2`` and, as the gradient, the mean of the
    ``g_k``; the loss is a negative log-likelihood, *summed* over the batch. :func:`value_and_grad` makes the
    ``g_k`` of the sum, and the gradient of the mean that it is given: put ``optax.scale(M)`` first in the
    chain, with the ``M`` examples of a batch. On a quadratic each update adds about the curvature to the
    precision ``1/s**2``: nothing is ever forgotten, and rates only shrink.
    :func:`mesu` is this rule with a memory window. Equal to the authors' program in float64.

    ``phi > -1``, negative where a weight has become less certain than at the start. State: 1 value per
    weight. No collective. ``s`` is kept between ``1e-6 * s0`` and ``100 * s0``, so that ``E`` is finite.

    Needs the extra arguments ``perturbed_gradients`` and ``perturbations``: the ``g_k`` and ``eps_k``, trees
    like the parameters with a leading axis of samples; :func:`draw_perturbations` makes both places and
    noise. In a Flax NNX loop::

      params = nnx.state(model, nnx.Param)
      places, noise = ro.phi.draw_perturbations(optimizer.opt_state, params)
      gradients = jax.vmap(jax.grad(loss_of_params))(places)
      mean = jax.tree.map(lambda g: g.mean(0), gradients)
      optimizer.update(model, mean, perturbed_gradients=gradients, perturbations=noise)

    Args:
      initial_deviation: ``s0``, positive, in the units of the weights. The published runs take 0.01 to 0.06
        (0.06 for permuted MNIST) and eta 1 (up to 8 on CIFAR10).
      key: a random key or an integer seed, for :func:`draw_perturbations`.
      state_dtype: of ``s``; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`VariationalState`.

    Raises:
      ValueError: for an ``initial_deviation`` that is not positive; at ``update``, where an extra argument is
        missing or has other shapes.
      TypeError: for a ``key`` that is neither a random key nor an integer.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.bayesian_gradient_descent(initial_deviation=1.0)
      >>> params, loss = jnp.array([2.0]), lambda w: 4.0 * jnp.sum(w**2)
      >>> state = phi.init(params)
      >>> noise = jnp.array([[1.0], [-1.0]])  # or draw_perturbations(state, params)
      >>> gradients = jax.vmap(jax.grad(loss))(params + state.deviation * noise)
      >>> _, state = phi.update(
      ...     gradients.mean(0), state, perturbed_gradients=gradients, perturbations=noise
      ... )
      >>> print(state.deviation)  # G = 8: sqrt(1 + 16) - 4
      [0.123]

    References:
      Zeno et al, `Task Agnostic Continual Learning Using Online Variational Bayes
      <https://arxiv.org/abs/1803.10123>`_, arXiv, 2018

      Zeno et al, `Task-Agnostic Continual Learning Using Online Variational Bayes With Fixed-Point Updates
      <https://doi.org/10.1162/neco_a_01430>`_, Neural Computation, 2021
    """
    _check.check_number("initial_deviation", initial_deviation, low=0.0, low_open=True)

    def next_deviation(s: jax.Array, slope: jax.Array) -> jax.Array:
        # s * (sqrt(1 + a**2) - a) without its cancellation at large a.
        return s * jnp.exp(-jnp.arcsinh(0.5 * s * slope))

    return _variational(
        "bayesian_gradient_descent", initial_deviation, initial_deviation, next_deviation, key, state_dtype
    )


def mesu(
    *,
    window: float = 3e5,
    prior_deviation: float = 1.0,
    initial_deviation: float | None = None,
    largest_change: float = 0.5,
    mean_rate: float = 1.0,
    deviation_rate: float = 0.5,
    key: jax.Array | int = 0,
    state_dtype: Any = None,
) -> Phi:
    r"""Metaplasticity from synaptic uncertainty: Bayesian gradient descent that forgets.

    .. math::
      \Delta w = -c_\mu\,s^2 g, \qquad
      \Delta s = c_\sigma\Big(\frac{s\,(s_0^2 - s^2)}{N s_0^2} - s^2 G\Big), \qquad
      G = \mathrm{mean}_k\big(g_k\,\varepsilon_k\big), \qquad |\Delta w|, |\Delta s| \le r\,s

    .. math::
      E = \max\Big(\frac{s_0^2}{c_\mu s^2},\ \frac{s_0^2\,|g|}{r\,s}\Big)

    with ``g_k`` the gradient at the perturbed weights ``w + s * eps_k``, so that ``G`` is the derivative of
    the expected loss with respect to ``s``. Both changes are clamped at the share ``r`` of ``s``: the second
    term of ``E`` is that clamp of the step. Without data ``s`` relaxes to the prior's ``s0`` at rate ``1/N``;
    under constant curvature ``h`` it settles at the posterior of the last ``N`` updates, ``1/s**2 = 1/s0**2 +
    N * h``. The weight moves with the ``s`` from before its change.

    Use ``alpha = 1``, the base rate ``s0**2`` and, as the gradient, the mean of the ``g_k``; the loss is a
    negative log-likelihood, *summed* over the batch: with :func:`value_and_grad` put ``optax.scale(M)`` first
    in the chain, as for :func:`bayesian_gradient_descent`. The rule's pull of the weight to the prior mean is
    part of that loss: put ``optax.add_decayed_weights(1 / (N * s0**2))`` before ``compute_metric`` for a mean
    of 0, or an anchor of the same rate for another.

    Equal in float64 to the authors' program, with its clamps and both its rates, but for its options of
    momentum, a second-order denominator and fixed bounds, which are not here.

    ``phi > -1``, negative where a weight is less certain than the prior. State: 1 value per weight. No
    collective. ``s`` is kept between ``1e-6 * s0`` and ``100 * s0``, so that ``E`` is finite.

    Needs the extra arguments ``perturbed_gradients`` and ``perturbations``, as
    :func:`bayesian_gradient_descent` does, whose docstring shows the Flax loop that supplies them.

    Args:
      window: ``N``, the number of updates whose data are remembered, positive. Default 3e5.
      prior_deviation: ``s0``, positive, in the units of the weights. Default 1, from the paper's equations. A
        network wants less: gradients are taken at weights that differ by about this much, and at 1 it is
        hardly the same network. The published runs on images have 0.06.
      initial_deviation: ``s`` at the start, positive; None means ``prior_deviation``.
      largest_change: ``r``, the largest change of the weight, and of ``s``, in one update as a share of
        ``s``, in (0, 1). Default 0.5 (ours; the authors set it for each experiment).
      mean_rate: ``c_mu``, positive. Default 1, from the paper's equations.
      deviation_rate: ``c_sigma``, positive. Default 1/2, from the paper's equations.
      key: a random key or an integer seed, for :func:`draw_perturbations`.
      state_dtype: of ``s``; None means float32, or wider where the parameter is wider. In bfloat16 the leak
        rounds away.

    Returns:
      A phi with state :class:`VariationalState`.

    Raises:
      ValueError: for an argument outside its range; at ``update``, where an extra argument is missing or has
        other shapes.
      TypeError: for a ``key`` that is neither a random key nor an integer.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.mesu(window=10.0, initial_deviation=0.5)
      >>> params = jnp.zeros(1)
      >>> state, nothing = phi.init(params), jnp.zeros((1, 1))
      >>> for _ in range(3):  # no data: s returns to 1
      ...     values, state = phi.update(
      ...         params, state, perturbed_gradients=nothing, perturbations=nothing
      ...     )
      ...     print(values, state.deviation)
      [3.] [0.519]
      [2.716] [0.538]
      [2.459] [0.557]

    References:
      Bonnet et al, `Bayesian continual learning and forgetting in neural networks
      <https://doi.org/10.1038/s41467-025-64601-w>`_, Nature Communications, 2025
    """
    _check.check_number("window", window, low=0.0, low_open=True)
    _check.check_number("prior_deviation", prior_deviation, low=0.0, low_open=True)
    start = prior_deviation if initial_deviation is None else initial_deviation
    _check.check_number("initial_deviation", start, low=0.0, low_open=True)
    _check.check_number("largest_change", largest_change, low=0.0, high=1.0, low_open=True, high_open=True)

    _check.check_number("mean_rate", mean_rate, low=0.0, low_open=True)
    _check.check_number("deviation_rate", deviation_rate, low=0.0, low_open=True)

    def next_deviation(s: jax.Array, slope: jax.Array) -> jax.Array:
        prior, updates, bound, rate = (
            jnp.asarray(x).astype(s.dtype) for x in (prior_deviation, window, largest_change, deviation_rate)
        )
        leak = (1 - jnp.square(s / prior)) / updates
        return s * (1 + jnp.clip(rate * (leak - s * slope), -bound, bound))

    def precision(s: jax.Array, gradient: jax.Array) -> jax.Array:
        prior, bound, rate = (
            jnp.asarray(x).astype(s.dtype) for x in (prior_deviation, largest_change, mean_rate)
        )
        # A huge gradient must not make the metric infinite: its step would be 0 instead of the bound.
        size = jnp.minimum(_tree.magnitude(gradient), np.finfo(s.dtype).max * (bound * s / prior) / prior / 2)
        return jnp.maximum(jnp.square(prior / s) / rate, prior * (prior / (bound * s)) * size) - 1

    return _variational("mesu", prior_deviation, start, next_deviation, key, state_dtype, precision)


def draw_perturbations(state: optax.OptState, params: optax.Params, samples: int = 10) -> tuple[Any, Any]:
    r"""Draw places around the weights for :func:`bayesian_gradient_descent` or :func:`mesu`.

    .. math::
      w_k = w + s\,\varepsilon_k, \qquad \varepsilon_k \sim \mathcal N(0, 1)

    A pure function: the noise depends on the key and the count in ``state`` alone, and changes with every
    update. Memory is ``2 * samples`` copies of the parameters.

    Args:
      state: the state of the phi, or of any chain or Flax optimiser that holds exactly one of them.
      params: the weights ``w``, in the structure that phi sees.
      samples: how many, at least 1. Published default 10.

    Returns:
      ``(perturbed_params, perturbations)``: trees like ``params`` with a leading axis of ``samples``, without
      what ``optax.masked`` or ``optax.partition`` hide from this phi. The
      perturbed parameters have the dtype of the parameters, the perturbations that of ``s``.

    Raises:
      ValueError: where ``state`` holds no such state or several, one of other parameters, or one inside of
        :func:`riemann_optax.in_eigenbasis`; for ``samples`` below 1.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.bayesian_gradient_descent(initial_deviation=0.06)
      >>> tx = ro.riemannian_sgd(0.06**2, momentum=None, phi=phi, alpha=1.0, conformal=None)
      >>> params = {"w": jnp.ones(3)}
      >>> places, noise = ro.phi.draw_perturbations(tx.init(params), params, samples=4)
      >>> print(places["w"].shape, jnp.allclose(places["w"], 1 + 0.06 * noise["w"]))
      (4, 3) True
    """
    _check.check_count("samples", samples)
    state = _tree.bare(getattr(state, "opt_state", state))
    _state.check_coordinates("draw_perturbations", state, VariationalState)
    states = _tree.find_states(state, VariationalState)
    if len(states) != 1:
        raise ValueError(
            f"state holds {len(states)} states of a variational phi, and one is needed: pass the state of "
            "the phi, or of the part of the optimiser that holds it."
        )
    # Leaf by leaf: in a Flax optimiser the state's leaves are wrapped, and the parameters are not.
    params = _tree.masked_like(params, _tree.bare(states[0].deviation))
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
    deviations = jax.tree.leaves(states[0].deviation)
    if [jnp.shape(leaf) for leaf in leaves] != [jnp.shape(s) for s in deviations]:
        raise ValueError(
            "params differ from the parameters of state: pass those that this phi sees; of a Flax NNX module "
            "give value_and_grad the same wrt as nnx.Optimizer."
        )
    (key,), (count,) = jax.tree.leaves(states[0].key), jax.tree.leaves(states[0].count)
    keys = jax.random.split(jax.random.fold_in(key, count), max(len(leaves), 1))

    def draw(k: jax.Array, w: jax.Array, s: jax.Array) -> jax.Array:
        # Times one, to take on the sharding of the weights.
        if not jnp.iscomplexobj(w):
            return jnp.ones_like(s)[None] * jax.random.normal(k, (samples, *s.shape), s.dtype)
        dtype = np.promote_types(s.dtype, jnp.complex64)
        return (
            math.sqrt(2.0) * jnp.ones_like(s, dtype)[None] * jax.random.normal(k, (samples, *s.shape), dtype)
        )

    def perturb(w: jax.Array, s: jax.Array, e: jax.Array) -> jax.Array:
        dtype = np.promote_types(w.dtype, e.dtype)
        return (w[None].astype(dtype) + s[None].astype(dtype) * e.astype(dtype)).astype(w.dtype)

    noise = [draw(k, w, s) for k, w, s in zip(keys, leaves, deviations, strict=False)]
    places = [perturb(w, s, e) for w, s, e in zip(leaves, deviations, noise, strict=True)]
    return jax.tree.unflatten(treedef, places), jax.tree.unflatten(treedef, noise)


def _variational(
    name: str,
    prior_deviation: float,
    initial_deviation: float,
    next_deviation: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array | int,
    state_dtype: Any,
    precision: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Phi:
    """Return a phi whose ``s`` follows ``next_deviation(s, mean(g * eps))``.

    Phi is ``precision(s, gradient)``, by default ``(s0 / s)**2 - 1``.
    """
    _check.check_key(key)
    _check.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> VariationalState:
        return VariationalState(
            count=jnp.zeros([], jnp.int32),
            key=_state.as_key(key),
            deviation=_tree.full_like(params, initial_deviation, state_dtype),
        )

    def update(
        updates: optax.Updates,
        state: VariationalState,
        params: optax.Params | None = None,
        *,
        perturbed_gradients: optax.Updates | None = None,
        perturbations: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, VariationalState]:
        del params, extra_args
        _check_samples(name, updates, perturbed_gradients=perturbed_gradients, perturbations=perturbations)

        def step(gradient: jax.Array, s: jax.Array, g: jax.Array, eps: jax.Array) -> jax.Array:
            wide = s.astype(_tree.working_dtype(gradient))
            slope = jnp.mean(inner(g, eps).astype(wide.dtype), axis=0)
            if jnp.iscomplexobj(gradient):
                slope = slope / 2  # s is the deviation of the real and of the imaginary part
            prior = jnp.asarray(prior_deviation).astype(wide.dtype)
            return jnp.clip(next_deviation(wide, slope), prior * _SMALLEST_RATIO, prior * _LARGEST_RATIO)

        def evaluate(gradient: jax.Array, s: jax.Array) -> jax.Array:
            wide = s.astype(_tree.working_dtype(gradient))
            if precision is not None:
                return precision(wide, gradient)
            return jnp.square(jnp.asarray(prior_deviation).astype(wide.dtype) / wide) - 1

        values = jax.tree.map(evaluate, updates, state.deviation)
        deviation = jax.tree.map(step, updates, state.deviation, perturbed_gradients, perturbations)
        new_state = VariationalState(
            count=optax.safe_increment(state.count),
            key=state.key,
            deviation=_state.cast_like(deviation, state.deviation),
        )
        return values, new_state

    return Phi(init, update, name=name, needs=("perturbed_gradients", "perturbations"), least=ABOVE_MINUS_1)


def _check_samples(name: str, updates: optax.Updates, **arguments: Any) -> None:
    """Raise ``ValueError`` unless each argument is a tree like the gradients with one leading axis."""
    for argument, samples in arguments.items():
        samples = required(name, argument, samples)
        remedy = "give each leaf of the gradients a leading axis of samples."
        first = jax.tree.map(lambda x: np.broadcast_to(0.0, jnp.shape(x)[1:]), samples)
        _check.check_same_structure(first, updates, f"one sample of {argument}", "the gradients", remedy)
    counts = {jnp.shape(leaf)[:1] for samples in arguments.values() for leaf in jax.tree.leaves(samples)}
    if len(counts) > 1 or counts == {()}:
        raise ValueError(
            f"{name}: the leading axes of {' and '.join(arguments)} differ or are missing: each leaf needs "
            "the same number of samples."
        )
