"""Noise under a metric: large on idle weights, small on busy ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax.covector import Covector, require_covectors
from riemann_optax.phi import _state


class MetricNoiseState(NamedTuple):
    """State of :func:`add_metric_noise` and :func:`add_idle_noise`.

    Attributes:
      count: int32 scalar, the number of updates so far; schedules read it.
      key: the random key of the next update.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    key: jax.Array


def add_metric_noise(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    key: jax.Array | int = 0,
    field: Callable[[jax.Array], jax.Array] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Add the noise that makes descent under a metric sample :math:`e^{-f/T}` (Riemannian Langevin).

    Place it between the stages, after the edits of the metric, with the learning rate of the chain::

        optax.chain(
            ro.compute_metric(phi, alpha),
            ro.add_metric_noise(learning_rate, temperature, key),
            ro.scale_by_inverse_metric(),
            optax.scale_by_learning_rate(learning_rate),
        )

    There it adds to the covector what stage 2 and the learning rate turn into

    .. math::
      \Delta w = -\eta\,\frac{\nabla f}{E} + \eta\,T\,\frac{\partial}{\partial w}\frac1E
      + \sqrt{\frac{2 T \eta}{E}}\;\xi, \qquad \xi \sim N(0, 1)

    The noise has covariance ``2 T lr g**-1``. Where ``E`` depends on the weights, give its ``field``: without
    the middle term, the drift, the stationary law is ``E exp(-f/T)``, which is wrong. Where ``E`` depends on
    the gradients of the past the law is approximate. Momentum or clipping after stage 2 would change it too.
    The step is Euler-Maruyama: exact as the learning rate goes to 0.

    State: one key. No collective; each draw has the sharding of its leaf (under ``shard_map`` give each
    device another key where it holds other weights). A synapse that may not move
    (``1/E = 0``) gets no noise, nor does any at a learning rate of 0. Leaves without a metric have ``E = 1``.

    Args:
      learning_rate: the one that follows stage 2: a number, a schedule of the update count, or a traced
        scalar.
      temperature: ``T``, at least 0, in units of the loss; likewise. A posterior of ``N`` examples is sampled
        with a mean loss at ``T = 1/N``.
      key: a random key or an integer seed; runs side by side, and parts of ``optax.partition``, want one
        each.
      field: a function of an array of weights that returns ``E`` in its shape, each value depending on its
        own weight alone, up to a constant factor; such as a ``riemann_optax.fields.SeparableField``. None for
        a metric that does not depend on the weights.

    Returns:
      A gradient transformation with state :class:`MetricNoiseState`.

    Raises:
      ValueError: for a negative concrete ``learning_rate`` or ``temperature``; at ``update``, where no leaf
        carries a metric, or where ``field`` is given and ``params`` are missing or complex.
      TypeError: for a ``field`` that is no function, or a ``key`` that is neither a random key nor an
        integer.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.from_weights(lambda w: jnp.full_like(w, 3.0))),  # E = 4
      ...     ro.add_metric_noise(0.1, temperature=0.2),
      ...     ro.scale_by_inverse_metric(),
      ...     optax.scale_by_learning_rate(0.1),
      ... )
      >>> params = jnp.zeros(100_000)
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> print(jnp.var(updates))  # 2 * 0.2 * 0.1 / 4
      0.010

    References:
      Girolami and Calderhead, `Riemann manifold Langevin and Hamiltonian Monte Carlo methods
      <https://doi.org/10.1111/j.1467-9868.2010.00765.x>`_, Journal of the Royal Statistical Society B, 2011

      Patterson and Teh, `Stochastic Gradient Riemannian Langevin Dynamics on the Probability Simplex
      <https://papers.nips.cc/paper/4883>`_, NeurIPS, 2013
    """
    _check.check_schedulable("learning_rate", learning_rate)
    _check.check_schedulable("temperature", temperature)
    if field is not None and not callable(field):
        raise TypeError(f"field must be a function of an array of weights, or None, got {field!r}.")

    def amplitude(count: jax.Array) -> jax.Array:
        rate = jnp.asarray(_tree.at_count(learning_rate, count), jnp.float32)
        # sqrt(2 T / lr) on the covector is sqrt(2 T lr) on the weights.
        heat = jnp.asarray(_tree.at_count(temperature, count), jnp.float32)
        size: jax.Array = jnp.sqrt(2 * heat) / jnp.sqrt(rate)
        return size

    def drift(count: jax.Array, params: optax.Params | None) -> Any:
        if field is None:
            return None
        params = _check.require_params(params, "add_metric_noise with a field")
        heat = jnp.asarray(_tree.at_count(temperature, count), jnp.float32)

        def log_derivative(path: tuple[Any, ...], weight: jax.Array) -> jax.Array:
            if jnp.iscomplexobj(weight):
                raise ValueError(
                    f"add_metric_noise: params are complex at {_tree.leaf_name(path)}, where a field of real "
                    "weights gives no drift: split real and imaginary parts, or leave field out."
                )
            weight = _tree.to_working_dtype(weight)
            # On the covector, -E T d(1/E)/dw: the derivative of T log E, free of E's constant factor.
            height: jax.Array
            height, slope = jax.jvp(lambda w: jnp.log(field(w)), (weight,), (jnp.ones_like(weight),))
            # Where E is infinite the weight may not move, and its slope is no number.
            return jnp.where(height < jnp.inf, heat.astype(slope.dtype) * slope, 0)

        return jax.tree_util.tree_map_with_path(log_derivative, params)

    return _noise("add_metric_noise", amplitude, drift, key)


def add_idle_noise(
    learning_rate: optax.ScalarOrSchedule, scale: optax.ScalarOrSchedule, key: jax.Array | int = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Add noise of size ``scale / sqrt(E)`` to each step: large on idle weights, small on busy ones.

    .. math::
      \Delta w = -\eta\,\frac{\nabla f}{E} + \frac{\mathrm{scale}}{\sqrt E}\;\xi, \qquad \xi \sim N(0, 1)

    With a phi that is large where a synapse is used, this keeps a network able to learn: what is idle goes on
    searching. It is :func:`add_metric_noise` at the temperature ``scale**2 / (2 * learning_rate)``, without
    the claim to sample anything; its size does not follow a schedule of the learning rate.

    Place it between the stages, after the edits of the metric. State: one key. No collective; each draw has
    the sharding of its leaf. A synapse that may not move (``1/E = 0``) gets no noise, nor does any at a
    learning rate of 0. Leaves without a metric have ``E = 1``.

    Args:
      learning_rate: the one that follows stage 2: a number, a schedule of the update count, or a traced
        scalar.
      scale: standard deviation of the noise per update where ``E = 1``, in units of the weights, at least 0;
        likewise.
      key: a random key or an integer seed; runs side by side, and parts of ``optax.partition``, want one
        each.

    Returns:
      A gradient transformation with state :class:`MetricNoiseState`.

    Raises:
      ValueError: for a negative concrete ``learning_rate`` or ``scale``; at ``update``, where no leaf carries
        a metric.
      TypeError: for a ``key`` that is neither a random key nor an integer.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.from_weights(lambda w: jnp.full_like(w, 3.0))),  # E = 4
      ...     ro.add_idle_noise(0.1, scale=0.2),
      ...     ro.scale_by_inverse_metric(),
      ...     optax.scale_by_learning_rate(0.1),
      ... )
      >>> params = jnp.zeros(100_000)
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> print(jnp.std(updates))  # 0.2 / sqrt(4)
      0.100

    References:
      Dohare et al, `Loss of plasticity in deep continual learning
      <https://doi.org/10.1038/s41586-024-07711-7>`_, Nature, 2024: shrink-and-perturb, the same noise for all
    """
    _check.check_schedulable("learning_rate", learning_rate)
    _check.check_schedulable("scale", scale)

    def amplitude(count: jax.Array) -> jax.Array:
        rate = jnp.asarray(_tree.at_count(learning_rate, count), jnp.float32)
        size: jax.Array = jnp.asarray(_tree.at_count(scale, count), jnp.float32) / rate
        return size

    return _noise("add_idle_noise", amplitude, lambda count, params: None, key)


