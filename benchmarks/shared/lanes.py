"""Points times seeds as two nested axes: one run for all, with what belongs to a seed computed once."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.shared.tuning import Point

# From the values of a point and a seed's random key to an optimiser.
Build = Callable[[Any, jax.Array], optax.GradientTransformation]


class Scores(NamedTuple):
    """What a point reached.

    Attributes:
      by_seed: for each measure, a number per seed.
      curve: mean of the main measure over the seeds in each bin of the run.
    """

    by_seed: dict[str, Any]
    curve: Any


def values_of(points: Sequence[Point]) -> dict[str, jax.Array]:
    """Return an array per axis; at least one array, so that there is something to map over.

    Examples:
      >>> values_of([{"rate": 1.0}, {"rate": 2.0}])["rate"].tolist()
      [1.0, 2.0]
    """
    axes = {name: jnp.asarray([p[name] for p in points], jnp.float32) for name in points[0]}
    return axes | {"": jnp.zeros(len(points))}


def start(
    build: Build, values: Any, params: Any, keys: jax.Array, in_turn: bool = False
) -> tuple[Any, Any, Any]:
    """Return parameters and optimiser state of every lane, and along which of their axes the points are.

    Random keys belong to the seeds alone, so that the noise of a step is drawn once for all points: they
    are compared on the same noise, and drawing it is what costs most. Lanes in turn have copies of them.

    Args:
      build: from the values of a point and a key to the optimiser.
      values: of the points, each with the points as its axis.
      params: initial parameters, with the seeds as first axis.
      keys: a key per seed.
      in_turn: as of :func:`mapped`.
    """

    def one(value: Any, own: Any, key: jax.Array) -> tuple[Any, Any]:
        return own, build(value, key).init(own)

    def is_key(leaf: Any) -> bool:
        return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    first = jax.tree.map(lambda leaf: leaf[0], (values, params, keys))
    axes = jax.tree.map(lambda leaf: None if is_key(leaf) and not in_turn else 0, jax.eval_shape(one, *first))
    over_seeds = jax.vmap(one, (None, 0, 0))
    lanes = jax.jit(jax.vmap(over_seeds, (0, None, None), axes))(values, params, keys)
    return *lanes, axes


def mapped(
    learn: Callable[..., Any], build: Build, axes: Any, in_turn: bool = False, shared: bool = False
) -> Callable[..., Any]:
    """Map ``learn(build, value, params, state, own)`` over seeds and then points, compiled.

    The result is the same object for the same axes, so that a round of trials is compiled once for all.

    Args:
      learn: returns parameters, state and what it measured.
      build: what it is given first.
      axes: of parameters and state, as :func:`start` returns them.
      in_turn: run the lanes one after the other. With one example per update a step is bound by memory, and
        the weights of one lane fit into a processor's cache where those of all lanes do not. :func:`start`
        has to know: a random key that points share cannot be written by each, and JAX says so.
      shared: whether ``own`` is a pair of what belongs to a seed and what belongs to all.

    Returns:
      A function of values (by point), parameters and state (by point and seed) and of what belongs to a seed.
    """
    leaves, treedef = jax.tree.flatten(axes, is_leaf=lambda axis: axis is None)
    return _mapped(learn, build, tuple(leaves), treedef, in_turn, shared)


@functools.lru_cache(maxsize=8)
def _mapped(
    learn: Any, build: Any, leaves: Any, treedef: Any, in_turn: bool, shared: bool
) -> Callable[..., Any]:
    params_axes, state_axes = jax.tree.unflatten(treedef, leaves)
    learn = functools.partial(learn, build)
    if in_turn:
        learn = jax.custom_batching.sequential_vmap(learn)
    over_seeds = jax.vmap(learn, in_axes=(None, 0, 0, (0, None) if shared else 0))
    over_points = jax.vmap(
        over_seeds, in_axes=(0, params_axes, state_axes, None), out_axes=(params_axes, state_axes, 0)
    )
    return jax.jit(over_points, donate_argnums=(1, 2))


def learned(
    learn: Callable[..., Any],
    build: Build,
    points: Sequence[Point],
    params: Any,
    keys: jax.Array,
    tasks: Iterable[Any],
    *,
    shared: Any = None,
    in_turn: bool = False,
) -> Iterator[Any]:
    """Learn tasks one after the other in all lanes; yield what was measured of each.

    Args:
      learn: as of :func:`mapped`.
      build: as of :func:`mapped`.
      points: values of the hyper-parameters.
      params: as of :func:`start`.
      keys: as of :func:`start`.
      tasks: what belongs to each seed in every task.
      shared: what all seeds have, the second of a pair that ``learn`` is then given instead of ``own``.
      in_turn: as of :func:`mapped`.
    """
    values = values_of(points)
    params, state, axes = start(build, values, params, keys, in_turn)
    learn_all = mapped(learn, build, axes, in_turn, shared is not None)
    for own in tasks:
        given = own if shared is None else (own, shared)
        params, state, measured = learn_all(values, params, state, given)
        yield np.asarray(measured)


def scores(
    blocks: dict[str, np.ndarray], main: str, bins: int = 50, ends: dict[str, np.ndarray] | None = None
) -> Scores:
    """Sum up measures of shape (seeds, blocks): means over the run and over its last tenth, and the curve.

    Args:
      blocks: what is averaged over the run.
      main: the one of them whose last tenth and whose curve are wanted.
      bins: of the curve.
      ends: what says something at the end alone: the means over the last tenth.
    """
    count = blocks[main].shape[1]
    last = max(count // 10, 1)
    by_seed = {name: values.mean(1) for name, values in blocks.items()}
    by_seed[f"{main}, last tenth"] = blocks[main][:, -last:].mean(1)
    by_seed |= {name: values[:, -last:].mean(1) for name, values in (ends or {}).items()}
    pieces = np.array_split(blocks[main].mean(0), min(bins, count))
    return Scores(by_seed, np.asarray([piece.mean() for piece in pieces]))
