"""Bases of one size as one stack: found, improved, and taken apart again."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from riemann_optax._check import is_concrete_number
from riemann_optax._varying import varying_like
from riemann_optax.eigenbasis.bases import decompose, has_turned, iterate
from riemann_optax.eigenbasis.mesh import spread
from riemann_optax.eigenbasis.orthonormal import EXACT, Method


class RefreshRules(NamedTuple):
    """How bases are refreshed.

    Attributes:
      mix: whether second moments are mixed, or only reordered.
      tau: how far a basis must have turned to be refreshed; 0 refreshes all.
      method: the method of :func:`orthonormalise`.
      precision: precision of the products that convert averages.
    """

    mix: bool
    tau: float = 0.0
    method: Method = "auto"
    precision: Any = None

    def refreshes_all(self) -> bool:
        """Return whether ``tau`` is known to be 0; a traced one is not known, and may change in a run."""
        return is_concrete_number(self.tau) and self.tau == 0


class Change(NamedTuple):
    """How coordinates along one side change with its basis; matrices ``[..., old, new]``.

    Attributes:
      vectors: ``Q_old^T Q_new``, for arrays linear in the gradient.
      order: where second moments are only reordered, the old place of each column.
    """

    vectors: jax.Array
    order: jax.Array | None

    @property
    def squares(self) -> jax.Array:
        """The matrix for second moments."""
        if self.order is None:
            return jnp.square(self.vectors)
        return jax.nn.one_hot(self.order, self.vectors.shape[-1], dtype=self.vectors.dtype, axis=-2)

    def unstacked(self, likes: list[jax.Array]) -> list["Change"]:
        """Return the parts of ``[number, n, n]`` for bases of the shapes of ``likes``."""
        vectors = unstacked(self.vectors, likes, self.vectors.dtype)
        if self.order is None:
            return [Change(one, None) for one in vectors]
        rows = unstacked(self.order[..., None], [like[..., :1] for like in likes], self.order.dtype)
        return [Change(one, row[..., 0]) for one, row in zip(vectors, rows, strict=True)]


def first_bases(
    factors: list[jax.Array], likes: list[jax.Array], dtype: Any
) -> tuple[list[jax.Array], jax.Array]:
    """Return the eigenvectors of factors of one size, in shape and dtype of ``likes``, and how many failed.

    Where a factor is not finite and has none, the old basis is kept.
    """

    def found_by(
        decompose_all: Callable[[jax.Array], jax.Array], factors: list[jax.Array], likes: list[jax.Array]
    ) -> tuple[list[jax.Array], jax.Array]:
        old = stacked(likes, dtype)
        new = spread(decompose_all(stacked(factors, dtype)))
        found = jnp.all(jnp.isfinite(new), axis=(-2, -1), keepdims=True)
        new = jnp.where(found, new, old)
        if len({like.dtype for like in likes}) == 1:
            new = new.astype(likes[0].dtype)
        return unstacked(new, likes), jnp.sum(~found, dtype=jnp.int32)

    def together(factors: list[jax.Array], likes: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        return found_by(decompose, factors, likes)

    def one_by_one(stack: jax.Array) -> jax.Array:
        if stack.shape[0] == 1:
            return decompose(stack)
        found: jax.Array = jax.lax.map(lambda matrix: decompose(matrix[None])[0], stack)
        return found

    def alone(factors: list[jax.Array], likes: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        parts = [found_by(one_by_one, [factor], [like]) for factor, like in zip(factors, likes, strict=True)]
        new = [basis for (basis,), _ in parts]
        return new, jnp.sum(jnp.stack([failed for _, failed in parts]), dtype=jnp.int32)

    if sum(math.prod(factor.shape[:-2]) for factor in factors) == 1:
        return together(factors, likes)
    # LAPACK decomposes one matrix after the other in any case. XLA compiles kernels of equal code once, but
    # those that take different parts of a stack one by one. And JAX 0.10 waits in a thread of XLA's pool for
    # the parts of a stack, which wait for a thread of that pool: several devices in a process can hang.
    both: tuple[list[jax.Array], jax.Array] = jax.lax.platform_dependent(
        factors, likes, cpu=alone, default=together
    )
    return both


def refreshed(
    factors: jax.Array, bases: jax.Array, dtype: Any, rules: RefreshRules
) -> tuple[jax.Array, Change, jax.Array]:
    """Return the new bases, how coordinates change, and which bases were kept as no new one was found.

    A basis is kept, and not counted, if it has not turned by ``rules.tau``.

    Args:
      factors: running correlations ``[number, n, n]``.
      bases: the old bases, of the same shape.
      dtype: the dtype of the computation.
      rules: the rules.
    """
    old, correlation = spread(bases).astype(dtype), spread(factors).astype(dtype)
    new, order, found = iterate(correlation, old, rules.method)
    change = found if rules.refreshes_all() else found & has_turned(correlation, old, rules.tau)
    # Coordinates refer to the stored bases, so compute the change between the rounded bases.
    stored = jnp.where(change[:, None, None], spread(new), old).astype(bases.dtype)
    unit = jnp.broadcast_to(jnp.eye(old.shape[-1], dtype=dtype), old.shape)
    vectors = jnp.einsum("...ij,...ik->...jk", old, stored.astype(dtype), precision=EXACT)
    vectors = jnp.where(change[:, None, None], vectors, unit)
    if rules.mix:
        return stored, Change(vectors, None), ~found
    same = jnp.arange(old.shape[-1], dtype=jnp.int32)
    return stored, Change(vectors, jnp.where(change[:, None], order.astype(jnp.int32), same)), ~found


def first_refreshed(
    number: jax.Array, factors: jax.Array, bases: jax.Array, dtype: Any, rules: RefreshRules
) -> tuple[jax.Array, Change, jax.Array]:
    """Return what :func:`refreshed` returns for the first ``number`` bases, and how many of them were kept.

    The others are there so that one computation serves groups of different sizes; nobody reads theirs.
    """
    most = bases.shape[0]

    def together(
        number: jax.Array, factors: jax.Array, bases: jax.Array
    ) -> tuple[jax.Array, Change, jax.Array]:
        new, change, kept = refreshed(factors, bases, dtype, rules)
        return new, change, jnp.sum(kept & (jnp.arange(most, dtype=number.dtype) < number), dtype=jnp.int32)

    def one_by_one(
        number: jax.Array, factors: jax.Array, bases: jax.Array
    ) -> tuple[jax.Array, Change, jax.Array]:
        def one(at: jax.Array, sofar: tuple[jax.Array, Change, jax.Array]) -> Any:
            factor, basis = (jax.lax.dynamic_slice_in_dim(array, at, 1) for array in (factors, bases))
            *found, kept = refreshed(factor, basis, dtype, rules)
            *before, count = sofar
            put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=0)
            return *jax.tree.map(put, tuple(before), tuple(found)), count + kept[0].astype(count.dtype)

        nothing: tuple[jax.Array, Change, jax.Array]
        nothing = *unchanged(bases, dtype, rules)[:2], jnp.zeros([], jnp.int32)
        nothing = varying_like(nothing, (number, factors, bases))
        done: tuple[jax.Array, Change, jax.Array] = jax.lax.fori_loop(0, number, one, nothing)
        return done

    if most == 1 or rules.method != "auto":
        return together(number, factors, bases)
    # A stack may hang on a CPU, as in :func:`first_bases`.
    both: tuple[jax.Array, Change, jax.Array] = jax.lax.platform_dependent(
        number, factors, bases, cpu=one_by_one, default=together
    )
    return both


def unchanged(bases: jax.Array, dtype: Any, rules: RefreshRules) -> tuple[jax.Array, Change, jax.Array]:
    """Return the bases and zeros, which nobody reads, in the form of :func:`refreshed`."""
    order = None if rules.mix else jnp.zeros(bases.shape[:-1], jnp.int32)
    return bases, Change(jnp.zeros(bases.shape, dtype), order), jnp.zeros(bases.shape[0], jnp.bool_)


def stacked(squares: list[jax.Array], dtype: Any) -> jax.Array:
    """Return all matrices of one size as one array ``[number, n, n]``."""
    return spread(of_one_dtype(squares, dtype)).astype(dtype)  # one conversion to compile, not one for each


def of_one_dtype(squares: list[jax.Array], dtype: Any) -> jax.Array:
    """Return them as one array, in ``dtype`` unless all have the same."""
    flat = [square.reshape(-1, *square.shape[-2:]) for square in squares]
    if len({square.dtype for square in squares}) > 1:
        flat = [square.astype(dtype) for square in flat]
    return jnp.concatenate(flat)


def unstacked(array: jax.Array, likes: list[jax.Array], dtype: Any = None) -> list[jax.Array]:
    """Return the parts of ``[number, n, n]`` in the shapes of ``likes``; in their dtypes by default."""
    counts = [math.prod(like.shape[:-2]) for like in likes]
    starts = [sum(counts[:index]) for index in range(len(counts))]
    return [
        array[start : start + count].reshape(like.shape).astype(dtype or like.dtype)
        for start, count, like in zip(starts, counts, likes, strict=True)
    ]
