"""Precision: state in one or two bytes that does not stall, and master weights for narrow weights."""

from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax._check import check_transformation
from riemann_optax._declare import Phi, phi_around
from riemann_optax._state_fields import owners_and_fields, state_fields
from riemann_optax.boundary import consolidate_within
from riemann_optax.wrappers import _codes as codes
from riemann_optax.wrappers._codes import STORAGES, Storage


class LowPrecisionState(NamedTuple):
    """State of :func:`low_precision_state`.

    Attributes:
      key: uint32 scalar, the seed of the next rounding.
      inner_state: the state of the wrapped transformation. Its float32 arrays are replaced by arrays of the
        same shape in bfloat16, or by codes in int8 or uint8.
      forms: how each array of ``inner_state`` is stored, with the scales of its codes, in the order of
        ``jax.tree.leaves``: ``Kept``, ``Rounded`` or ``Coded``. It is not a tree like the parameters, because
        scales would then pass for parameters. The number 0 if there are no parameters.
    """

    key: jax.Array
    inner_state: optax.OptState
    forms: Any

    def wide(self) -> optax.OptState:
        """Return the state of the wrapped transformation, with its original dtypes."""
        if not isinstance(self.forms, tuple):
            return self.inner_state
        arrays, structure = jax.tree.flatten(self.inner_state)
        read = [codes.read(*pair) for pair in zip(arrays, self.forms, strict=True)]
        return jax.tree.unflatten(structure, read)

    def with_wide(self, wide: optax.OptState) -> Self:
        """Return the state that stores ``wide``, rounded anew."""
        word = codes.next_word(self.key)
        if not isinstance(self.forms, tuple):
            return self._replace(key=word, inner_state=wide)
        leaves, structure = jax.tree.flatten(wide)
        old = jax.tree.leaves(self.inner_state)
        stored = [
            codes.store(leaf, before, form, word)
            for leaf, before, form in zip(leaves, old, self.forms, strict=True)
        ]
        arrays, forms = zip(*stored, strict=True) if stored else ((), ())
        return self._replace(key=word, inner_state=jax.tree.unflatten(structure, arrays), forms=forms)

    def wrapped_state(self) -> optax.OptState:
        """Return the state in which :func:`riemann_optax.consolidate` looks for states to consolidate."""
        return self.inner_state

    def consolidated(self, params: optax.Params, task_importance: optax.Params | None = None) -> Self:
        """Return the state after a task boundary; :func:`riemann_optax.consolidate` calls it."""
        return self.with_wide(consolidate_within(self.wide(), params, task_importance))


