"""A drift of the weights to their initial values, as strong as the current batch suggests."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Declared, required_loss
from riemann_optax._state_fields import declare_fields
from riemann_optax._varying import varying_like
from riemann_optax.boundary import check_outermost, check_scalable
from riemann_optax.phi import _state


@declare_fields(linear=("prior_mean",), weights=("prior_mean",), exact=("prior_mean",))
class SoftResetsState(NamedTuple):
    """State of :func:`soft_resets`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      key: the random key of the next update.
      prior_mean: the weights at the first update, shaped like the parameters; zeros before.
      prior_deviation: a scalar for each leaf, the standard deviation of the prior.
      kept: ``gamma`` of the last update, a scalar for each leaf.
      inner_state: the state of the wrapped optimiser.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    key: jax.Array
    prior_mean: optax.Params
    prior_deviation: Any
    kept: Any
    inner_state: optax.OptState


def soft_resets(
    inner: optax.GradientTransformation,
    rate: optax.ScalarOrSchedule,
    *,
    ratio: float = 0.9,
    samples: int = 1,
    prior_deviation: float | None = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Let the weights of each leaf drift to their initial values, as far as the batch supports it.

    .. math::
      \tilde\theta = \gamma\,\theta + (1 - \gamma)\,\theta_0, \qquad
      \theta \leftarrow \tilde\theta + \big(\gamma^2 + (1 - \gamma^2)/s^2\big)\,
      \mathrm{inner}\big(\nabla L(\tilde\theta)\big)

    The model: between two updates the best weights drift to the prior :math:`N(\theta_0, \sigma_0^2)`, and
    the weights are known up to :math:`s\,\sigma_0`. The share :math:`\gamma` of each leaf is the result of
    one gradient step from 1 on the predictive likelihood of the batch, clipped to [0, 1],

    .. math::
      \gamma = 1 - \mathrm{rate}\cdot\mathrm{mean}\,\left\langle \nabla L(\theta + s\,\sigma_0\,\epsilon),\;
      \theta - \theta_0 - \tfrac{1 - s^2}{s}\,\sigma_0\,\epsilon \right\rangle, \qquad \epsilon \sim N(0, 1)

    The mean is the derivative by reparametrisation; it averages the loss over samples instead of taking the
    logarithm of a mean, which is the same for one sample. While the data stay the same, ``gamma`` is near 1.
    When they change, the weights are reset a little, and steps are longer.

    The step is along the gradient at the weights after the drift, which is taken here; the given gradient is
    not the step's. So clip inside of ``inner``, and do not wrap this rule in ``optax.MultiSteps``: only the
    last of the batches would count.

    State: the state of ``inner``, a value per weight, two numbers per leaf, a key and a count. Needs
    ``params``, and the extra argument ``obj_fn``, which :func:`value_and_grad` makes. Cost: ``samples + 1``
    additional gradients. Under sharding one all-reduce of a number per leaf and sample.

    Args:
      inner: a whole optimiser, with its learning rate; it sees gradients and weights after the drift.
      rate: step size of ``gamma``, at least 0: a number, a schedule of the update count, or a traced scalar.
      ratio: ``s``, the standard deviation of the weights divided by the prior's, in (0, 1].
      samples: how many perturbed weights, at least 0; 0 reuses the gradient at the weights themselves,
        without noise.
      prior_deviation: ``sigma_0``, positive; None means the standard deviation of each leaf's initial
        weights.
      key: a random key or an integer seed for the noise; runs side by side want one each.

    Returns:
      A gradient transformation with state :class:`SoftResetsState`.

    Raises:
      TypeError: if ``inner`` is not a gradient transformation, or ``key`` not a key.
      ValueError: for an argument outside its range; at ``init``, if ``inner`` resets units, restarts or
        averages (put that around this one) or counts energy (put that after this one); at ``update``, if
        ``params`` or ``obj_fn`` are missing.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = ro.soft_resets(optax.sgd(0.0), 0.1, samples=0)
      >>> state, loss = tx.init(jnp.zeros(1)), lambda w: 0.5 * jnp.sum(w**2)
      >>> for weight in (1.0, 2.0):  # the first is the prior; then 1 - 0.1 * 2 * (2 - 1) is kept
      ...     w = jnp.array([weight])
      ...     updates, state = tx.update(w, state, w, obj_fn=loss)
      ...     print(state.kept, w + updates)
      1.0 [1.]
      0.8 [1.8]

    References:
      Galashov et al, `Non-Stationary Learning of Neural Networks with Automatic Soft Parameter Reset
      <https://arxiv.org/abs/2411.04034>`_, NeurIPS, 2024
    """
    _check.check_transformation("inner", inner)
    _check.check_schedulable("rate", rate)
    _check.check_number("ratio", ratio, low=0.0, high=1.0, low_open=True)
    _check.check_count("samples", samples, low=0)
    if prior_deviation is not None:
        _check.check_number("prior_deviation", prior_deviation, low=0.0, low_open=True)
    _check.check_key(key)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> SoftResetsState:
        _tree.check_inexact(params, "params")
        params = _tree.arrays(params)

        def whole(value: float) -> Any:
            return jax.tree.map(lambda p: jnp.full([], value, _tree.working_dtype(p)), _tree.bare(params))

        inner_state = inner.init(params)
        check_scalable("soft_resets", inner_state)
        check_outermost("soft_resets", inner_state)
        state = SoftResetsState(
            count=jnp.zeros([], jnp.int32),
            key=_state.as_key(key),
            prior_mean=_state.zeros_of(params),
            prior_deviation=whole(0.0),
            kept=whole(1.0),
            inner_state=inner_state,
        )
        return varying_like(state, params)

    def update(
        updates: optax.Updates,
        state: SoftResetsState,
        params: optax.Params | None = None,
        *,
        obj_fn: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SoftResetsState]:
        _tree.check_inexact(updates, "gradients")
        updates = _tree.arrays(updates)
        params = _check.require_params(_tree.trained(params, updates), "soft_resets")
        _check.check_gradients(_tree.bare(updates), _tree.bare(params))
        loss = required_loss("soft_resets", obj_fn, extra_args)
        prior_mean = _state.first_or(params, state.prior_mean, state.count)
        # Lists of leaves from here on.
        weights, gradients = jax.tree.leaves(params), jax.tree.leaves(updates)
        distances = jax.tree.map(_difference, weights, jax.tree.leaves(prior_mean))
        means, knowns = jax.tree.leaves(prior_mean), jax.tree.leaves(state.prior_deviation)
        deviations = [
            _deviation(mean, prior_deviation).astype(known.dtype)
            for mean, known in zip(means, knowns, strict=True)
        ]
        if prior_deviation is None:
            # Of a leaf that came later, by checkpoint.transplant, the state has the prior and 0.
            deviations = [
                jnp.where(known == 0, own, known) for own, known in zip(deviations, knowns, strict=True)
            ]
        next_key, noise_key = jax.random.split(state.key)

        def gradients_at(places: list[jax.Array]) -> list[jax.Array]:
            found = jax.grad(lambda p: jnp.real(loss(p)))(_tree.like(places, params))
            return [jnp.conj(gradient) for gradient in jax.tree.leaves(found)]

        if samples:
            slope = _mean_slopes(gradients_at, weights, distances, deviations, noise_key, samples, ratio)
        else:
            slope = jax.tree.map(_product, gradients, distances)
        step_size = _tree.at_count(rate, state.count)
        kept = [
            jnp.clip(1 - jnp.asarray(step_size).astype(own.dtype) * own, 0, 1).astype(deviation.dtype)
            for own, deviation in zip(slope, deviations, strict=True)
        ]
        leaks = jax.tree.map(lambda g, d: (g - 1).astype(d.dtype) * d, kept, distances)
        drifted = jax.tree.map(_moved, weights, leaks)
        gradients = jax.tree.map(lambda g, u: g.astype(u.dtype), gradients_at(drifted), gradients)
        steps, inner_state = inner.update(
            _tree.like(gradients, updates),
            state.inner_state,
            _tree.like(drifted, params),
            obj_fn=obj_fn,
            **extra_args,
        )

        def change(step: jax.Array, leak: jax.Array, g: jax.Array) -> jax.Array:
            factor = g**2 + (1 - g**2) / ratio**2
            return (leak + factor.astype(leak.dtype) * step.astype(leak.dtype)).astype(step.dtype)

        changes = jax.tree.map(change, jax.tree.leaves(steps), leaks, kept)
        return _tree.like(changes, steps), SoftResetsState(
            count=optax.safe_increment(state.count),
            key=next_key,
            prior_mean=prior_mean,
            prior_deviation=_tree.like(deviations, state.prior_deviation),
            kept=_tree.like(kept, state.kept),
            inner_state=inner_state,
        )

    return Declared(init, update, name="soft_resets", needs=("obj_fn",))


def _mean_slopes(
    gradients_at: Callable[[list[jax.Array]], list[jax.Array]],
    weights: list[jax.Array],
    distances: list[jax.Array],
    deviations: list[jax.Array],
    key: jax.Array,
    samples: int,
    ratio: float,
) -> list[jax.Array]:
    """Return the derivative of the loss by each leaf's share at 1, the mean over perturbations of weights."""

    def slopes(sample: int) -> list[jax.Array]:
        keys = list(jax.random.split(jax.random.fold_in(key, sample), max(len(weights), 1)))
        noise = jax.tree.map(_noise, distances, deviations, keys[: len(weights)])
        places = jax.tree.map(lambda w, e: _moved(w, ratio * e), weights, noise)
        moves = jax.tree.map(lambda d, e: d - (1 - ratio**2) / ratio * e, distances, noise)
        products: list[jax.Array] = jax.tree.map(_product, gradients_at(places), moves)
        return products

    found = [slopes(sample) for sample in range(samples)]
    return [sum(of_leaf[1:], start=of_leaf[0]) / samples for of_leaf in zip(*found, strict=True)]


def _deviation(weight: jax.Array, given: float | None) -> jax.Array:
    dtype = _tree.working_dtype(weight)
    if given is not None:
        return jnp.asarray(given).astype(dtype)
    return jnp.std(weight.astype(_tree.wide_dtype(weight))) if weight.size else jnp.zeros([], dtype)


def _difference(weight: jax.Array, mean: jax.Array) -> jax.Array:
    return weight.astype(_tree.wide_dtype(weight)) - mean.astype(_tree.wide_dtype(weight))


def _moved(weight: jax.Array, change: jax.Array) -> jax.Array:
    return (weight.astype(change.dtype) + change).astype(weight.dtype)


def _product(gradient: jax.Array, move: jax.Array) -> jax.Array:
    return jnp.sum(_tree.inner(gradient, move))


def _noise(like: jax.Array, deviation: jax.Array, key: jax.Array) -> jax.Array:
    normal = jax.random.normal(key, like.shape, like.dtype)
    return jnp.ones_like(like) * deviation.astype(like.dtype) * normal
