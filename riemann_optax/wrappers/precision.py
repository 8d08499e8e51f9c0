"""Precision: state in two bytes or one that does not stall, and narrow weights with wide copies."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType

from riemann_optax import _check, _tree
from riemann_optax._check import check_transformation
from riemann_optax._declare import Phi, phi_around

Storage = Literal["bfloat16", "int8"]
STORAGES = ("bfloat16", "int8")
_LEVELS = 127  # of an int8 code, to each side of 0
_EXPONENT = 4  # of the code: a value is scale * (code / 127)**4


class Rounded(NamedTuple):
    """An array of float32, stochastically rounded.

    Attributes:
      values: bfloat16, in the shape of the array.
    """

    values: jax.Array


class Quantized(NamedTuple):
    """An array of float32 as ``scale * sign(code) * (code / 127)**4``.

    Attributes:
      codes: int8, in the shape of the array.
      scales: float32, the largest magnitude of each block, shape (..., blocks).
    """

    codes: jax.Array
    scales: jax.Array


class LowPrecisionState(NamedTuple):
    """State of :func:`low_precision_state`.

    Attributes:
      key: uint32 scalar, from which the next rounding is drawn.
      inner_state: the state of the wrapped transformation, with :class:`Rounded` or :class:`Quantized` in the
        place of its float32 arrays.
    """

    key: jax.Array
    inner_state: optax.OptState


def low_precision_state(
    tx: optax.GradientTransformation,
    storage: Storage = "bfloat16",
    *,
    block_size: int = 32,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Keep the state of ``tx`` in two bytes or in one per value, without stalling.

    A running mean rounded to the nearest bfloat16 stops where its increments are smaller than half a unit in
    the last place: with decay 0.999 the mean of a constant 1 never passes 0.5. Here rounding is stochastic,
    up with the probability that makes it right on average,

    .. math::
      \mathrm{E}[\mathrm{round}(x)] = x,

    so that small increments are made now and then instead of never. The update itself is computed in
    float32. ``tx`` may be a phi, a momentum or a whole optimiser; wrap what may be noisy:
    ``compute_metric(low_precision_state(phi.activity(decay=0.999)), alpha)``.

    ``"bfloat16"`` has steps of 1/256 to 1/128 of a value. ``"int8"`` stores, for each block of the last axis,
    its largest magnitude, and each value as a fourth power of one of 127 levels of that: steps are 3% near
    the largest and about 20% at a thousandth of it; what is below 4e-9 of it may become 0. The mean of a
    constant settles between the two neighbours of that constant; under noise rounding errors add up like the
    increments of the running mean itself, in bfloat16 to a standard deviation of about
    ``0.25 * step / sqrt(1 - decay)``.

    Compressed are the float32 arrays of the state with at least one axis, or two for ``"int8"``: biases are
    few, and cut by a mesh their blocks would be too. Counters, scalars, complex and float64 arrays, and what
    is stored in fewer than four bytes already, are kept as they are.

    State: 2 bytes per value, or ``1 + 4 / block_size``. No collective, for random bits are a hash of an
    element's place in its array; so results do not depend on how it is sharded. With ``"int8"`` the blocks
    have to lie within a device: a last axis sharded so that they do not is refused on an Explicit mesh, and
    costs communication on an Auto one.

    Args:
      tx: any Optax transformation.
      storage: ``"bfloat16"`` or ``"int8"``.
      block_size: values that share a scale, at least 1; only for ``"int8"``. A last axis that it does not
        divide is one block.
      key: of the rounding: a random key or an integer seed.

    Returns:
      A gradient transformation with state :class:`LowPrecisionState`. ``consolidate`` does not look into
      it: consolidating phis take their boundaries by the extra argument ``task_boundary``.

    Raises:
      TypeError: where ``tx`` is no gradient transformation or ``key`` neither key nor integer.
      ValueError: for an unknown ``storage`` or a ``block_size`` below 1; at ``init`` or ``update``, on an
        Explicit mesh, where a block would lie on several devices.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> params, gradients = jnp.zeros([4, 64]), jnp.ones([4, 64])
      >>> bytes_of = lambda state: sum(leaf.nbytes for leaf in jax.tree.leaves(state))
      >>> for tx in (ro.phi.activity(), ro.low_precision_state(ro.phi.activity(), "int8")):
      ...     print(round(bytes_of(tx.init(params)) / params.size))
      4
      1

    References:
      Gupta et al, `Deep Learning with Limited Numerical Precision <https://arxiv.org/abs/1502.02551>`_, ICML,
      2015: stochastic rounding.

      Dettmers et al, `8-bit Optimizers via Block-wise Quantization <https://arxiv.org/abs/2110.02861>`_,
      ICLR, 2022.

      Jarzynski and Olano, `Hash Functions for GPU Rendering <https://jcgt.org/published/0009/03/02/>`_,
      Journal of Computer Graphics Techniques, 2020: the hash, PCG.
    """
    check_transformation("tx", tx)
    tx = optax.with_extra_args_support(tx)
    _check.check_choice("storage", storage, STORAGES)
    _check.check_count("block_size", block_size)
    _check.check_key(key)
    fewest_axes = 1 if storage == "bfloat16" else 2

    def compress(tree: Any, key: jax.Array) -> Any:
        leaves, treedef = jax.tree.flatten(tree)
        stored = []
        for index, leaf in enumerate(leaves):
            if leaf.dtype == jnp.float32 and leaf.size > 0 and leaf.ndim >= fewest_axes:
                bits = _random_bits(leaf, _hash(key + jnp.uint32(index)))
                leaf = _round(leaf, bits) if storage == "bfloat16" else _quantize(leaf, bits, block_size)
            stored.append(leaf)
        return jax.tree.unflatten(treedef, stored)

    def init(params: optax.Params) -> LowPrecisionState:
        if isinstance(key, int):
            word = jnp.asarray(key % 2**32, jnp.uint32)
        else:
            word = jax.random.bits(key, dtype=jnp.uint32)
        return LowPrecisionState(word, compress(tx.init(params), word))

    def update(
        updates: optax.Updates,
        state: LowPrecisionState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LowPrecisionState]:
        wide = jax.tree.map(_decompress, state.inner_state, is_leaf=_is_compressed)
        updates, wide = tx.update(updates, wide, params, **extra_args)
        word = _hash(state.key)
        return updates, LowPrecisionState(word, compress(wide, word))

    if isinstance(tx, Phi):
        return phi_around([tx], init, update)
    return optax.GradientTransformationExtraArgs(init, update)


