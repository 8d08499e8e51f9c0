"""Orthonormal columns: Householder QR on a CPU, a few rounds of Cholesky QR where products are cheap."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from riemann_optax._population import when
from riemann_optax._varying import varying_like

Method = Literal["auto", "householder", "cholesky"]
METHODS: tuple[str, ...] = get_args(Method)

# Products that determine a basis, or how coordinates change with it, never use TF32 or bfloat16.
EXACT = jax.lax.Precision.HIGHEST

_SHIFT = 17.0  # in epsilon * sqrt(n): above the rounding of a Gram matrix of unit columns
_NEAR = 0.1  # columns whose Gram matrix is this near to 1 are orthonormal to rounding after one more round
_ROUNDS = 5  # the most; two suffice near an eigenbasis, four for a condition of 1e6 in float32

# OpenBLAS, which JAX calls on a CPU, starts its own threads for a QR decomposition of more columns than the
# first number, and for a panel of more entries than the second. They then wait for work for some 70 ms, on
# cores that the training step needs, and each step would pay that. Narrow panels start none.
_WHOLE = 64
_PANEL = 2304 * 4
_WIDTHS = (32, 16)
_ENOUGH = 0.5  # what must be left of a column's length, so that its rounding errors grow at most twofold


def orthonormalise(
    matrices: jax.Array, method: Method = "auto", *, of_any_size: bool = True
) -> tuple[jax.Array, jax.Array]:
    r"""Return the orthonormal factor of a QR decomposition whose triangle has a positive diagonal.

    .. math::
      X = Q\,R, \qquad Q^\top Q = 1, \quad R_{ii} > 0

    The positive diagonal makes ``Q`` unique, and continuous in ``X``: a converged basis stays the same.
    ``"cholesky"`` divides columns by their lengths and then by the Cholesky factor of their Gram matrix, one
    to five times: with ``17 epsilon sqrt(n)`` on its diagonal until it is near to 1, then once without. This
    needs only matrix products and triangular solves, batched and in full precision. ``"householder"`` is
    ``jnp.linalg.qr``.

    Args:
      matrices: float32 or float64 ``[..., n, n]``.
      method: ``"householder"``, ``"cholesky"``, or ``"auto"``: on a CPU Householder, from 65 to 576 columns
        panel by panel, and Cholesky on a GPU or TPU, where the batched Householder QR of a library is slow.
      of_any_size: whether squares of entries may overflow or vanish.

    Returns:
      ``(Q, found)``: ``Q`` in the shape of ``matrices``, and booleans ``[...]``, whether it is finite and
      orthonormal. Where columns are zero or dependent to rounding, ``"cholesky"`` may find no ``Q``, and
      ``"householder"`` fills in directions that depend on rounding.
    """
    matrices = _of_unit_length(matrices, of_any_size)
    if method == "householder":
        return _householder(matrices)
    if method == "cholesky":
        return _cholesky(matrices)
    both: tuple[jax.Array, jax.Array] = jax.lax.platform_dependent(
        matrices, cpu=_in_panels, default=_cholesky
    )
    return both


def _householder(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    basis, triangle = jnp.linalg.qr(matrices)
    signs = jnp.where(jnp.diagonal(triangle, axis1=-2, axis2=-1) < 0, -1, 1).astype(basis.dtype)
    basis = basis * signs[..., None, :]
    return basis, jnp.all(jnp.isfinite(basis), axis=(-2, -1))


# Which panel, which round of it, its columns, the basis so far, and whether all of it is orthonormal.
Panels = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _in_panels(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return what :func:`_householder` returns, from QR decompositions of a few columns at a time.

    Each panel is made orthogonal to all columns before it, and then decomposed. If this takes more than half
    of the length of a column, what is left has too large a share of rounding errors, and it is done again.
    """
    size = matrices.shape[-1]
    width = next((width for width in _WIDTHS if size * width <= _PANEL), None)
    if size <= _WHOLE or width is None:
        return _householder(matrices)
    number = -(-size // width)
    padding = [(0, 0)] * (matrices.ndim - 1) + [(0, number * width - size)]
    columns = jnp.pad(matrices, padding)

    def panel_at(index: jax.Array) -> jax.Array:
        panel: jax.Array = jax.lax.dynamic_slice_in_dim(columns, index * width, width, axis=-1)
        return panel

    def one_round(state: Panels) -> Panels:
        index, rounds, panel, basis, found = state
        shares = jnp.einsum("...ij,...ik->...jk", basis, panel, precision=EXACT)
        rest = panel - jnp.matmul(basis, shares, precision=EXACT)
        panel = jnp.linalg.qr(rest)[0]
        lengths = jnp.sum(panel * rest, axis=-2, keepdims=True)  # the diagonal of the triangle
        panel = panel * jnp.where(lengths < 0, -1, 1).astype(panel.dtype)
        enough = jnp.abs(lengths) > _ENOUGH  # False where it is not finite
        if number * width > size:
            enough = enough | (index * width + jnp.arange(width) >= size)
        found = jnp.all(enough, axis=(-2, -1))
        done = jnp.all(found) | (rounds == _ROUNDS - 1)
        # Columns that are not finished are 0 in the basis, so that the next round subtracts nothing of them.
        finished = jnp.where(done, panel, jnp.zeros_like(panel))
        basis = jax.lax.dynamic_update_slice_in_dim(basis, finished, index * width, axis=-1)
        rounds = jnp.where(done, 0, rounds + 1)
        index = index + done.astype(index.dtype)
        return index, rounds, jnp.where(done, panel_at(index), panel), basis, state[-1] & (found | ~done)

    start = jnp.zeros([], jnp.int32)
    first: Panels = (
        start,
        start,
        panel_at(start),
        jnp.zeros_like(columns),
        jnp.ones_like(matrices[..., 0, 0], dtype=jnp.bool_),
    )
    first = varying_like(first, matrices)
    _, _, _, basis, found = jax.lax.while_loop(lambda state: state[0] < number, one_round, first)
    return basis[..., :size], found


def _cholesky(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = matrices.shape[-1]
    unit = jnp.broadcast_to(jnp.eye(size, dtype=matrices.dtype), matrices.shape)
    shift = _SHIFT * float(jnp.finfo(matrices.dtype).eps) * size**0.5  # type: ignore[no-untyped-call]

    def one_round(basis: jax.Array, _: jax.Array) -> tuple[jax.Array, jax.Array]:
        gram = jnp.einsum("...ij,...ik->...jk", basis, basis, precision=EXACT)
        near = jnp.max(jnp.abs(gram - unit), axis=(-2, -1)) <= _NEAR  # False where it is not finite
        shifts = jnp.where(near, jnp.zeros_like(gram[..., 0, 0]), jnp.full_like(gram[..., 0, 0], shift))
        triangle = jax.lax.linalg.cholesky(gram + shifts[..., None, None] * unit, symmetrize_input=False)
        basis = jax.lax.linalg.triangular_solve(
            triangle, basis, left_side=False, lower=True, transpose_a=True
        )
        return basis, near

    def unless_found(_: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        together: tuple[jax.Array, jax.Array] = when(
            ~jnp.all(state[1]), one_round, lambda *same: same, *state
        )
        return together

    first = varying_like((matrices, jnp.zeros_like(matrices[..., 0, 0], dtype=bool)), matrices)
    basis, found = jax.lax.fori_loop(0, _ROUNDS, unless_found, first)
    return basis, found & jnp.all(jnp.isfinite(basis), axis=(-2, -1))


def _of_unit_length(matrices: jax.Array, of_any_size: bool) -> jax.Array:
    """Divide columns by their lengths; first by their largest entry, if squares of it may overflow."""
    if of_any_size:
        matrices = _divided(matrices, jnp.max(jnp.abs(matrices), axis=-2, keepdims=True))
    return _divided(matrices, jnp.linalg.norm(matrices, axis=-2, keepdims=True))


def _divided(matrices: jax.Array, sizes: jax.Array) -> jax.Array:
    return matrices / jnp.where(sizes == 0, jnp.ones_like(sizes), sizes)
