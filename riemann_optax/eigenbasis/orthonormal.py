"""Orthonormal columns: Householder QR on a CPU, a few rounds of Cholesky QR where products are cheap."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

Method = Literal["auto", "householder", "cholesky"]
METHODS: tuple[str, ...] = get_args(Method)

# Products that determine a basis, or how coordinates change with it, never use TF32 or bfloat16.
EXACT = jax.lax.Precision.HIGHEST

_SHIFT = 17.0  # in epsilon * sqrt(n): above the rounding of a Gram matrix of unit columns
_NEAR = 0.1  # columns whose Gram matrix is this near to 1 are orthonormal to rounding after one more round
_ROUNDS = 5  # the most; two suffice near an eigenbasis, four for a condition of 1e6 in float32


def orthonormalise(matrices: jax.Array, method: Method = "auto") -> tuple[jax.Array, jax.Array]:
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
      method: ``"householder"``, ``"cholesky"``, or ``"auto"``: Householder on a CPU, and Cholesky on a GPU
        or TPU, where the batched Householder QR of a library is slow.

    Returns:
      ``(Q, found)``: ``Q`` in the shape of ``matrices``, and booleans ``[...]``, whether it is finite and
      orthonormal. Where columns are zero or dependent to rounding, ``"cholesky"`` may find no ``Q``, and
      ``"householder"`` fills in directions that depend on rounding.
    """
    if method == "householder":
        return _householder(matrices)
    if method == "cholesky":
        return _cholesky(matrices)
    both: tuple[jax.Array, jax.Array] = jax.lax.platform_dependent(
        matrices, cpu=_householder, default=_cholesky
    )
    return both


def _householder(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    basis, triangle = jnp.linalg.qr(_of_unit_length(matrices))
    signs = jnp.where(jnp.diagonal(triangle, axis1=-2, axis2=-1) < 0, -1, 1).astype(basis.dtype)
    basis = basis * signs[..., None, :]
    return basis, jnp.all(jnp.isfinite(basis), axis=(-2, -1))


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
        together: tuple[jax.Array, jax.Array] = jax.lax.cond(
            jnp.all(state[1]), lambda *same: same, one_round, *state
        )
        return together

    first = _of_unit_length(matrices), jnp.zeros_like(matrices[..., 0, 0], dtype=bool)
    basis, found = jax.lax.fori_loop(0, _ROUNDS, unless_found, first)
    return basis, found & jnp.all(jnp.isfinite(basis), axis=(-2, -1))


def _of_unit_length(matrices: jax.Array) -> jax.Array:
    """Divide columns by their lengths; first by their largest entry, so that no square overflows."""
    for size in (jnp.max(jnp.abs(matrices), axis=-2, keepdims=True), None):
        length = jnp.linalg.norm(matrices, axis=-2, keepdims=True) if size is None else size
        matrices = matrices / jnp.where(length == 0, jnp.ones_like(length), length)
    return matrices
