"""Structure: one value shared by the synapses of a row, a column or a neuron."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes
from riemann_optax._conventions import MatrixAxes
from riemann_optax._declare import Phi
from riemann_optax._state_fields import declare_fields
from riemann_optax.phi import _state
from riemann_optax.phi._factors import Pair, group_means, share
from riemann_optax.phi._layers import fan_in, mean_square_activities


@declare_fields(squared=("rows", "columns"), nonnegative=("rows", "columns"))
class FactoredActivityState(NamedTuple):
    """State of :func:`factored_activity`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      rows: running mean of the squared gradients of each row, shape (..., rows, 1); for a vector, of each
        weight.
      columns: the same for each column, shape (..., 1, columns); for a vector, unused zeros.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    rows: optax.Updates
    columns: optax.Updates


def factored_activity(
    *, decay: float = 0.99, power: float = 0.5, axes: Axes = "flax", state_dtype: Any = None
) -> Phi:
    r"""Mean squared gradients by row and by column, in almost no memory.

    .. math::
      \varphi_{ij} = \Big(\frac{r_i\,c_j}{\mathrm{mean}(r)}\Big)^p

    with ``r`` and ``c`` the bias-corrected running means of the squared gradients of each row and column. If
    the squares have rank one, ``|g_ij|**2 = a_i * b_j``, this equals :func:`activity` exactly. It is the
    second moment of Adafactor, equal to it in float64, without Adafactor's clipped and relative steps and
    its growing decay.

    Rows and columns are the fan-in and the fan-out as ``axes`` reads them, in either order; stacked layers
    are separate matrices. Vectors, such as biases, have no rows and columns: **there this is**
    :func:`activity`, with one value of state per weight.

    ``phi >= 0``. State: ``1/rows + 1/columns`` values per weight. Under sharding one all-reduce of a value
    per row for each leaf with sharded columns, and one of a value per column (and of their mean) for each
    leaf with sharded rows; XLA combines them.

    Args:
      decay: of the running means, in [0, 1), per update; the memory window.
      power: the exponent ``p`` of the mean square, positive; 0.5 makes phi a gradient size.
      axes: which axes are inputs and outputs: a preset of :func:`riemann_optax.kernel_axes`,
        :class:`riemann_optax.MatrixAxes`, a function of a leaf's name and the leaf that returns either, or a
        dictionary of these by the names of modules.
      state_dtype: of the running means; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`FactoredActivityState`.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1), a ``power`` that is not positive, or a
        ``state_dtype`` that is not real floating point.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.factored_activity(decay=0.0)
      >>> gradients = jnp.outer(jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0, 2.0]))
      >>> state = phi.init(gradients)
      >>> print(state.rows.shape, state.columns.shape)
      (2, 1) (1, 3)
      >>> print(phi.update(gradients, state)[0].round(4))  # of rank one: abs(gradients)
      [[1. 1. 2.]
       [2. 2. 4.]]

    References:
      Shazeer and Stern, `Adafactor: Adaptive Learning Rates with Sublinear Memory Cost
      <https://arxiv.org/abs/1804.04235>`_, ICML, 2018
    """
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_number("power", power, low=0.0, low_open=True)
    _check.check_state_dtype(state_dtype, squares=True)
    _axes.check_axes(axes)

    def init(params: optax.Params) -> FactoredActivityState:
        zeros = _tree.zeros_like(_tree.bare(params), state_dtype)
        return FactoredActivityState(
            count=jnp.zeros([], jnp.int32),
            # Sums of zeros are zeros of the reduced shape, with the sharding of the remaining axes.
            rows=_axes.map_leaves(lambda read, x: _summed_copy(x, _row_axes(read)), axes, zeros),
            columns=_axes.map_leaves(
                lambda read, x: _summed_copy(x, _column_axes(read, x.ndim)), axes, zeros
            ),
        )

    def update_with_means(
        over: _tree.Group | None,
        updates: optax.Updates,
        state: FactoredActivityState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any, FactoredActivityState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        bare = _tree.bare(updates)
        structure: Any
        gradients, structure = jax.tree.flatten(bare)
        reads = _axes.read(bare, axes)
        old_rows, old_columns = (structure.flatten_up_to(tree) for tree in (state.rows, state.columns))
        average = _state.averaging(decay)
        rows = list(map(average, map(_row_means, reads, gradients), old_rows))
        columns = [
            # Unused, and unchanged, for a leaf that is not a matrix.
            old if _axes.sides(read) is None else average(_column_means(read, gradient), old)
            for read, gradient, old in zip(reads, gradients, old_columns, strict=True)
        ]
        pairs = _factors(reads, _state.debias(rows, decay, count), rows, columns, power)
        values = [first if second is None else first * second for first, second in pairs]
        means = group_means(pairs, over)
        rows, columns = (
            jax.tree.unflatten(structure, _state.cast_like(new, old))
            for new, old in ((rows, old_rows), (columns, old_columns))
        )
        return (
            _tree.like(values, updates),
            None if means is None else _tree.like(means, updates),
            FactoredActivityState(count, rows, columns),
        )

    def update(
        updates: optax.Updates, state: FactoredActivityState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, FactoredActivityState]:
        values, _, new_state = update_with_means(None, updates, state, params, **extra)
        return values, new_state

    return Phi(init, update, name="factored_activity", update_with_means=update_with_means)


@declare_fields(squared=("second_moment",), nonnegative=("second_moment",))
class PerNeuronState(NamedTuple):
    """State of :func:`per_neuron`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      second_moment: running mean of the squared gradients of each neuron, shaped like the weights with 1 for
        the axes of the fan-in; a scalar for a vector, which is one neuron; shaped like the weights
        where ``axes`` is None.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    second_moment: optax.Updates


def per_neuron(
    *, decay: float = 0.99, power: float = 0.5, axes: Axes = "flax", state_dtype: Any = None
) -> Phi:
    r"""Activity of a whole neuron: one phi for all synapses onto it.

    .. math::
      \varphi_{ij} = \Big(\mathrm{mean}_i\,\hat v_{ij}\Big)^p

    with ``v`` the bias-corrected running mean of the squared gradient and the mean over the fan-in, as
    ``axes`` reads it. A vector is one neuron; in an embedding each row is one. For kernels of linear layers
    it equals Adam-mini's second moment in float64; for attention Adam-mini has one value per head.

    ``phi >= 0``. State: 1 value per neuron. If the fan-in is sharded, one all-reduce of a value per neuron
    for each leaf; XLA combines them.

    Args:
      decay: of the running mean, in [0, 1), per update; the memory window.
      power: the exponent ``p`` of the mean square, positive; 0.5 makes phi a gradient size.
      axes: which axes are inputs and outputs, as in :func:`factored_activity`.
      state_dtype: of the running mean; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`PerNeuronState`.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1), a ``power`` that is not positive, or a
        ``state_dtype`` that is not real floating point.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.per_neuron()
      >>> gradients = jnp.array([[1.0, 3.0], [7.0, -3.0]])  # two inputs, two neurons
      >>> print(phi.update(gradients, phi.init(gradients))[0])
      [[5. 3.]
       [5. 3.]]

    References:
      Zhang et al, `Adam-mini: Use Fewer Learning Rates To Gain More <https://arxiv.org/abs/2406.16793>`_,
      arXiv, 2024
    """
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_number("power", power, low=0.0, low_open=True)
    _check.check_state_dtype(state_dtype, squares=True)
    _axes.check_axes(axes)

    def init(params: optax.Params) -> PerNeuronState:
        zeros = _tree.zeros_like(_tree.bare(params), state_dtype)
        return PerNeuronState(jnp.zeros([], jnp.int32), _axes.group_mean(zeros, "neuron", axes))

    def update(
        updates: optax.Updates, state: PerNeuronState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, PerNeuronState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        gradients = _tree.bare(updates)
        squares = jax.tree.map(_tree.squared_magnitude, gradients)
        means = jax.tree.map(_saturate, _axes.group_mean(squares, "neuron", axes))
        second_moment = _state.running_mean(means, state.second_moment, decay)
        values = _tree.power(_state.debias(second_moment, decay, count), power)
        new_state = PerNeuronState(count, _state.cast_like(second_moment, state.second_moment))
        return _tree.like(jax.tree.map(_spread, values, gradients), updates), new_state

    return Phi(init, update, name="per_neuron")


@declare_fields(squared=("threshold",), nonnegative=("threshold",))
class SlidingThresholdState(NamedTuple):
    """State of :func:`sliding_threshold`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      threshold: running mean of the squared activity of each neuron, shaped like the weights with 1 for the
        axes of the fan-in.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    threshold: optax.Updates