def _noise(
    name: str,
    amplitude: Callable[[jax.Array], jax.Array],
    drift: Callable[[jax.Array, optax.Params | None], Any],
    key: jax.Array | int,
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that adds ``amplitude * sqrt(E) * xi + drift`` to each covector."""
    _check.check_key(key)

    def init(params: optax.Params) -> MetricNoiseState:
        _tree.check_inexact(params, "params")
        return MetricNoiseState(jnp.zeros([], jnp.int32), _state.as_key(key))

    def update(
        updates: optax.Updates,
        state: MetricNoiseState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MetricNoiseState]:
        del extra_args
        require_covectors(updates, name)
        size = amplitude(state.count)
        # A learning rate of 0 lets no noise reach the weights, whatever its size here.
        size = jnp.where(jnp.isfinite(size), size, 0)
        drifts = drift(state.count, _tree.trained(params, updates))
        new_key, draw_key = jax.random.split(state.key)
        leaves, treedef = jax.tree.flatten(updates)
        keys = jax.random.split(draw_key, max(len(leaves), 1))
        shifts = [None] * len(leaves) if drifts is None else jax.tree.leaves(drifts)

        def shake(leaf: Any, k: jax.Array, shift: jax.Array | None) -> Any:
            components = leaf.components if isinstance(leaf, Covector) else leaf
            noise = _normal_like(components, k)
            noise = size.astype(noise.dtype) * noise
            if isinstance(leaf, Covector):
                root = jnp.sqrt(leaf.metric)
                noise = jnp.where(jnp.isfinite(root), root, 0).astype(noise.dtype) * noise
                if shift is not None:
                    noise = noise + shift.astype(noise.dtype)
            components = components + noise.astype(components.dtype)
            return leaf.with_components(components) if isinstance(leaf, Covector) else components

        moved = [shake(leaf, k, shift) for leaf, k, shift in zip(leaves, keys, shifts, strict=False)]
        new_state = MetricNoiseState(optax.safe_increment(state.count), new_key)
        return jax.tree.unflatten(treedef, moved), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _normal_like(leaf: jax.Array, key: jax.Array) -> jax.Array:
    """Return standard normal noise in the working dtype and with the sharding of ``leaf``.

    Real and imaginary part of a complex weight are two weights, each with a variance of 1.
    """
    if jnp.iscomplexobj(leaf):
        real_key, imaginary_key = jax.random.split(key)
        return jax.lax.complex(_normal_like(leaf.real, real_key), _normal_like(leaf.imag, imaginary_key))
    dtype = _tree.working_dtype(leaf)
    return jnp.ones_like(leaf, dtype=dtype) * jax.random.normal(key, jnp.shape(leaf), dtype)
