"""What every module needs of a tree: leaf names, working precision, sums over groups and states within it."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

T = TypeVar("T")
Group = Literal["leaf", "neuron", "tree"]
GROUPS: tuple[str, ...] = get_args(Group)
_HOST = (np.ndarray, np.generic, bool, int, float, complex)
_IN_A_BOX = (jax.tree_util.GetAttrKey("value"),)


def leaf_name(path: tuple[Any, ...]) -> str:
    """Return how an error message calls the leaf at ``path``."""
    return f"leaf {jax.tree_util.keystr(path)}" if path else "the only leaf"


def dtype_of(leaf: Any) -> np.dtype[Any]:
    """Return the dtype that JAX has for an array, a ``jax.ShapeDtypeStruct`` or a Python number.

    NumPy's default of float64 is float32 for JAX, unless 64-bit types are enabled.
    """
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def arrays(tree: Any) -> Any:
    """Return the tree with its NumPy arrays and Python numbers as arrays of JAX; all else stays as it is."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, _HOST) else leaf, tree)


def is_inexact(leaf: Any) -> bool:
    """Return whether this is an array of floating or complex numbers, or stands for one."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def is_masked(node: Any) -> bool:
    """Return whether ``optax.masked`` or ``optax.partition`` leaves out this leaf."""
    return isinstance(node, optax.MaskedNode)


def has_masked(tree: Any) -> bool:
    """Return whether ``masked`` or ``partition`` has left out a leaf of a tree."""
    return any(map(is_masked, jax.tree.leaves(tree, is_leaf=is_masked)))


def masked_like(tree: Any, reference: Any) -> Any:
    """Return ``tree`` with whatever ``reference`` lacks under ``masked`` or ``partition`` left out.

    Those wrappers mask gradients, parameters and state, but not extra arguments.
    """
    if not has_masked(reference):
        return tree
    return jax.tree.map(lambda r, x: r if is_masked(r) else x, reference, tree, is_leaf=is_masked)


def numbered(params: Any) -> tuple[Any, ...]:
    """Return the parameters, and them bare, with the number of each leaf in its place, -1 for what is masked.

    State is shaped like either; :func:`places` tells which of it is.
    """

    def count(tree: Any) -> Any:
        numbers = itertools.count()
        return jax.tree.map(lambda leaf: -1 if is_masked(leaf) else next(numbers), tree, is_leaf=is_masked)

    return count(params), count(bare(params))


def places(node: Any, numbered: tuple[Any, ...]) -> list[int] | None:
    """Return the number of the weight of each leaf of ``node``, -1 for what is masked; None of another tree.

    One ``optax.MaskedNode`` may stand for a branch: a mask or labels may be a prefix of the parameters.
    """
    structure: Any
    leaves, structure = jax.tree.flatten(node, is_leaf=is_masked)
    for numbers in numbered:
        try:
            found = structure.flatten_up_to(numbers)
        except (TypeError, ValueError):  # another tree
            continue
        pairs = list(zip(leaves, found, strict=True))
        if all(is_masked(leaf) or isinstance(place, int) for leaf, place in pairs):
            return [-1 if is_masked(leaf) else place for leaf, place in pairs]
    return None


def working_dtype(leaf: Any) -> np.dtype[Any]:
    """Return the real dtype a metric is evaluated in: float32, or wider where the leaf is wider.

    In bfloat16 ``1 + 0.05**2`` rounds to 1, so a narrow metric would be silently Euclidean.
    """
    real = np.empty(0, dtype_of(leaf)).real.dtype
    return real if real.itemsize > 4 else np.dtype(np.float32)


def wide_dtype(leaf: Any) -> np.dtype[Any]:
    """Return the dtype vectors are computed in: the working dtype, complex where the leaf is complex."""
    return np.promote_types(dtype_of(leaf), working_dtype(leaf))


def widen(tree: Any) -> Any:
    """Return a tree with its narrow leaves, arrays or abstract ones, in the dtype vectors are computed in.

    What runs inside of a frame sees wide leaves only: in float16 an ``eps`` of 1e-8 is 0, and a second moment
    of small gradients as well.
    """

    def wide(leaf: Any) -> Any:
        dtype = dtype_of(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact) or dtype == wide_dtype(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, wide_dtype(leaf), sharding=leaf.sharding)
        return leaf.astype(wide_dtype(leaf))

    return jax.tree.map(wide, tree)


def gathered(leaf: jax.Array) -> jax.Array:
    """Return a leaf whole on each device of an Explicit mesh, where JAX neither flattens nor sorts shards."""
    mesh = jax.typeof(leaf).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return leaf
    whole: jax.Array = jax.sharding.reshard(leaf, NamedSharding(mesh, PartitionSpec()))
    return whole


def at_least_as_wide(steps: Any, params: Any) -> Any:
    """Return steps, each in the wider dtype of itself and its weight: only so it leads to a given weight."""
    return jax.tree.map(
        lambda step, weight: step.astype(jnp.promote_types(step.dtype, dtype_of(weight))), steps, params
    )


def check_inexact(tree: Any, argument: str) -> None:
    """Raise ``TypeError`` for a leaf that has no gradient: integers, keys, float0; or what is no array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, _HOST):
            raise TypeError(
                f"{argument}: {leaf_name(path)} is no array but {leaf!r:.80}: pass what is trained alone, of "
                "an Equinox model eqx.filter(model, eqx.is_inexact_array)."
            )
        dtype = leaf.dtype if hasattr(leaf, "dtype") else dtype_of(leaf)  # a random key's is not NumPy's
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{argument}: {leaf_name(path)} has dtype {dtype}, and a metric is defined on "
                "floating-point or complex leaves only: keep this leaf out of params and gradients."
            )


