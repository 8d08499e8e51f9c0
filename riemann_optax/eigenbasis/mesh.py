"""Where bases and factors lie on a mesh; the compiler infers all other shardings."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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
    spec = (*sharding.spec, *[None] * (len(leaf.shape) - len(sharding.spec)))
    spec = tuple(spec[axis] for axis in layout.permutation)
    depth = len(layout.stack)
    middle = depth + layout.num_inputs
    own, other = _first(spec[depth:middle]), _first(spec[middle:])
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


def _first(spec: tuple[Any, ...]) -> Any:
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
      *arguments: the arguments of the function.
    """
    shardings = [named_sharding(leaf) for leaf in jax.tree.leaves((like, arguments))]
    mesh = next((sharding.mesh for sharding in shardings if sharding is not None), None)
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return function(*arguments)
    explicit = [
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
    ]
    specs = jax.tree.map(lambda array: jax.typeof(array).sharding.spec, like)
    return jax.sharding.auto_axes(function, axes=tuple(explicit), out_sharding=specs)(*arguments)
