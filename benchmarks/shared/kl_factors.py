"""KL-Shampoo and KL-SOAP (Lin et al., 2026): a matrix's factors fitted by the Kullback-Leibler divergence."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import riemann_optax as ro

FIRST_VALUE = 0.1  # of every eigenvalue
SMALLEST_CAP, LARGEST_CAP = 10, 4000  # of 1/sqrt(eigenvalue): the size of the side, in these limits
RELATIVE_FLOOR, TINY = 1e-6, 1e-30  # of an eigenvalue that begins at the gradient's size: of their mean


class Side(NamedTuple):
    """One side of a stack of matrices.

    Attributes:
      factor: ``[*stack, n, n]``, the running mean of the correlations.
      basis: ``[*stack, n, n]``, its eigenvectors as columns.
      values: ``[*stack, n]``, its eigenvalues as they are estimated at every step.
    """

    factor: jax.Array
    basis: jax.Array
    values: jax.Array


class Factors(NamedTuple):
    """Both sides of a leaf."""

    left: Side
    right: Side


class KlFactorsState(NamedTuple):
    """State of :func:`scale_by_kl_factors`; a leaf is a stack of matrices ``[*stack, inputs, outputs]``.

    Attributes:
      count: int32 scalar, the number of updates so far.
      mean: running mean of the gradients.
      squares: running mean of the squared gradients in the basis; empty where there is no second moment.
      factors: :class:`Factors` of each leaf.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    mean: list[jax.Array]
    squares: list[jax.Array]
    factors: list[Factors]