def low_precision_state(
    tx: optax.GradientTransformation,
    storage: Storage = "bfloat16",
    *,
    block_size: int = 32,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Keep the state of ``tx`` in one or two bytes per value, without stalling.

    A running mean rounded to the nearest bfloat16 stops when its increments are smaller than half a unit in
    the last place: with decay 0.999 the mean of a constant 1 stops at 0.25. Here rounding is stochastic.
    The probability of rounding up makes it right on average,

    .. math::
      \mathrm{E}[\mathrm{round}(x)] = x,

    so small increments take effect now and then instead of never. The update itself is computed in float32.
    ``tx`` may be a phi, a momentum or a whole optimiser; wrap only parts that may be noisy:
    ``compute_metric(low_precision_state(phi.activity(decay=0.999)), alpha)``.

    ``"bfloat16"`` has steps of 1/256 to 1/128 of a value. ``"int8"`` stores, for each block of the last axis,
    its largest magnitude, and each value relative to it as the eighth power of one of 127 levels: steps are
    6% near the largest, 15% at a thousandth and 35% at a millionth of it. Fields that are never negative,
    such as second moments, have 255 levels and steps half as large; a state class declares them by its class
    attribute ``nonnegative_fields``. Nonzero values below 2e-17 of the largest are stored as 2e-17 of it, not
    as 0, because optimisers divide by the roots of second moments. Steps of Adam are right to about 10% (root
    mean square) if the gradients of a block differ by factors of up to a thousand. However much they differ,
    no step is more than about 10 times too large.
    The mean of a constant settles between the two neighbours of that constant. Under noise, rounding errors
    add up like the increments of the running mean itself, in bfloat16 to a standard deviation of about ``0.25
    * step / sqrt(1 - decay)``.

    Some phis take small differences of what they keep, such as the weights at the last update. The difference
    of a rounded copy would be mostly its rounding. A state class declares such fields by its class attribute
    ``exact_fields``, and they stay as they are: ``secant_curvature``, ``modification_energy``,
    ``synaptic_intelligence``, ``rwalk``, schedule-free training, anchors and ``soft_resets`` have some. So do
    those of Optax's own that keep the first weights, or other differences of weights: ``dog``, ``prodigy``,
    ``mechanize``, ``lbfgs``.

    Only float32 arrays with at least one axis are compressed (two for ``"int8"``: biases are small, and a
    mesh would cut their blocks). Counters, scalars, complex and float64 arrays, and arrays of fewer than four
    bytes per value do not change.

    State: 2 bytes per compressed value, or ``1 + 4 / block_size``. No collective: random bits are a hash of
    an element's index in its array and of its value, so results do not depend on the sharding. With
    ``"int8"`` each block must lie within one device: sharding that cuts blocks raises an error on an Explicit
    mesh and in :func:`riemann_optax.sharding.init`, and costs communication under plain ``jit`` on an Auto
    one.

    Args:
      tx: any Optax transformation.
      storage: ``"bfloat16"`` or ``"int8"``.
      block_size: values that share a scale, at least 1; only for ``"int8"``. If it does not divide the last
        axis, that axis is one block.
      key: a random key or an integer seed for the rounding.

    Returns:
      A gradient transformation with state :class:`LowPrecisionState`. ``init`` fixes its structure and
      dtypes.

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

    def init(params: optax.Params) -> LowPrecisionState:
        word = _first_word(key)
        inner_state = tx.init(params)
        if not jax.tree.leaves(params):
            return LowPrecisionState(word, inner_state, jnp.zeros([], jnp.float32))
        leaves, structure = jax.tree.flatten(inner_state)
        names = [
            f"state{jax.tree_util.keystr(path)}"
            for path, _ in jax.tree_util.tree_leaves_with_path(inner_state)
        ]
        declared = zip(
            names, leaves, _declared(inner_state, "nonnegative"), _declared(inner_state, "exact"), strict=True
        )
        stored = [
            (leaf, codes.Kept()) if exact else codes.first(leaf, storage, block_size, nonnegative, name)
            for name, leaf, nonnegative, exact in declared
        ]
        arrays, forms = zip(*stored, strict=True) if stored else ((), ())
        return LowPrecisionState(word, jax.tree.unflatten(structure, arrays), forms)

    def update(
        updates: optax.Updates,
        state: LowPrecisionState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LowPrecisionState]:
        updates, wide = tx.update(updates, state.wide(), params, **extra_args)
        return updates, state.with_wide(wide)

    if isinstance(tx, Phi):
        return phi_around([tx], init, update)
    return optax.GradientTransformationExtraArgs(init, update)


def _first_word(key: Any) -> jax.Array:
    """Return the word of a random key or of an integer seed."""
    if isinstance(key, int | np.integer):
        return jnp.asarray(int(key) % 2**32, jnp.uint32)
    return jax.random.bits(jnp.asarray(key), dtype=jnp.uint32)


def _declared(state: optax.OptState, kind: Literal["nonnegative", "exact"]) -> list[bool]:
    """Return which arrays of a state are never negative, or not to be rounded, according to its classes."""
    bare = _tree.bare(state)

    def declared(path: tuple[Any, ...]) -> bool:
        # The state or a node within it declares it: the parameters may be a class with fields of their own.
        owners = owners_and_fields(bare, path)
        return any(field in getattr(state_fields(type(owner)), kind) for owner, field in owners)

    return [declared(path) for path, _ in jax.tree_util.tree_leaves_with_path(bare)]


class MasterWeightsState(NamedTuple):
    """State of :func:`master_weights`.

    Attributes:
      remainder: master weight minus narrow weight, shaped like the parameters; ``optax.MaskedNode`` for
        weights that are not narrow.
      inner_state: the state of the wrapped optimiser, for the wide weights.
    """

    remainder: optax.Params
    inner_state: optax.OptState

    def wrapped_state(self) -> optax.OptState:
        """Return the state in which :func:`riemann_optax.consolidate` looks for states to consolidate."""
        return self.inner_state

    def weights_for(self, params: optax.Params) -> optax.Params:
        """Return the weights that the wrapped optimiser has where these are the narrow ones."""
        return _master(self.remainder, params)

    def consolidated(self, params: optax.Params, task_importance: optax.Params | None = None) -> Self:
        """Return the state after a task that ended with narrow weights; wrapped states get the wide ones."""
        weights = _master(self.remainder, params)
        return self._replace(inner_state=consolidate_within(self.inner_state, weights, task_importance))


def _master(remainder: Any, params: optax.Params) -> optax.Params:
    """Return the master weights; where no remainder is kept, of a leaf or a masked branch, the weights."""

    def master(rest: Any, leaf: Any) -> Any:
        return leaf if _tree.is_masked(rest) else leaf.astype(rest.dtype) + rest

    # In an optimiser of Flax the state's containers may be others than those of the parameters.
    leaves, structure = jax.tree.flatten(params)
    rests = jax.tree.leaves(remainder, is_leaf=_tree.is_masked)
    if len(leaves) == len(rests):
        return jax.tree.unflatten(structure, map(master, rests, leaves))
    return jax.tree.map(master, remainder, params, is_leaf=_tree.is_masked)


def master_weights(
    tx: optax.GradientTransformation, dtype: Any = jnp.float32
) -> optax.GradientTransformationExtraArgs:
    r"""Train weights of low precision as if they were of high precision.

    .. math::
      m \leftarrow w + r + u, \qquad w \leftarrow \mathrm{round}(m), \qquad r \leftarrow m - w

    with ``w`` the narrow weight, ``r`` its remainder in the state, ``m`` the *master weight* and ``u`` the
    step of ``tx``, which sees gradients and master weights in ``dtype``. Without a remainder a bfloat16
    weight does not move at all if a step is smaller than 1/512 of it. Wrap the whole optimiser, including
    weight decay: the remainder is right only if the updates are applied unchanged.

    The state holds the remainder, not the weights: it starts at zero, other changes of the weights are
    respected, and weights that are already wide need no state and do not change.

    State: 1 value of ``dtype`` per narrow weight, and the state of ``tx``. Elementwise, so no collective.

    Args:
      tx: the whole optimiser.
      dtype: dtype of the master weights, real floating point. Complex leaves and leaves at least as wide
        pass unchanged.

    Returns:
      An optimiser with state :class:`MasterWeightsState`, for ``optax.apply_updates``; its updates have the
      dtype of the parameters.

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

    def init(params: optax.Params) -> MasterWeightsState:
        _tree.check_inexact(params, "params")
        params = _tree.arrays(params)
        return MasterWeightsState(jax.tree.map(start, params), tx.init(jax.tree.map(widen, params)))

    def update(
        updates: optax.Updates,
        state: MasterWeightsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MasterWeightsState]:
        params = _check.require_params(_tree.trained(params, updates), "master_weights")
        updates = _tree.arrays(updates)
        weights = _master(state.remainder, params)
        steps, inner_state = tx.update(jax.tree.map(widen, updates), state.inner_state, weights, **extra_args)

        def move(step: jax.Array, leaf: jax.Array, weight: jax.Array) -> jax.Array:
            if not is_narrow(leaf):
                return step
            return ((weight + step).astype(leaf.dtype).astype(dtype) - leaf.astype(dtype)).astype(leaf.dtype)

        def rest(step: jax.Array, leaf: jax.Array, weight: jax.Array, moved: jax.Array) -> Any:
            if not is_narrow(leaf):
                return optax.MaskedNode()
            # Use the result of apply_updates, which may be off by one unit in the last place.
            return weight + step - (leaf + moved).astype(dtype)

        moved = jax.tree.map(move, steps, params, weights)
        remainder = jax.tree.map(rest, steps, params, weights, moved)
        return moved, MasterWeightsState(remainder, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
