"""Learned rates: each weight adapts its own rate to whether successive steps agree."""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes
from riemann_optax._conventions import MatrixAxes
from riemann_optax._declare import ABOVE_MINUS_1, Phi
from riemann_optax._state_fields import declare_fields
from riemann_optax._tree import inner
from riemann_optax.phi import _state
from riemann_optax.phi._layers import mean_square_inputs

Form = Literal["inputs", "gradients"]
FORMS: tuple[str, ...] = get_args(Form)

# Rates stay between exp(-30) and exp(9): above, 1 + phi = exp(-beta) would lose its digits in float32.
_SMALLEST_LOG_RATE = -30.0
_LARGEST_LOG_RATE = 9.0


@declare_fields(linear=("trace",), squared=("log_rate",))
class IDBDState(NamedTuple):
    """State of :func:`idbd`.

    Attributes:
      log_rate: ``beta``, the logarithm of each weight's rate, shaped like the parameters.
      trace: ``h``, the decaying sum of the recent steps of each weight, shaped like the parameters.
    """

    log_rate: optax.Updates
    trace: optax.Updates


def idbd(
    *,
    meta_rate: float = 1e-3,
    initial_rate: float = 0.05,
    form: Form = "inputs",
    smallest_log_rate: float = -10.0,
    largest_change: float = 2.0,
    axes: Axes = "flax",
    state_dtype: Any = None,
) -> Phi:
    r"""Incremental delta-bar-delta (IDBD): rates that follow their own gradient.

    .. math::
      \beta \leftarrow \beta - \theta\,g\,h, \qquad E = e^{-\beta}, \qquad
      h \leftarrow h\,\big[1 - e^\beta\,\overline{x^2}\big]_+ - e^\beta g

    Use ``alpha = 1`` and a learning rate of 1: the step is ``-exp(beta) * g`` and ``h`` assumes so. For a
    linear unit with error ``delta``, half the squared error as the loss and one example at a time, ``-g =
    delta * x`` and this is the published rule, equal to it in float64; ``mean(x**2)`` is the curvature of the
    loss of a batch.

    ``form="inputs"`` needs the extra argument ``inputs``: a tree like the parameters, at each leaf the inputs
    of its layer, shaped like the weights without the axes of the fan-out (a vector: like the weights) with
    any batch axes in front; for biases the number 1. In a Flax NNX loop: ``optimizer.update(model, gradients,
    inputs={"kernel": x, "bias": 1.0})``, with ``x`` from the forward pass (``self.sow`` for inner layers).
    ``form="gradients"`` puts ``abs(g)**2`` in the place of ``x**2``: an approximation in other units (the
    squared error is in it), for layers that are not linear; it is not the published rule.

    ``phi > -1``, negative where a rate exceeds 1. State: 2 values per weight. No collective. The trace is its
    own memory window.

    Args:
      meta_rate: ``theta``, the rate of the rates, at least 0. Default 1e-3; published experiments vary it.
      initial_rate: ``exp(beta)`` at the start, at least ``exp(smallest_log_rate)``. Default 0.05, the
        published one.
      form: ``"inputs"`` or ``"gradients"``.
      smallest_log_rate: the lower bound of ``beta``, at least -30. Default -10, as the paper advises.
      largest_change: the largest change of ``beta`` in one update, positive. Default 2, as the paper advises.
      axes: which axes are inputs and outputs: a preset of :func:`riemann_optax.kernel_axes`,
        :class:`riemann_optax.MatrixAxes`, a function of a leaf's name and the leaf that returns either, or a
        dictionary of these by the names of modules.
      state_dtype: of the state; None means float32, or wider where the parameter is wider. In bfloat16 small
        changes of ``beta`` round away.

    Returns:
      A phi with state :class:`IDBDState`. ``beta`` never exceeds 9.

    Raises:
      ValueError: for an argument outside its range; at ``update``, where ``inputs`` are missing or have other
        shapes.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.idbd(meta_rate=0.5)
      >>> gradients, x = jnp.array([-1.0, -1.0]), jnp.array([1.0, 1.0])
      >>> state = phi.init(gradients)
      >>> _, state = phi.update(gradients, state, inputs=x)
      >>> values, _ = phi.update(jnp.array([-1.0, 1.0]), state, inputs=x)  # goes on; turns round
      >>> print(1 / (1 + values))  # 0.05 * exp(0.5 * 0.05) and 0.05 * exp(-0.5 * 0.05)
      [0.0513 0.0488]

    References:
      Sutton, `Adapting Bias by Gradient Descent: An Incremental Version of Delta-Bar-Delta
      <https://cdn.aaai.org/AAAI/1992/AAAI92-027.pdf>`_, AAAI, 1992
    """
    _check.check_number("meta_rate", meta_rate, low=0.0)
    _check_rates(initial_rate, form, state_dtype, axes)
    _check.check_number(
        "smallest_log_rate", smallest_log_rate, low=_SMALLEST_LOG_RATE, high=_LARGEST_LOG_RATE
    )
    if _check.is_concrete_number(smallest_log_rate):  # a smaller one would become this at the first update
        _check.check_number("initial_rate", initial_rate, low=math.exp(smallest_log_rate))
    _check.check_number("largest_change", largest_change, low=0.0, low_open=True)

    def init(params: optax.Params) -> IDBDState:
        return IDBDState(
            log_rate=_initial_log_rates(params, initial_rate, state_dtype),
            trace=_tree.vectors_like(params, state_dtype),
        )

    def update(
        updates: optax.Updates,
        state: IDBDState,
        params: optax.Params | None = None,
        *,
        inputs: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, IDBDState]:
        del params, extra_args
        squares = _squares("idbd", form, inputs, updates, axes)

        def learn(gradient: jax.Array, beta: jax.Array, trace: jax.Array) -> jax.Array:
            agreement = -inner(gradient, trace)
            bound = jnp.asarray(largest_change).astype(agreement.dtype)
            change = jnp.clip(jnp.asarray(meta_rate).astype(agreement.dtype) * agreement, -bound, bound)
            return jnp.clip(beta.astype(agreement.dtype) + change, smallest_log_rate, _LARGEST_LOG_RATE)

        log_rate = jax.tree.map(learn, updates, state.log_rate, state.trace)
        trace = jax.tree.map(_next_trace, updates, log_rate, squares, state.trace)
        new_state = IDBDState(
            _state.cast_like(log_rate, state.log_rate), _state.cast_like(trace, state.trace)
        )
        return jax.tree.map(_rigidity, log_rate), new_state

    return Phi(
        init, update, name="idbd", needs=() if form == "gradients" else ("inputs",), least=ABOVE_MINUS_1
    )