def zeros_like(params: Any, dtype: Any = None) -> Any:
    """Return optimiser state for ``params``: zeros in ``dtype``, by default the working dtype.

    Built with ``jnp.zeros_like``, so a leaf's sharding carries over and abstract leaves are accepted.
    """
    return full_like(params, 0.0, dtype)


def full_like(params: Any, value: float, dtype: Any = None) -> Any:
    """Return optimiser state for ``params`` filled with ``value``; see :func:`zeros_like`."""
    check_inexact(params, "params")
    return jax.tree.map(lambda p: jnp.full_like(p, value, dtype=dtype or working_dtype(p)), params)


def vectors_like(params: Any, dtype: Any = None) -> Any:
    """Return zeros for what is linear in the gradient: in ``dtype``, or complex where the weights are."""
    check_inexact(params, "params")

    def zeros(leaf: Any) -> jax.Array:
        real = working_dtype(leaf) if dtype is None else jnp.dtype(dtype)
        is_complex = jnp.issubdtype(dtype_of(leaf), jnp.complexfloating)
        return jnp.zeros_like(leaf, dtype=np.promote_types(real, jnp.complex64) if is_complex else real)

    return jax.tree.map(zeros, params)


def to_working_dtype(leaf: Any) -> jax.Array:
    """Cast a real leaf to its working dtype."""
    return jnp.asarray(leaf).astype(working_dtype(leaf))


def magnitude(leaf: Any) -> jax.Array:
    """Return ``abs(leaf)`` in the working dtype, for real and complex leaves."""
    leaf = jnp.asarray(leaf)
    if jnp.iscomplexobj(leaf):
        leaf = leaf.astype(np.promote_types(leaf.dtype, jnp.complex64))
        return jnp.abs(leaf)
    return jnp.abs(to_working_dtype(leaf))


