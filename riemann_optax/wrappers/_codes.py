"""Storage of a float32 array in one or two bytes per value: as bfloat16, or as codes with block scales."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

Storage = Literal["bfloat16", "int8"]
STORAGES: tuple[str, ...] = get_args(Storage)


class Kept(NamedTuple):
    """The array is stored as the transformation made it."""


class Rounded(NamedTuple):
    """The array is stored in bfloat16; the transformation sees float32."""


class Coded(NamedTuple):
    """The array is stored as int8 or uint8 codes; the transformation sees float32.

    Attributes:
      scales: float32, the largest magnitude of each block, shape (..., blocks).
    """

    scales: jax.Array


Form = Kept | Rounded | Coded
# A value is ``scale * sign(code) * (abs(code) / levels)**8``. With this power a momentum and the root of a
# second moment have levels of similar relative distance everywhere. If a momentum were rounded up by a large
# factor, and the root were exact, the step would be too large by that factor.
_ROOTS = 3
_LEVELS = {"int8": 127, "uint8": 255}  # per sign, or of a nonnegative field
# The code of the smallest nonzero values. A second moment must not become 0, because an optimiser divides by
# its root; and the first level of a momentum must not exceed the first level of such a root.
_SMALLEST = {"int8": 1, "uint8": 2}


def first(x: Any, storage: Storage, block_size: int, nonnegative: bool, name: str) -> tuple[Any, Form]:
    """Return an array as ``init`` stores it, and its form: rounded to nearest, which is fast outside of jit.

    Args:
      x: the array that the transformation made.
      storage: the storage of float32 arrays.
      block_size: values that share a scale.
      nonnegative: whether the array is never negative.
      name: what an error calls it.
    """
    fewest_axes = 1 if storage == "bfloat16" else 2
    if getattr(x, "dtype", None) != jnp.float32 or x.size == 0 or x.ndim < fewest_axes:
        return x, Kept()
    if storage == "bfloat16":
        return x.astype(jnp.bfloat16), Rounded()
    length = x.shape[-1]
    blocks = length // block_size if length % block_size == 0 else 1
    _check_blocks(x, blocks, block_size, name)
    dtype = jnp.uint8 if nonnegative else jnp.int8
    if not isinstance(x, jax.core.Tracer) and not jnp.any(x):
        # Nearly all states start at zero, and outside of jit each operation below is compiled separately.
        return jnp.zeros_like(x, dtype=dtype), Coded(jnp.max(_blocked(x, blocks), axis=-1))
    return _quantize(x, None, blocks, dtype)


def store(x: jax.Array, before: jax.Array, form: Form, key: jax.Array) -> tuple[jax.Array, Form]:
    """Return an array in its previous form and dtype, stochastically rounded."""
    if isinstance(form, Kept):
        if x.dtype == jnp.float32 and before.dtype == jnp.bfloat16:
            return _round(x, _random_bits(x, key)), form
        # A random key has no astype outside of jit.
        return x if x.dtype == before.dtype else x.astype(before.dtype), form
    x = x.astype(jnp.float32)
    bits = _random_bits(x, key)
    if isinstance(form, Rounded):
        return _round(x, bits), form
    return _quantize(x, bits, form.scales.shape[-1], before.dtype)


def read(x: jax.Array, form: Form) -> jax.Array:
    """Return an array as the transformation sees it."""
    if isinstance(form, Kept):
        return x
    if isinstance(form, Rounded):
        return x.astype(jnp.float32)
    share = x.astype(jnp.float32) / _LEVELS[x.dtype.name]
    value = jnp.sign(share) * share ** (2**_ROOTS)
    return (_blocked(value, form.scales.shape[-1]) * form.scales[..., None]).reshape(value.shape)


def _round(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Add random bits below the last one that bfloat16 keeps, then cut there."""
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)

    def cut(words: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(words & jnp.uint32(0xFFFF0000), jnp.float32)

    rounded = cut(words + (bits & jnp.uint32(0xFFFF)))
    # The largest numbers must not become infinite; infinities and NaNs must not change.
    rounded = jnp.where(jnp.isfinite(rounded), rounded, cut(words))
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _quantize(x: jax.Array, bits: jax.Array | None, blocks: int, dtype: Any) -> tuple[jax.Array, Form]:
    """Divide by the block's largest magnitude and store one of the two neighbouring levels.

    Without random bits, store the nearer one, on the scale of the code.
    """
    levels, smallest = _LEVELS[jnp.dtype(dtype).name], _SMALLEST[jnp.dtype(dtype).name]
    groups = _blocked(jnp.abs(x), blocks)
    scales = jnp.max(groups, axis=-1)
    divisors = jnp.where(scales == 0, jnp.ones_like(scales), scales)
    share = (groups / divisors[..., None]).reshape(x.shape)
    root = share
    for _ in range(_ROOTS):
        root = jnp.sqrt(root)
    if bits is None:
        level = jnp.round(root * levels)
    else:
        below = jnp.floor(root * levels)
        low, high = ((number / levels) ** 2**_ROOTS for number in (below, below + 1))
        uniform = (bits >> 8).astype(jnp.float32) * 2.0**-24
        level = below + (uniform < (share - low) / (high - low)).astype(x.dtype)
        level = jnp.minimum(level, levels)
    level = jnp.where(share > 0, jnp.maximum(level, smallest), level)
    # A NaN or an infinity becomes the scale of its block, which then reads as NaN: nothing is hidden.
    level = jnp.where(jnp.isfinite(level), level, jnp.ones_like(level))
    return (jnp.sign(x) * level).astype(dtype), Coded(scales)


def _blocked(x: jax.Array, blocks: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], blocks, x.shape[-1] // blocks)


def _check_blocks(x: jax.Array, blocks: int, block_size: int, called: str) -> None:
    """Raise if a block of the last axis would lie on several devices."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[x.ndim - 1] if len(sharding.spec) == x.ndim else None
    names = () if names is None else names if isinstance(names, tuple) else (names,)
    mesh = sharding.mesh
    parts = 1
    for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True):
        parts *= size if name in names and kind == AxisType.Explicit else 1
    if blocks % parts:
        raise ValueError(
            f"block_size {block_size} makes {blocks} block(s) of the last axis of {called}, {x.shape[-1]}, "
            f"which lies on {parts} devices: give a block_size that divides {x.shape[-1] / parts:g}, or "
            "storage='bfloat16'."
        )


def _random_bits(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return 32 random bits per element of a float32 array, so that sharding does not change them.

    They are a hash of the element's index and of the leading half of its value, which an error in the last
    place seldom changes. Whatever these are, all bits are equally probable over random keys. By the values
    two arrays have different bits under one key: a key of its own for each would be a constant in the program
    of each, and XLA compiles equal programs only once.
    """
    place = jnp.zeros_like(x, dtype=jnp.uint32)
    for axis in range(x.ndim):
        place = place * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return next_word(place ^ (jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)) ^ key)


def next_word(x: jax.Array) -> jax.Array:
    """Permute 32-bit words: PCG, RXS-M-XS-32."""
    state = x * jnp.uint32(747796405) + jnp.uint32(2891336453)
    word: jax.Array = ((state >> ((state >> 28) + 4)) ^ state) * jnp.uint32(277803737)
    return (word >> 22) ^ word
