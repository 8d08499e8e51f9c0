"""Parameters of every kind a user may have: nested containers around leaves of odd shapes and dtypes."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from hypothesis import strategies as st

# Of trees for each transformation; CONTRIBUTING has the command of the long run.
EXAMPLES = int(os.environ.get("RIEMANN_OPTAX_TREES", "3"))
SHAPES = [(), (1,), (3,), (0,), (2, 3), (3, 0), (2, 1, 3), (1, 2, 1, 3), (1, 1, 2, 1, 2)]
REAL = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]
COMPLEX = [jnp.complex64, jnp.complex128]
# Between these, a product of three is neither 0 nor infinite in float16.
SMALLEST, LARGEST = 0.04, 30.0


class Pair(NamedTuple):
    """A container that is a tuple with names."""

    first: Any
    second: Any


class Module(NamedTuple):
    """The variables of a Flax NNX module, to become an ``nnx.State``."""

    variables: dict[str, Any]


class Leaf(NamedTuple):
    """A leaf to be made: hypothesis shrinks and prints it more easily than an array."""

    shape: tuple[int, ...]
    dtype: Any
    seed: int


def leaves(*, complex_too: bool) -> st.SearchStrategy:
    """Return a strategy for leaves."""
    dtypes = st.sampled_from(REAL + COMPLEX if complex_too else REAL)
    return st.builds(Leaf, st.sampled_from(SHAPES), dtypes, st.integers(0, 9))


def trees(*, complex_too: bool) -> st.SearchStrategy:
    """Return a strategy for trees of :class:`Leaf`, empty ones included."""
    empty = st.sampled_from([None, optax.MaskedNode(), (), {}])

    def containers(children: st.SearchStrategy) -> st.SearchStrategy:
        return st.one_of(
            st.dictionaries(st.sampled_from(["kernel", "bias", "0", "a/b", ""]), children, max_size=3),
            st.lists(children, max_size=3),
            st.lists(children, max_size=2).map(tuple),
            st.builds(Pair, children, children),
        )

    any_leaf = leaves(complex_too=complex_too)
    names = st.sampled_from(["kernel", "bias", "scale"])
    variables = st.dictionaries(names, any_leaf, min_size=1, max_size=3)
    modules = st.dictionaries(names, st.one_of(any_leaf, variables), max_size=3).map(Module)
    nested = st.recursive(st.one_of(any_leaf, empty), containers, max_leaves=6)
    # None in the place of all parameters means that they have not been given.
    return st.one_of(nested.filter(lambda tree: tree is not None), modules)


def make(tree: Any, values: bool = True) -> Any:
    """Return the tree with arrays, or with ``jax.ShapeDtypeStruct``, in the place of its leaves."""

    def array(leaf: Leaf) -> Any:
        if not values:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        generator = np.random.default_rng(leaf.seed)

        def numbers() -> np.ndarray:
            magnitude = np.exp(generator.uniform(np.log(SMALLEST), np.log(LARGEST), leaf.shape))
            return magnitude * generator.choice([-1, 1], leaf.shape)

        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return jnp.asarray(numbers() + 1j * numbers(), leaf.dtype)
        return jnp.asarray(numbers(), leaf.dtype)

    arrays = jax.tree.map(array, tree, is_leaf=lambda node: isinstance(node, Leaf))
    if isinstance(tree, Module):
        return nnx.State(jax.tree.map(nnx.Param, arrays.variables))
    return arrays