def squared_magnitude(leaf: Any) -> jax.Array:
    """Return ``abs(leaf)**2`` in the working dtype, saturating instead of overflowing.

    The magnitude saturates at 2**63 (2**511 in float64), whose square is still finite, so that one huge but
    finite gradient cannot turn a running mean into infinity for good. NaN stays NaN.
    """
    leaf = jnp.asarray(leaf)
    square = jnp.square(magnitude(leaf) if jnp.iscomplexobj(leaf) else to_working_dtype(leaf))
    return jnp.minimum(square, 2.0**1022 if square.dtype.itemsize > 4 else 2.0**126)


def mean(array: jax.Array, axis: Any, keepdims: bool = True) -> jax.Array:
    """Return the mean over some axes, and 0, not NaN, over none of an array without elements."""
    found: jax.Array = (jnp.mean if array.size else jnp.sum)(array, axis=axis, keepdims=keepdims)
    return found


def power(base: Any, exponent: float) -> Any:
    """Return ``base**exponent`` for ``base >= 0``, a tree, with a zero, not a NaN, derivative at zero.

    A unit that is dead for one batch has a running mean of exactly 0, where the derivative of a root is
    infinite: without the guard, learning a hyper-parameter through the update would return NaN.
    """
    if isinstance(exponent, int | float) and exponent == 1:
        return base
    if isinstance(exponent, float) and exponent == 0.5:
        return _root(base)

    def raised(base: jax.Array) -> jax.Array:
        zero = base == 0  # and not "base > 0": a NaN must stay a NaN
        inner = jax.lax.select(zero, jnp.ones_like(base), base)
        return jax.lax.select(zero, jnp.zeros_like(base), inner**exponent)

    return jax.tree.map(raised, base)


@jax.custom_jvp
def _root(base: Any) -> Any:
    """Return the square root; nothing but the root itself, for what follows it is done once for each user."""
    return jax.tree.map(jnp.sqrt, base)


