"""Where bases and factors lie on a mesh; the compiler infers all other shardings."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from riemann_optax.eigenbasis.layout import Layout


def named_sharding(leaf: Any) -> NamedSharding | None:
    """Return a leaf's sharding if it is known: always on an Explicit mesh, elsewhere only of arrays."""
    traced = isinstance(leaf, jax.core.Tracer)
    sharding = getattr(jax.typeof(leaf) if traced else leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return None
    return None if traced and not is_explicit(sharding) else sharding


def is_explicit(sharding: NamedSharding) -> bool:
    """Return whether an axis of the mesh is Explicit."""
    return AxisType.Explicit in sharding.mesh.axis_types


def square_sharding(leaf: Any, layout: Layout, side: Literal["left", "right"]) -> NamedSharding | None:
    """Return the sharding of a side's bases: they are spread over the same devices as the leaf.

    The mesh axes of the side itself shard the rows of the square (its blocks, if it has several). The mesh
    axes of the other side shard its columns. Both only where sizes divide.
    """
    sharding = named_sharding(leaf)
    if sharding is None:
        return None
    spec, depth = _spec(sharding, layout), len(layout.stack)
    middle = depth + layout.num_inputs
    own, other = first_axes(spec[depth:middle]), first_axes(spec[middle:])
    if side == "right":
        own, other = other, own
    *_, blocks, size, _ = layout.square(side)

    def fits(axes: Any, length: int) -> Any:
        if axes is None:
            return None
        names = axes if isinstance(axes, tuple) else (axes,)
        return axes if length % math.prod(sharding.mesh.shape[name] for name in names) == 0 else None

    if blocks > 1:
        return NamedSharding(
            sharding.mesh, PartitionSpec(*spec[:depth], fits(own, blocks), None, fits(other, size))
        )
    return NamedSharding(
        sharding.mesh, PartitionSpec(*spec[:depth], None, fits(own, size), fits(other, size))
    )


class Places(NamedTuple):
    """Where the blocked matrices of a leaf lie; None leaves it to the compiler.

    Attributes:
      left: while the rows are multiplied.
      right: while the columns are.
      home: at all other times.
    """

    left: PartitionSpec | None = None
    right: PartitionSpec | None = None
    home: PartitionSpec | None = None


ANYWHERE = Places()


def places(leaf: Any, layout: Layout | None) -> Places:
    """Return where the matrices of a leaf lie while their sides are multiplied.

    A product along a side that is shared out over devices would gather the whole matrix on each of them.
    Meanwhile the mesh axes of that side share out the other side instead, so that each device moves no more
    than its own share, there and back. This is for a matrix whose shorter side alone is shared out, where
    that is known: on an Explicit mesh. The basis of the longer side is larger than the matrix, and where both
    sides are shared out the compiler moves as little.
    """
    sharding = named_sharding(leaf)
    if layout is None or sharding is None or not is_explicit(sharding):
        return ANYWHERE
    if len(leaf.shape) != len(layout.permutation):
        return ANYWHERE
    spec, depth = _spec(sharding, layout), len(layout.stack)
    stack, whole = spec[:depth], (None, None)
    rows, columns = _names(spec[depth : depth + layout.num_inputs]), _names(spec[depth + layout.num_inputs :])
    if bool(rows) == bool(columns):
        return ANYWHERE
    devices = math.prod(sharding.mesh.shape[name] for name in rows + columns)

    def shared(side: tuple[int, int]) -> tuple[Any, Any] | None:
        blocks, size = side
        if blocks % devices == 0:
            return rows + columns, None
        return (None, rows + columns) if size % devices == 0 else None

    side, other = (layout.rows, layout.columns) if rows else (layout.columns, layout.rows)
    home, away = shared(side), shared(other)
    if home is None or away is None or math.prod(side) > math.prod(other):
        return ANYWHERE
    if rows:
        return Places(left=PartitionSpec(*stack, *whole, *away), home=PartitionSpec(*stack, *home, *whole))
    return Places(right=PartitionSpec(*stack, *away, *whole), home=PartitionSpec(*stack, *whole, *home))


def placed(matrices: jax.Array, place: PartitionSpec | None) -> jax.Array:
    """Return blocked matrices where they are to lie; inside of :func:`on_auto_mesh`."""
    if place is None:
        return matrices
    moved: jax.Array = jax.lax.with_sharding_constraint(matrices, place)
    return moved


def _spec(sharding: NamedSharding, layout: Layout) -> tuple[Any, ...]:
    """Return what shares out each axis of a leaf, in the order stack, inputs, outputs."""
    spec = (*sharding.spec, *[None] * (len(layout.permutation) - len(sharding.spec)))
    return tuple(spec[axis] for axis in layout.permutation)


def _names(spec: tuple[Any, ...]) -> tuple[str, ...]:
    given = [axes if isinstance(axes, tuple) else (axes,) for axes in spec if axes is not None]
    return tuple(name for axes in given for name in axes)


def first_axes(spec: tuple[Any, ...]) -> Any:
    """Return the first mesh axes that a spec names; None where it names none."""
    return next((axes for axes in spec if axes is not None), None)


def devices_to_spread_over() -> int:
    """Return the number of devices of the mesh in use that :func:`spread` spreads over; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in _auto_axes(mesh))


def _auto_axes(mesh: Any) -> tuple[str, ...]:
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Auto)


def spread(squares: jax.Array) -> jax.Array:
    """Spread ``[number, n, n]`` over all devices of the mesh in use, if their number divides."""
    devices = devices_to_spread_over()
    if devices == 1 or squares.shape[0] % devices:
        return squares
    names = _auto_axes(jax.sharding.get_abstract_mesh())
    placed: jax.Array = jax.lax.with_sharding_constraint(squares, PartitionSpec(names, None, None))
    return placed


def on_auto_mesh(function: Callable[..., Any], like: Any, *arguments: Any) -> Any:
    """Call a function; on a mesh with Explicit axes the compiler infers the shardings inside.

    Args:
      function: the function.
      like: arrays in the structure of the result, which gets their shardings.
      *arguments: the arguments of the function: all arrays that it reads, a traced hyper-parameter too, for
        an array that it closed over would be one of another mesh.
    """
    shardings = [named_sharding(leaf) for leaf in jax.tree.leaves((like, arguments))]
    mesh = next((sharding.mesh for sharding in shardings if sharding is not None), None)
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return function(*arguments)
    explicit = [
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
    ]
    specs = jax.tree.map(lambda array: jax.typeof(array).sharding.spec, like)
    # The mesh is that of the arrays: whoever calls need not have set it by jax.set_mesh.
    abstract = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
    leaves, structure = jax.tree.flatten(arguments)
    numbers = {at: leaf for at, leaf in enumerate(leaves) if not hasattr(leaf, "dtype")}

    def of_arrays(arrays: list[Any]) -> Any:
        rest = iter(arrays)
        every = [numbers[at] if at in numbers else next(rest) for at in range(len(leaves))]
        return function(*jax.tree.unflatten(structure, every))

    arrays = [leaf for at, leaf in enumerate(leaves) if at not in numbers]
    with jax.sharding.use_abstract_mesh(abstract):
        return jax.sharding.auto_axes(of_arrays, axes=tuple(explicit), out_sharding=specs)(arrays)