@declare_fields(linear=("trace",), squared=("log_rate", "normalizer"))
class AutostepState(NamedTuple):
    """State of :func:`autostep`.

    Attributes:
      log_rate: the logarithm of each weight's rate, shaped like the parameters.
      trace: ``h``, the decaying sum of the recent steps of each weight, shaped like the parameters.
      normalizer: ``v``, a running maximum of ``abs(g * h)``, shaped like the parameters.
    """

    log_rate: optax.Updates
    trace: optax.Updates
    normalizer: optax.Updates


def autostep(
    *,
    meta_rate: float = 0.01,
    window: float = 1e4,
    initial_rate: float = 0.05,
    form: Form = "inputs",
    axes: Axes = "flax",
    state_dtype: Any = None,
) -> Phi:
    r"""Autostep: incremental delta-bar-delta that needs no tuning.

    .. math::
      v \leftarrow \max\Big(|g h|,\; v + \tfrac{1}{\tau}\,a\,\overline{x^2}\,\big(|g h| - v\big)\Big), \qquad
      a \leftarrow a\,e^{-\mu g h / v}, \qquad
      a \leftarrow \frac{a}{\max\big(1, \sum_\mathrm{fan\,in} a\,\overline{x^2}\big)}

    .. math::
      E = 1/a, \qquad h \leftarrow h\,\big(1 - a\,\overline{x^2}\big) - a\,g

    :func:`idbd` with the meta-gradient divided by its running maximum and with rates that never overshoot the
    current example. Use ``alpha = 1`` and a learning rate of 1. For a linear unit, half the squared error and
    one example at a time this is the published rule, equal to it in float64. The sum runs over the fan-in, as
    ``axes`` reads it. (A bias is a leaf by itself: to include it, append a constant input. For a vector of
    weights the sum runs over the whole vector; for biases, with 1 as ``inputs``, there is no sum.)

    Needs the extra argument ``inputs`` as :func:`idbd` does, or ``form="gradients"``, the same approximation.

    ``phi > -1``, negative where a rate exceeds 1. State: 3 values per weight. Under sharding of the fan-in
    one all-reduce of a value per neuron for each leaf. ``window`` is the memory of the running maximum.

    Args:
      meta_rate: ``mu``, at least 0. Published default 0.01.
      window: ``tau``, at least 1, in updates of an effective rate of 1. Published default 1e4.
      initial_rate: ``a`` at the start, positive. Default 0.05 (the paper leaves it to the user).
      form: ``"inputs"`` or ``"gradients"``.
      axes: which axes are inputs and outputs: a preset of :func:`riemann_optax.kernel_axes`,
        :class:`riemann_optax.MatrixAxes`, a function of a leaf's name and the leaf that returns either, or a
        dictionary of these by the names of modules.
      state_dtype: of the state; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`AutostepState`. Rates are kept between exp(-30) and exp(9).

    Raises:
      ValueError: for an argument outside its range; at ``update``, where ``inputs`` are missing or have other
        shapes.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.autostep(meta_rate=0.5, initial_rate=0.1)
      >>> gradients, x = jnp.array([-1.0, -1.0]), jnp.array([1.0, 1.0])
      >>> state = phi.init(gradients)
      >>> _, state = phi.update(gradients, state, inputs=x)
      >>> values, _ = phi.update(jnp.array([-1.0, 1.0]), state, inputs=x)  # goes on; turns round
      >>> print(1 / (1 + values))  # 0.1 * exp(0.5) and 0.1 * exp(-0.5), whatever the gradient's size
      [0.165 0.0607]

    References:
      Mahmood, Sutton, Degris and Pilarski, `Tuning-free step-size adaptation
      <https://doi.org/10.1109/ICASSP.2012.6288330>`_, ICASSP, 2012
    """
    _check.check_number("meta_rate", meta_rate, low=0.0)
    _check.check_number("window", window, low=1.0)
    _check_rates(initial_rate, form, state_dtype, axes)

    def init(params: optax.Params) -> AutostepState:
        return AutostepState(
            log_rate=_initial_log_rates(params, initial_rate, state_dtype),
            trace=_tree.vectors_like(params, state_dtype),
            normalizer=_tree.zeros_like(params, state_dtype),
        )

    def update(
        updates: optax.Updates,
        state: AutostepState,
        params: optax.Params | None = None,
        *,
        inputs: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AutostepState]:
        del params, extra_args
        squares = _squares("autostep", form, inputs, updates, axes)

        def track(g: jax.Array, beta: jax.Array, square: jax.Array, h: jax.Array, v: jax.Array) -> jax.Array:
            size = jnp.abs(inner(g, h))
            v = v.astype(size.dtype)
            share = jnp.exp(beta.astype(size.dtype)) * square / jnp.asarray(window).astype(size.dtype)
            # A huge gradient must not make the normaliser infinite: it would never come down again.
            return jnp.minimum(jnp.maximum(size, v + share * (size - v)), np.finfo(size.dtype).max)

        def learn(
            read: MatrixAxes | None,
            g: jax.Array,
            beta: jax.Array,
            square: jax.Array,
            h: jax.Array,
            v: jax.Array,
        ) -> jax.Array:
            beta = beta.astype(v.dtype)
            agreement = -inner(g, h) / jnp.where(v > 0, v, jnp.ones_like(v))
            beta = beta + jnp.asarray(meta_rate).astype(v.dtype) * agreement
            overshoot = jnp.maximum(_sum_over_fan_in(read, jnp.exp(beta) * square, square), 1)
            return jnp.clip(beta - jnp.log(overshoot), _SMALLEST_LOG_RATE, _LARGEST_LOG_RATE)

        normalizer = jax.tree.map(track, updates, state.log_rate, squares, state.trace, state.normalizer)
        log_rate = _axes.map_leaves(learn, axes, updates, state.log_rate, squares, state.trace, normalizer)
        trace = jax.tree.map(_next_trace, updates, log_rate, squares, state.trace)
        new_state = AutostepState(
            log_rate=_state.cast_like(log_rate, state.log_rate),
            trace=_state.cast_like(trace, state.trace),
            normalizer=_state.cast_like(normalizer, state.normalizer),
        )
        return jax.tree.map(_rigidity, log_rate), new_state

    return Phi(
        init, update, name="autostep", needs=() if form == "gradients" else ("inputs",), least=ABOVE_MINUS_1
    )