@_root.defjvp
def _derivative_of_root(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (base,), (tangent,) = primals, tangents
    root = _root(base)

    def derivative(root: jax.Array, tangent: jax.Array) -> jax.Array:
        zero = root == 0
        slope = 0.5 / jax.lax.select(zero, jnp.ones_like(root), root)
        return jax.lax.select(zero, jnp.zeros_like(slope), slope) * tangent

    return root, jax.tree.map(derivative, root, tangent)


def group_mean(tree: Any, over: Literal["leaf", "tree"]) -> Any:
    """Return, for every leaf, the mean over its group, broadcastable against the leaf.

    ``"leaf"`` averages a whole array, ``"tree"`` all weights of the tree alike. What ``"neuron"`` is depends
    on what axes mean: :func:`riemann_optax._axes.group_mean`.
    """
    if over == "tree":
        leaves = jax.tree.leaves(tree)
        return mean_of_sums([jnp.sum(leaf) for leaf in leaves], sum(leaf.size for leaf in leaves), tree)
    return jax.tree.map(lambda leaf: mean(leaf, None, keepdims=False), tree)


def once(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """Return ``function``, evaluated once for each object: leaves may share a mean."""
    results: dict[int, tuple[Any, T]] = {}

    def call(argument: Any) -> T:
        if id(argument) not in results:
            # The argument is kept too, so that its id stays its own.
            results[id(argument)] = argument, function(argument)
        return results[id(argument)][1]

    return call


def mean_of_sums(sums: list[jax.Array], size: int, like: Any) -> Any:
    """Return, for every leaf of ``like``, the mean over ``size`` weights of which ``sums`` are the parts."""
    if not sums:
        return like
    dtype = widest_dtype(sums)
    # A running sum, not a chain of additions: XLA copies such a chain into the fusion of every leaf, and
    # compiling takes time that grows with the square of the number of leaves.
    mean = jax.lax.cumsum(jnp.stack([part.astype(dtype) for part in sums]) / float(max(size, 1)))[-1]
    cast = functools.cache(mean.astype)
    return jax.tree.map(lambda leaf: cast(leaf.dtype), like)


def inner(a: Any, b: Any) -> jax.Array:
    """Return ``real(conj(a) * b)`` in the working dtype: for complex leaves the product of two vectors."""
    dtype = np.promote_types(working_dtype(a), working_dtype(b))
    a, b = jnp.asarray(a), jnp.asarray(b)
    product = jnp.real(a).astype(dtype) * jnp.real(b).astype(dtype)
    if jnp.iscomplexobj(a) and jnp.iscomplexobj(b):
        product = product + jnp.imag(a).astype(dtype) * jnp.imag(b).astype(dtype)
    return product


def bare(tree: Any) -> Any:
    """Return the tree with the contents of each box in the place of the box.

    A box is a node of a registered class with one child called ``value``, such as a variable of Flax NNX or a
    partitioned parameter of Linen. It carries the placement of one weight and passes it on to whatever array
    is put into it, so state whose arrays have not the shapes of the weights is built over the bare tree.
    """

    def unboxed(node: Any) -> Any:
        content = _content(node)
        return bare(content[0]) if content else node

    return jax.tree.map(unboxed, tree, is_leaf=lambda node: bool(_content(node)))


def trained(params: Any, updates: Any) -> Any:
    """Return the parameters with None where the gradients have None and there is no weight.

    So a whole model of Equinox, functions and all, passes for its parameters, as it does in Optax.
    """
    alike: bool = jax.tree.structure(params) == jax.tree.structure(updates)  # type: ignore[operator]
    if params is None or alike:
        return params

    def kept(update: Any, own: Any) -> Any:
        known = any(map(is_inexact, jax.tree.leaves(own)))
        return own if known or update is not None else None

    try:
        return jax.tree.map(kept, updates, params, is_leaf=lambda node: node is None)
    except ValueError:  # trees of different models: whoever compares them names the leaf
        return params


def like(tree: Any, reference: Any) -> Any:
    """Return the leaves of ``tree`` in the containers and boxes of ``reference``."""
    return jax.tree.unflatten(jax.tree.structure(reference), jax.tree.leaves(tree))


def _content(node: Any) -> list[Any]:
    """Return what a box holds, in a list; an empty list for what is no box."""
    if node is None or isinstance(node, dict | list | tuple | jax.Array | np.ndarray):
        return []
    children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda child: child is not node)
    return [child for path, child in children if len(children) == 1 and path == _IN_A_BOX]


def find_states(state: optax.OptState, kind: type[Any]) -> list[Any]:
    """Return all states of one type, anywhere in ``state``; out of fewer bits those that are kept in them."""

    def is_stored(node: Any) -> bool:
        return hasattr(node, "wide") and hasattr(node, "inner_state")

    found: list[Any] = []
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind) or is_stored(node)):
        if isinstance(node, kind):
            found.append(node)
        elif is_stored(node) and find_states(node.inner_state, kind):
            found += find_states(_wide(node), kind)
    return found


def _wide(stored: Any) -> Any:
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(stored))
    return jax.eval_shape(type(stored).wide, stored) if abstract else stored.wide()


def at_count(value: Any, count: jax.Array) -> Any:
    """Return a number as it is, and a schedule at the count of updates."""
    found = value(count) if callable(value) else value
    if np.ndim(found) == 0:
        return found
    if np.size(found) != 1:
        raise ValueError(f"a schedule must return a single number, got an array of shape {np.shape(found)}.")
    return found.reshape([])  # or a weight without axes would become one with an axis


def divided(numerator: jax.Array, denominator: jax.Array, otherwise: float) -> jax.Array:
    """Return ``numerator / denominator``, and ``otherwise`` where the denominator is 0."""
    zero = denominator == 0
    safe = jnp.where(zero, jnp.ones_like(denominator), denominator)
    quotient = numerator / safe
    return jnp.where(zero, jnp.full_like(quotient, otherwise), quotient)


def widest_dtype(tree: Any) -> np.dtype[Any]:
    """Return the widest dtype among the leaves of a tree; float32 where it has none."""
    dtypes = [np.dtype(leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float32))
