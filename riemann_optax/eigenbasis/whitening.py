"""The running means of correlations: plain, of tempered gradients, or fitted by the KL divergence."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from riemann_optax import _tree
from riemann_optax.eigenbasis import bases
from riemann_optax.eigenbasis.frame import averaged
from riemann_optax.eigenbasis.layout import Layout
from riemann_optax.eigenbasis.mesh import on_auto_mesh
from riemann_optax.eigenbasis.orthonormal import EXACT

_FLOOR = 1e-6  # of the mean eigenvalue; directions without gradients would divide by 0


def averaged_factors(
    correlate: str,
    gradients: list[Any],
    layouts: list[Layout | None],
    squares: dict[str, list[Any]],
    count: jax.Array,
    decay: Any,
) -> tuple[list[Any], list[Any]]:
    """Return the running means of both sides' correlations, updated with these gradients."""
    if correlate == "whitened_gradients":
        return _whitened_averages(gradients, layouts, squares, count, decay)
    tempered = correlate == "tempered_gradients"
    return (
        averaged(gradients, layouts, squares["left_factors"], "left", decay, tempered),
        averaged(gradients, layouts, squares["right_factors"], "right", decay, tempered),
    )


def _whitened_averages(
    gradients: list[Any],
    layouts: list[Layout | None],
    squares: dict[str, list[Any]],
    count: jax.Array,
    decay: Any,
) -> tuple[list[Any], list[Any]]:
    r"""Return the running means of both sides' correlations, of gradients whitened on the other side.

    .. math::
      L \leftarrow \beta L + (1-\beta)\,G\,Q_R\,\mathrm{diag}(r)^{-1} Q_R^\top G^\top, \qquad
      r_j = \frac{q_j^\top R\,q_j}{m} + \beta^t\,\bar r

    for ``G`` of ``m x n``, with everything on the right side from the last update, and the other side alike.
    The mean eigenvalue :math:`\bar r` stands for the updates before the first, which found few directions.
    At the first update, and while a factor is 0, ``r`` is the root mean square of the gradient.
    """

    def all_leaves(
        gradients: list[Any],
        left: list[Any],
        right: list[Any],
        q_left: list[Any],
        q_right: list[Any],
        count: Any,
        decay: Any,
    ) -> tuple[list[Any], list[Any]]:
        new: tuple[list[Any], list[Any]] = ([], [])
        for gradient, layout, *rest in zip(gradients, layouts, left, right, q_left, q_right, strict=True):
            factors, own = rest[:2], rest[2:]
            if layout is None:
                for column, factor in zip(new, factors, strict=True):
                    column.append(factor)
                continue
            matrices = layout.matrices(_tree.to_working_dtype(gradient))
            rate = jnp.asarray(decay).astype(matrices.dtype)
            both = (
                _whitened(matrices, factors[1], own[1], "right", count, rate),
                _whitened(matrices, factors[0], own[0], "left", count, rate),
            )
            for side, column, factor, white in zip(("left", "right"), new, factors, both, strict=True):
                column.append(factor if _tree.is_masked(factor) else _averaged(factor, white, side, rate))
        return new

    sides = squares["left_factors"], squares["right_factors"]
    return on_auto_mesh(  # type: ignore[no-any-return]
        all_leaves, sides, gradients, *sides, squares["left_bases"], squares["right_bases"], count, decay
    )


def _averaged(factor: jax.Array, white: jax.Array, side: Any, rate: jax.Array) -> jax.Array:
    mean = rate * factor.astype(white.dtype) + (1 - rate) * bases.correlations(white, side)
    return mean.astype(factor.dtype)


def _whitened(
    matrices: jax.Array,
    factor: Any,
    basis: Any,
    side: Literal["left", "right"],
    count: jax.Array,
    rate: jax.Array,
) -> jax.Array:
    """Return matrices ``[*stack, p, a, q, c]`` in the basis of one side, over the roots of its eigenvalues.

    A side without a basis whitens nothing.
    """
    if _tree.is_masked(factor):
        return matrices
    stored = factor.dtype
    factor, basis = factor.astype(matrices.dtype), basis.astype(matrices.dtype)
    left = side == "left"
    turned = bases.turn(matrices, basis if left else None, None if left else basis, EXACT)
    others = matrices.shape[-2] * matrices.shape[-1] if left else matrices.shape[-4] * matrices.shape[-3]
    values = jnp.sum(basis * jnp.matmul(factor, basis, precision=EXACT), axis=-2) / others
    missing = rate ** count.astype(rate.dtype)  # the weight of the updates before the first
    mean = jnp.mean(values, axis=-1, keepdims=True) / jnp.where(count == 0, 1, 1 - missing)
    # Quotients of a factor in half precision have the errors of its entries.
    floor = max(_FLOOR, float(jnp.finfo(stored).eps))  # type: ignore[no-untyped-call]
    size = jnp.sqrt(jnp.mean(jnp.square(matrices), axis=(-4, -3, -2, -1)))[..., None, None]
    size = jnp.where(size == 0, jnp.ones_like(size), size)
    values = jnp.where(mean <= 0, size, jnp.maximum(values + missing * mean, floor * mean))
    roots = jnp.sqrt(values)
    return turned / (roots[..., None, None] if left else roots[..., None, None, :, :])


def bounded(gradient: Any) -> jax.Array:
    """Clip a real gradient at 2**50 (2**400 in float64); infinity stays.

    Sums of its squares, and their products with a basis, then stay finite.
    """
    array: jax.Array = jnp.asarray(gradient)
    if jnp.iscomplexobj(array):
        return array
    bound = 2.0**400 if array.dtype.itemsize > 4 else 2.0**50
    # Eight bits without an infinity would round the bound to NaN.
    bound = min(bound, float(jnp.finfo(array.dtype).max))  # type: ignore[no-untyped-call]
    return jnp.where(jnp.isinf(array), array, jnp.clip(array, -bound, bound))