def _check_rates(initial_rate: float, form: str, state_dtype: Any, axes: Axes) -> None:
    _axes.check_axes(axes)
    _check.check_number("initial_rate", initial_rate, low=0.0, low_open=True)
    _check.check_choice("form", form, FORMS)
    _check.check_state_dtype(state_dtype)


def _initial_log_rates(params: optax.Params, initial_rate: float, state_dtype: Any) -> Any:
    log_rate = jnp.log(jnp.asarray(initial_rate))
    return jax.tree.map(lambda z: z + log_rate.astype(z.dtype), _tree.zeros_like(params, state_dtype))


def _squares(name: str, form: str, inputs: Any, updates: optax.Updates, axes: Axes) -> Any:
    if form == "gradients":
        return jax.tree.map(_tree.squared_magnitude, updates)
    return mean_square_inputs(name, inputs, updates, axes)


def _sum_over_fan_in(read: MatrixAxes | None, values: jax.Array, square: jax.Array) -> jax.Array:
    """Sum over the fan-in, keeping the rank; a vector is summed only if it has inputs, unlike biases."""
    if read is None or (square.ndim == 0 and not read.outputs):
        return values
    return jnp.sum(values, axis=read.inputs, keepdims=True)


def _next_trace(gradient: jax.Array, beta: jax.Array, square: jax.Array, trace: jax.Array) -> jax.Array:
    rate = jnp.exp(beta)
    dtype = np.promote_types(rate.dtype, trace.dtype)
    kept = jnp.maximum(1 - rate * square, 0)
    return kept.astype(dtype) * trace.astype(dtype) - rate.astype(dtype) * jnp.asarray(gradient).astype(dtype)


def _rigidity(beta: jax.Array) -> jax.Array:
    return jnp.expm1(-beta)