def scale_by_kl_factors(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.98,
    eps: float = 1e-8,
    *,
    second_moment: bool = False,
    nesterov: bool = False,
    precondition_frequency: int = 10,
    scale_free: bool = False,
) -> optax.GradientTransformation:
    r"""Whiten matrices by two factors that fit the gradients' covariance in the Kullback-Leibler divergence.

    .. math::
      \min_{A, B} \mathrm{KL}\big(N(0, \overline{g g^\top})\,\|\,N(0, A \otimes B)\big): \quad
      A = \overline{G B^{-1} G^\top} / n, \quad B = \overline{G^\top A^{-1} G} / m

    for ``G`` of ``m x n``, a bar for a running mean with decay ``b2``. Each factor is ``Q diag(l) Q^T``. Its
    eigenvalues are running means at every step, of the squares of ``H = Q_A^T G Q_B``:

    .. math::
      a_i \leftarrow \beta a_i + (1-\beta)\,\mathrm{mean}_j\,H_{ij}^2 / b_j, \qquad
      b_j \leftarrow \beta b_j + (1-\beta)\,\mathrm{mean}_i\,H_{ij}^2 / a_i

    and at least ``1 / max(10, min(size, 4000))**2``. The basis is refreshed every
    ``precondition_frequency`` steps, by ``qr`` of factor times basis. The first update is 0: it only finds
    the bases, by ``eigh``, with all eigenvalues 0.1. All that an update uses is from the step before.

    With ``scale_free``, which is not published, the same problem in other units has the same steps: all
    eigenvalues are the root mean square of the first gradient at first, later corrected for their bias, and
    at least a millionth of their mean.

    - Without a second moment (KL-Shampoo): :math:`Q_A\,[(Q_A^\top M Q_B)_{ij} / \sqrt{a_i b_j}]\,Q_B^\top`.
    - With one (KL-SOAP): Adam's of ``H``, not changed when the basis is.

    ``M`` is the running mean of the gradients. Neither it nor the second moment is corrected for its bias, as
    in the authors' program; this program follows its equations in the dtype of the gradient instead of
    bfloat16. It is for matrices, as ``ro.kernel_axes`` reads them: all other axes stack matrices.

    Args:
      b1: decay of the running mean of the gradients; published 0.9.
      b2: decay of the factors and of the second moment; published 0.98.
      eps: added to the root of the second moment, or of ``a_i b_j``.
      second_moment: whether there is one.
      nesterov: whether ``M`` is ``b1 M + (1 - b1) G`` in the update; published without.
      precondition_frequency: steps between two refreshes of the bases; published 10.
      scale_free: whether eigenvalues begin at the first gradient's size, and not at 0.1.

    Returns:
      A gradient transformation.

    References:
      Lin, Lowe, Dangel, Eschenhagen, Xu and Grosse, `Understanding and Improving Shampoo and SOAP via
      Kullback-Leibler Minimization <https://arxiv.org/abs/2509.03378>`_, ICLR, 2026
    """

    def init(params: optax.Params) -> KlFactorsState:
        matrices = _matrices(params)
        return KlFactorsState(
            count=jnp.zeros([], jnp.int32),
            mean=[jnp.zeros_like(x) for x in matrices],
            squares=[jnp.zeros_like(x) for x in matrices] if second_moment else [],
            factors=[Factors(_no_side(x, -2), _no_side(x, -1)) for x in matrices],
        )

    def update(updates: Any, state: KlFactorsState, params: Any = None) -> tuple[Any, KlFactorsState]:
        del params
        gradients = _matrices(updates)
        first = state.count == 0
        turned = [_turn(g, f) for g, f in zip(gradients, state.factors, strict=True)]
        mean = [
            jnp.where(first, jnp.zeros_like(m), _average(m, g, b1))
            for m, g in zip(state.mean, gradients, strict=True)
        ]
        ahead = [_average(m, g, b1) if nesterov else m for m, g in zip(mean, gradients, strict=True)]
        whole = [_turn(m, f) for m, f in zip(ahead, state.factors, strict=True)]
        if second_moment:
            squares = [
                jnp.where(first, jnp.zeros_like(v), _average(v, h**2, b2))
                for v, h in zip(state.squares, turned, strict=True)
            ]
            sizes = [jnp.sqrt(v) for v in squares]
        else:
            squares = []
            sizes = [
                jnp.sqrt(left.values[..., :, None] * right.values[..., None, :])
                for left, right in state.factors
            ]
        steps = [
            jnp.where(first, jnp.zeros_like(m), _turn_back(m / (size + eps), f))
            for m, size, f in zip(whole, sizes, state.factors, strict=True)
        ]
        # Without a bias the first estimate is the whole mean, the t-th one of t.
        estimates = jnp.maximum(state.count, 1).astype(float)
        values_decay = b2 * (1 - b2 ** (estimates - 1)) / (1 - b2**estimates) if scale_free else b2

        def found() -> list[Factors]:
            return [_first(g, f, b2, scale_free) for g, f in zip(gradients, state.factors, strict=True)]

        def averaged() -> list[Factors]:
            rows = zip(gradients, turned, state.factors, strict=True)
            return [_next(*row, b2, values_decay, scale_free) for row in rows]

        when = jnp.where(first, 0, jnp.where(state.count % precondition_frequency == 0, 2, 1))
        factors = jax.lax.switch(
            when, [found, averaged, lambda: [_refreshed(factors) for factors in averaged()]]
        )
        new = KlFactorsState(optax.safe_increment(state.count), mean, squares, factors)
        return _arrays(steps, updates), new

    return optax.GradientTransformation(init, update)