def _is_compressed(node: Any) -> bool:
    return isinstance(node, Rounded | Quantized)


def _decompress(node: Any) -> Any:
    if isinstance(node, Rounded):
        return node.values.astype(jnp.float32)
    if isinstance(node, Quantized):
        root = node.codes.astype(jnp.float32) / _LEVELS
        value = jnp.sign(root) * root**_EXPONENT
        return (_blocked(value, node.scales.shape[-1]) * node.scales[..., None]).reshape(value.shape)
    return node


def _round(x: jax.Array, bits: jax.Array) -> Rounded:
    """Add random bits below the last one that bfloat16 keeps, then cut there."""
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)

    def cut(words: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(words & jnp.uint32(0xFFFF0000), jnp.float32)

    rounded = cut(words + (bits & jnp.uint32(0xFFFF)))
    # The largest numbers must not become infinite; infinities and NaNs are no numbers to add bits to.
    rounded = jnp.where(jnp.isfinite(rounded), rounded, cut(words))
    return Rounded(jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16))


def _quantize(x: jax.Array, bits: jax.Array, block_size: int) -> Quantized:
    """Store a share of the block's largest magnitude as one of the two levels around it."""
    length = x.shape[-1]
    blocks = length // block_size if length % block_size == 0 else 1
    _check_blocks(x, blocks, block_size)
    groups = _blocked(jnp.abs(x), blocks)
    scales = jnp.max(groups, axis=-1)
    divisors = jnp.where(scales == 0, jnp.ones_like(scales), scales)
    share = (groups / divisors[..., None]).reshape(x.shape)
    below = jnp.floor(jnp.sqrt(jnp.sqrt(share)) * _LEVELS)
    low, high = (below / _LEVELS) ** _EXPONENT, ((below + 1) / _LEVELS) ** _EXPONENT
    uniform = (bits >> 8).astype(jnp.float32) * 2.0**-24
    level = jnp.minimum(below + (uniform < (share - low) / (high - low)).astype(x.dtype), _LEVELS)
    # A block with a NaN or an infinity has that as its scale, and is NaN when read: nothing is hidden.
    level = jnp.where(jnp.isfinite(level), level, jnp.ones_like(level))
    return Quantized((jnp.sign(x) * level).astype(jnp.int8), scales)


def _blocked(x: jax.Array, blocks: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], blocks, x.shape[-1] // blocks)


def _check_blocks(x: jax.Array, blocks: int, block_size: int) -> None:
    """Raise where the last axis is cut into more parts than it has whole blocks for."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[x.ndim - 1] if len(sharding.spec) == x.ndim else None
    names = () if names is None else names if isinstance(names, tuple) else (names,)
    mesh = sharding.mesh
    parts = 1
    for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True):
        parts *= size if name in names and kind == AxisType.Explicit else 1
    if blocks % parts:
        raise ValueError(
            f"block_size {block_size} makes {blocks} block(s) of a last axis of {x.shape[-1]}, which lies on "
            f"{parts} devices: give a block_size that divides {x.shape[-1] / parts:g}, or storage='bfloat16'."
        )


def _random_bits(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return 32 random bits per element, a hash of its place: the same however ``x`` is sharded."""
    place = jnp.zeros_like(x, dtype=jnp.uint32)
    for axis in range(x.ndim):
        place = place * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return _hash(place ^ key)