def sliding_threshold(*, decay: float = 0.99, axes: Axes = "flax", state_dtype: Any = None) -> Phi:
    r"""Sliding threshold of Bienenstock, Cooper and Munro (BCM): an active neuron is hard to excite further.

    .. math::
      \varphi_{ij} = \theta_j = \overline{y_j^2}

    with ``y`` the activity of the postsynaptic neuron and a bar for the bias-corrected running mean. Law and
    Cooper divide the learning rate by this threshold, ``dw = eta * y * (y - theta) * x / theta``. This is
    the metric ``E = theta``: use ``multiply_metric(sliding_threshold())`` after ``compute_metric`` with
    ``alpha = 0``.

    Needs the extra argument ``activities``: a tree like the parameters, at each leaf the activities of its
    neurons, shaped like the weights without the axes of the fan-in (biases like themselves), with any batch
    axes in front. In a Flax NNX loop: ``optimizer.update(model, gradients, activities={"kernel": y, "bias":
    y})``, with ``y`` from the forward pass (``self.sow`` for inner layers).

    ``phi >= 0``. State: 1 value per neuron. No collective of its own; under data parallelism the mean over
    the batch is one all-reduce of a value per neuron.

    Args:
      decay: of the running mean, in [0, 1), per update; the memory window.
      axes: which axes are inputs and outputs, as in :func:`factored_activity`.
      state_dtype: of the running mean; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`SlidingThresholdState`.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1) or a ``state_dtype`` that is not real floating
        point; at ``update``, where ``activities`` are missing or have other shapes.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.sliding_threshold()
      >>> kernel = jnp.zeros((2, 3))
      >>> y = jnp.array([[1.0, 2.0, 0.0], [1.0, 0.0, 4.0]])  # a batch of two, three neurons
      >>> print(phi.update(kernel, phi.init(kernel), activities=y)[0])
      [[1. 2. 8.]
       [1. 2. 8.]]

    References:
      Bienenstock, Cooper and Munro, `Theory for the development of neuron selectivity
      <https://doi.org/10.1523/JNEUROSCI.02-01-00032.1982>`_, Journal of Neuroscience, 1982

      Law and Cooper, `Formation of receptive fields in realistic visual environments according to the
      Bienenstock, Cooper, and Munro (BCM) theory <https://doi.org/10.1073/pnas.91.16.7797>`_, PNAS, 1994
    """
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_state_dtype(state_dtype, squares=True)
    _axes.check_axes(axes)

    def neurons(read: MatrixAxes | None, zeros: jax.Array) -> jax.Array:
        return _tree.mean(zeros, fan_in(read))

    def init(params: optax.Params) -> SlidingThresholdState:
        zeros = _axes.map_leaves(neurons, axes, _tree.zeros_like(_tree.bare(params), state_dtype))
        return SlidingThresholdState(jnp.zeros([], jnp.int32), zeros)

    def update(
        updates: optax.Updates,
        state: SlidingThresholdState,
        params: optax.Params | None = None,
        *,
        activities: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SlidingThresholdState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        gradients = _tree.bare(updates)
        squares = mean_square_activities("sliding_threshold", activities, gradients, axes)
        threshold = _state.running_mean(squares, state.threshold, decay)
        values = jax.tree.map(_spread, _state.debias(threshold, decay, count), gradients)
        return _tree.like(values, updates), SlidingThresholdState(
            count, _state.cast_like(threshold, state.threshold)
        )

    return Phi(init, update, name="sliding_threshold", needs=("activities",))


def _factors(
    reads: list[MatrixAxes | None],
    debiased: list[jax.Array],
    rows: list[jax.Array],
    columns: list[jax.Array],
    power: float,
) -> list[Pair]:
    """Return the two factors of phi for each leaf; the second is None for a leaf that is not a matrix."""
    found = map(_axes.sides, reads)
    matrices = {index: sides for index, sides in enumerate(found) if sides is not None}
    shares = {index: _share(sides, rows[index], columns[index]) for index, sides in matrices.items()}
    # Raise each factor to the power, not their product: a root per row and column, not per weight.
    raised, shares = _tree.power((debiased, shares), power)
    for index, (_, outputs) in matrices.items():
        # A share is at most columns**power, so that a bound on the first factor keeps the product finite.
        number = max(math.prod(columns[index].shape[axis] for axis in outputs), 1)
        limit = _limit(rows[index].dtype)
        # By logarithms: the power itself overflows a Python float from about 8 on.
        if not _check.is_concrete_number(power) or power * math.log(limit * number) > math.log(limit):
            raised[index] = jnp.minimum(raised[index], limit / number**power)
    return [(first, shares.get(index)) for index, first in enumerate(raised)]


def _share(sides: _axes.Sides, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return each column's mean square divided by the matrix's mean square; 0 where all are 0."""
    mean = _tree.mean(rows, sides[0])
    return share(columns, jnp.where(mean < np.finfo(mean.dtype).tiny, 0, mean))


def _row_axes(read: MatrixAxes | None) -> tuple[int, ...]:
    """Return the axes that rows extend over; none for a leaf without rows."""
    sides = _axes.sides(read)
    return () if sides is None else sides[1]


def _column_axes(read: MatrixAxes | None, ndim: int) -> tuple[int, ...]:
    """Return the axes that columns extend over; all axes of a vector."""
    sides = _axes.sides(read)
    if sides is not None:
        return sides[0]
    return tuple(range(ndim)) if read is None else (*read.inputs, *read.outputs)


def _summed_copy(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axis=axes, keepdims=True) if axes else jnp.array(x, copy=True)


def _row_means(read: MatrixAxes | None, gradient: jax.Array) -> jax.Array:
    """Return the mean square of each row, shape (..., rows, 1); the squares if it is no matrix."""
    axes = _row_axes(read)
    if not axes:
        return _tree.squared_magnitude(gradient)
    return _saturate(_tree.mean(jnp.square(_state.real(gradient)), axes))


def _column_means(read: MatrixAxes | None, gradient: jax.Array) -> jax.Array:
    """Return the mean square of each column of a matrix, shape (..., 1, columns)."""
    axes = _column_axes(read, gradient.ndim)
    # Deliberately unlike _row_means (the 2 cancels): if XLA saw the same expression twice it would
    # materialise all squares, which on a CPU costs as much as the whole update.
    return _saturate(_tree.mean(jnp.square(2 * _state.real(gradient)), axes) / 4)


def _limit(dtype: Any) -> float:
    """Return the bound of mean squares, the same as in ``squared_magnitude``."""
    return 2.0**1022 if dtype.itemsize > 4 else 2.0**126


def _saturate(mean: jax.Array) -> jax.Array:
    """Bound a mean of squares like the squares themselves, because its sum may overflow."""
    return jnp.minimum(mean, _limit(mean.dtype))


def _spread(value: jax.Array, gradient: jax.Array) -> jax.Array:
    """Broadcast a value per group to the weights, with their sharding."""
    return value + jnp.zeros_like(gradient, dtype=value.dtype)