def kl_factors(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.98,
    eps: float = 1e-8,
    *,
    weight_decay: float = 0.0,
    second_moment: bool = False,
    nesterov: bool = False,
    precondition_frequency: int = 10,
    scale_free: bool = False,
) -> optax.GradientTransformation:
    """KL-Shampoo, or KL-SOAP with ``second_moment``: matrices by :func:`scale_by_kl_factors`, others by Adam.

    The arguments are those of :func:`scale_by_kl_factors` and ``optax.adamw``.
    """
    matrices = scale_by_kl_factors(
        b1,
        b2,
        eps,
        second_moment=second_moment,
        nesterov=nesterov,
        precondition_frequency=precondition_frequency,
        scale_free=scale_free,
    )
    vectors = optax.scale_by_adam(b1, b2, eps, nesterov=nesterov)
    return optax.chain(
        optax.partition({True: matrices, False: vectors}, _are_matrices),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _are_matrices(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, leaf: bool(_axes(path, leaf).outputs), params)


def _axes(path: Any, leaf: Any) -> ro.MatrixAxes:
    return ro.kernel_axes(jax.tree_util.keystr(path), leaf)


def _order(path: Any, leaf: Any) -> tuple[tuple[int, ...], list[int]]:
    """Return the axes of a leaf in the order stack, inputs, outputs, and its shape as a stack of matrices."""
    axes = _axes(path, leaf)
    stack = tuple(axis for axis in range(leaf.ndim) if axis not in (*axes.inputs, *axes.outputs))
    sizes = [math.prod(leaf.shape[axis] for axis in side) for side in (axes.inputs, axes.outputs)]
    return (*stack, *axes.inputs, *axes.outputs), [*(leaf.shape[axis] for axis in stack), *sizes]


def _matrices(tree: Any) -> list[jax.Array]:
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        order, shape = _order(path, leaf)
        found.append(jnp.transpose(leaf, order).reshape(shape))
    return found


def _arrays(matrices: list[jax.Array], like: Any) -> Any:
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    found = []
    for x, (path, leaf) in zip(matrices, leaves, strict=True):
        order, _ = _order(path, leaf)
        permuted = x.reshape([leaf.shape[axis] for axis in order])
        found.append(jnp.transpose(permuted, [order.index(axis) for axis in range(leaf.ndim)]))
    return jax.tree.unflatten(structure, found)


# A basis is not to be decided by products in TF32.
_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _average(mean: jax.Array, x: jax.Array, decay: jax.typing.ArrayLike) -> jax.Array:
    return decay * mean + (1 - decay) * x


def _turn(x: jax.Array, factors: Factors) -> jax.Array:
    return _einsum("...ia,...ij,...jb->...ab", factors.left.basis, x, factors.right.basis)


def _turn_back(x: jax.Array, factors: Factors) -> jax.Array:
    return _einsum("...ia,...ab,...jb->...ij", factors.left.basis, x, factors.right.basis)


def _no_side(x: jax.Array, axis: int) -> Side:
    size = x.shape[axis]
    factor, basis = (jnp.zeros((*x.shape[:-2], size, size), x.dtype) for _ in range(2))
    return Side(factor, basis, jnp.full((*x.shape[:-2], size), FIRST_VALUE, x.dtype))


def _first(gradient: jax.Array, factors: Factors, decay: jax.typing.ArrayLike, scale_free: bool) -> Factors:
    """Return the factors of the first gradient, by plain correlations, and their eigenvectors."""
    size = jnp.sqrt(jnp.mean(gradient**2, (-2, -1), keepdims=True))
    size = jnp.where(size == 0, 1.0, size)

    def side(old: Side, x: jax.Array) -> Side:
        factor = (1 - decay) * _einsum("...ij,...kj->...ik", x, x) / x.shape[-1]
        values = old.values
        if scale_free:
            factor, values = factor / size, jnp.broadcast_to(size[..., 0], values.shape)
        return Side(factor, jnp.flip(jnp.linalg.eigh(factor)[1], -1), values)

    return Factors(side(factors.left, gradient), side(factors.right, jnp.swapaxes(gradient, -1, -2)))


def _next(
    gradient: jax.Array,
    turned: jax.Array,
    factors: Factors,
    decay: jax.typing.ArrayLike,
    values_decay: jax.typing.ArrayLike,
    scale_free: bool,
) -> Factors:
    """Return factors and eigenvalues one step on, in the bases there are."""

    def side(old: Side, other: Side, x: jax.Array, h: jax.Array) -> Side:
        half = _einsum("...ij,...jb->...ib", x, other.basis) / jnp.sqrt(other.values[..., None, :])
        factor = _average(old.factor, _einsum("...ib,...kb->...ik", half, half) / x.shape[-1], decay)
        values = _average(old.values, jnp.mean(h**2 / other.values[..., None, :], -1), values_decay)
        cap = max(SMALLEST_CAP, min(x.shape[-2], LARGEST_CAP))
        floor = RELATIVE_FLOOR * jnp.mean(values, -1, keepdims=True) + TINY if scale_free else cap**-2
        return Side(factor, old.basis, jnp.maximum(values, floor))

    return Factors(
        side(factors.left, factors.right, gradient, turned),
        side(factors.right, factors.left, *(jnp.swapaxes(x, -1, -2) for x in (gradient, turned))),
    )


def _refreshed(factors: Factors) -> Factors:
    def side(old: Side) -> Side:
        return old._replace(basis=jnp.linalg.qr(_einsum("...ij,...ja->...ia", old.factor, old.basis))[0])

    return Factors(*map(side, factors))
