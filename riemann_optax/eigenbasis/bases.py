"""The mathematics of one basis: correlations, eigenvectors, rotation into the basis and back."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from riemann_optax.eigenbasis.mesh import ANYWHERE, Places, placed
from riemann_optax.eigenbasis.orthonormal import EXACT, Method, orthonormalise


def turn(
    matrices: jax.Array, left: Any, right: Any, precision: Any = None, places: Places = ANYWHERE
) -> jax.Array:
    """Return ``left^T X right`` for blocked matrices ``[*stack, p, a, q, c]``; a basis of None is 1."""
    into = "...pad,...paqc->...pdqc", "...paqc,...qce->...paqe"
    return _turned(matrices, left, right, into, precision, places)


def turn_back(
    matrices: jax.Array, left: Any, right: Any, precision: Any = None, places: Places = ANYWHERE
) -> jax.Array:
    """Return ``left X right^T``.

    The products read the bases as they are: a transposed basis would be one more array, at every update.
    """
    out_of = "...pad,...pdqc->...paqc", "...paqe,...qce->...paqc"
    return _turned(matrices, left, right, out_of, precision, places)


def _turned(
    matrices: jax.Array,
    left: Any,
    right: Any,
    subscripts: tuple[str, str],
    precision: Any,
    places: Places,
) -> jax.Array:
    """Return the matrices multiplied with each basis that there is, where :func:`places` puts them."""
    if left is not None:
        moved = placed(matrices, places.left)
        moved = product(subscripts[0], left.astype(matrices.dtype), moved, precision)
        matrices = placed(placed(moved, places.left), places.left and places.home)
    if right is not None:
        moved = placed(matrices, places.right)
        moved = product(subscripts[1], moved, right.astype(matrices.dtype), precision)
        matrices = placed(placed(moved, places.right), places.right and places.home)
    return matrices


def correlations(matrices: jax.Array, side: Literal["left", "right"], places: Places = ANYWHERE) -> jax.Array:
    """Return ``X X^T`` (left) or ``X^T X`` (right) of each block."""
    matrices = placed(matrices, getattr(places, side))
    subscripts = "...paqc,...pdqc->...pad" if side == "left" else "...paqc,...paqe->...qce"
    return product(subscripts, matrices, matrices, EXACT)


def tempered(matrices: jax.Array, side: Literal["left", "right"]) -> jax.Array:
    """Return blocks with each column (left; row for the right side) over the root of its own size.

    In correlations it then counts by its size, and not by its square. The size is a sum, which is the same
    when the other side has grown by lines without gradients.
    """
    squares = jnp.sum(jnp.square(matrices), axis=-3 if side == "left" else -1, keepdims=True)
    return matrices * jnp.where(squares > 0, squares, 1) ** -0.25


def product(subscripts: str, first: jax.Array, second: jax.Array, precision: Any) -> jax.Array:
    """Return ``jnp.einsum`` of two blocked arrays; a side of one block is no axis of the product.

    XLA copies arrays of more axes into another order before it multiplies them, one more kernel to compile
    and to run for each.
    """
    given, result = subscripts.replace("...", "").split("->")
    names = given.split(",")
    sizes = {
        name: size
        for letters, array in zip(names, (first, second), strict=True)
        for name, size in zip(letters, array.shape[array.ndim - len(letters) :], strict=True)
    }
    single = [name for name in "pq" if sizes.get(name) == 1]
    arrays = [
        jnp.squeeze(array, tuple(letters.index(name) - len(letters) for name in single if name in letters))
        for letters, array in zip(names, (first, second), strict=True)
    ]
    for name in single:
        subscripts = subscripts.replace(name, "")
    result_array: jax.Array = jnp.einsum(subscripts, *arrays, precision=precision)
    stack = result_array.shape[: first.ndim - len(names[0])]
    return result_array.reshape(*stack, *(sizes[name] for name in result))


@jax.custom_jvp
def decompose(correlation: jax.Array) -> jax.Array:
    """Return the eigenvectors of ``[..., n, n]`` as columns, largest eigenvalue first.

    Vectors of equal eigenvalues, as of a matrix without gradients, have no derivative: they do not turn.
    """
    return jnp.flip(jnp.linalg.eigh(correlation)[1], -1)


@decompose.defjvp
def _derivative_of_decompose(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (correlation,), (tangent,) = primals, tangents
    vectors = decompose(correlation)
    turned, moved = (
        jnp.matmul(jnp.matmul(vectors.mT, one, precision=EXACT), vectors, precision=EXACT)
        for one in (correlation, (tangent + tangent.mT) / 2)
    )
    values = jnp.diagonal(turned, axis1=-2, axis2=-1)
    gap = values[..., None, :] - values[..., :, None]
    rotation = jnp.where(
        gap == 0, jnp.zeros_like(moved), moved / jnp.where(gap == 0, jnp.ones_like(gap), gap)
    )
    return vectors, jnp.matmul(vectors, rotation, precision=EXACT)


def iterate(
    correlation: jax.Array, basis: jax.Array, method: Method = "auto"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return an improved basis after one power iteration, the order of its columns, and success.

    QR keeps earlier columns and corrects later ones, so the columns are sorted by Rayleigh quotient first,
    largest first. To the diagonal of the correlation ``8 epsilon sqrt(n)`` of its largest entry are added:
    more than a product's rounding errors. This keeps its eigenvectors, and columns in its null space stay as
    they were; without it the power iteration would map them to 0.
    """
    correlation = _of_size_one(correlation)
    product = jnp.matmul(correlation, basis, precision=EXACT)
    order = jnp.argsort(-jnp.sum(basis * product, axis=-2), axis=-1)
    shift = 8 * float(jnp.finfo(product.dtype).eps) * basis.shape[-1] ** 0.5  # type: ignore[no-untyped-call]
    product = product + jnp.asarray(shift, product.dtype) * basis
    product = jnp.take_along_axis(product, order[..., None, :], axis=-1, mode="promise_in_bounds")
    new, found = orthonormalise(product, method, of_any_size=False)
    return new, order, found


def has_turned(correlation: jax.Array, basis: jax.Array, tau: Any) -> jax.Array:
    """Return whether each basis has turned: the share off the diagonal exceeds ``tau``."""
    correlation = _of_size_one(correlation)
    product = jnp.matmul(correlation, basis, precision=EXACT)
    turned = jnp.matmul(jnp.swapaxes(basis, -1, -2), product, precision=EXACT)
    diagonal = jnp.broadcast_to(jnp.eye(basis.shape[-1], dtype=bool), turned.shape)
    off, whole = (
        jnp.sqrt(jnp.sum(jnp.square(part), axis=(-2, -1)))
        for part in (jnp.where(diagonal, jnp.zeros_like(turned), turned), turned)
    )
    # Non-finite matrices count as turned; the refresh then finds no basis. With tau 0, which may be traced,
    # every basis counts as turned.
    has = ~(off <= tau * whole)
    return jnp.logical_or(has, tau == 0)


def _of_size_one(correlation: jax.Array) -> jax.Array:
    size = jnp.max(jnp.abs(correlation), axis=(-2, -1), keepdims=True)
    return correlation / jnp.where(size == 0, jnp.ones_like(size), size)