def _hash(x: jax.Array) -> jax.Array:
    """Permute 32-bit words: PCG, RXS-M-XS-32."""
    state = x * jnp.uint32(747796405) + jnp.uint32(2891336453)
    word: jax.Array = ((state >> ((state >> 28) + 4)) ^ state) * jnp.uint32(277803737)
    return (word >> 22) ^ word


class MasterWeightsState(NamedTuple):
    """State of :func:`master_weights`.

    Attributes:
      remainder: what the narrow weights lack of the wide ones, shaped like the parameters;
        ``optax.MaskedNode`` for weights that are not narrow.
      inner_state: the state of the wrapped optimiser, for the wide weights.
    """

    remainder: optax.Params
    inner_state: optax.OptState


def master_weights(
    tx: optax.GradientTransformation, dtype: Any = jnp.float32
) -> optax.GradientTransformationExtraArgs:
    """Train weights of low precision as if they were of high precision.

    A bfloat16 weight does not move at all where a step is smaller than 1/512 of it. Here the state holds the
    remainder that a narrow weight lacks of a wide one, so that the sum of both is the *master weight*: the
    steps of ``tx`` are added to that, and the update takes the narrow weight to its rounded value. ``tx``
    sees gradients and weights in ``dtype``. Put it around the whole optimiser, weight decay included: the
    remainder is right if the updates are applied as they are.

    It is the remainder that is kept, not the weights: the state starts from zeros, whatever else changes the
    weights is respected, and where weights are wide already nothing is kept or changed.

    State: 1 value of ``dtype`` per narrow weight, and that of ``tx``. Elementwise, so no collective.

    Args:
      tx: the whole optimiser.
      dtype: of the master weights, real floating point. Complex leaves and leaves at least as wide pass.

    Returns:
      An optimiser with state :class:`MasterWeightsState`, for use with ``optax.apply_updates`` as any other;
      its updates have the dtype of the parameters.

    Raises:
      TypeError: where ``tx`` is no gradient transformation.
      ValueError: where ``dtype`` is not real floating point; at ``update``, where params are missing.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> for tx in (optax.sgd(0.001), ro.master_weights(optax.sgd(0.001))):
      ...     params = jnp.ones(1, jnp.bfloat16)
      ...     state = tx.init(params)
      ...     for _ in range(100):
      ...         updates, state = tx.update(jnp.ones_like(params), state, params)
      ...         params = optax.apply_updates(params, updates)
      ...     print(params)  # 100 steps of -0.001
      [1]
      [0.898438]

    References:
      Micikevicius et al, `Mixed Precision Training <https://arxiv.org/abs/1710.03740>`_, ICLR, 2018
    """
    check_transformation("tx", tx)
    tx = optax.with_extra_args_support(tx)
    _check.check_real_dtype("dtype", dtype)

    def is_narrow(leaf: Any) -> bool:
        return bool(
            jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < jnp.dtype(dtype).itemsize
        )

    def start(leaf: Any) -> Any:
        return jnp.zeros_like(leaf, dtype=dtype) if is_narrow(leaf) else optax.MaskedNode()

    def widen(leaf: Any) -> Any:
        if not is_narrow(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
        return leaf.astype(dtype)

    def master(leaf: jax.Array, remainder: Any) -> jax.Array:
        return leaf.astype(dtype) + remainder if is_narrow(leaf) else leaf

    def init(params: optax.Params) -> MasterWeightsState:
        _tree.check_inexact(params, "params")
        return MasterWeightsState(jax.tree.map(start, params), tx.init(jax.tree.map(widen, params)))

    def update(
        updates: optax.Updates,
        state: MasterWeightsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MasterWeightsState]:
        params = _check.require_params(params, "master_weights")
        weights = jax.tree.map(master, params, state.remainder)
        steps, inner_state = tx.update(jax.tree.map(widen, updates), state.inner_state, weights, **extra_args)

        def move(step: jax.Array, leaf: jax.Array, weight: jax.Array) -> jax.Array:
            if not is_narrow(leaf):
                return step
            return ((weight + step).astype(leaf.dtype).astype(dtype) - leaf.astype(dtype)).astype(leaf.dtype)

        def rest(step: jax.Array, leaf: jax.Array, weight: jax.Array, moved: jax.Array) -> Any:
            if not is_narrow(leaf):
                return optax.MaskedNode()
            # What apply_updates will make of it, which may be one unit in the last place off.
            return weight + step - (leaf + moved).astype(dtype)

        moved = jax.tree.map(move, steps, params, weights)
        remainder = jax.tree.map(rest, steps, params, weights, moved)
        return moved, MasterWeightsState(remainder, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
