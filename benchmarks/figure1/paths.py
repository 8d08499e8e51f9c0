"""A run of an optimiser on a surface, and the numbers that say what its path looks like."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.figure1.surfaces import Surface

TARGET = 1e-8  # share of the initial loss at which a run has arrived

# Positions this close to the valley floor are rounding, not swings: float64 is good to 1e-15 there.
ROUNDING = 1e-12


class PathStatistics(NamedTuple):
    """What a path looks like until it arrives: until its loss is first at most ``TARGET`` of the initial.

    Attributes:
      steps: updates until then; infinite for a miss.
      settled: updates after which the loss stays at or below the target until the end of the run; infinite
        where it ends above. More than ``steps`` says that the first arrival was in passing.
      straightness: distance from start to arrival over the length of the path between; 1 is a straight line.
      sign_changes: how often the path crosses the valley floor, that is changes side along the steep axis.
      lowest: lowest loss of the run, over the initial loss.

    """

    steps: jax.Array
    settled: jax.Array
    straightness: jax.Array
    sign_changes: jax.Array
    lowest: jax.Array


def follow(
    transformation: optax.GradientTransformation, surface: Surface, steps: int
) -> tuple[jax.Array, jax.Array]:
    """Run; return the path ``f[steps + 1, 2]`` of the weights and the losses ``f[steps + 1]`` along it.

    Both include the start. The surface goes along as the extra argument ``obj_fn``, for the phis that ask
    for curvature.
    """
    transformation = optax.with_extra_args_support(transformation)
    start = surface.start

    def step(carry, _):
        weights, state = carry
        updates, state = transformation.update(jax.grad(surface)(weights), state, weights, obj_fn=surface)
        weights = optax.apply_updates(weights, updates)
        return (weights, state), weights

    _, later = jax.lax.scan(step, (start, transformation.init(start)), length=steps)
    path = jnp.concatenate([start[None], later])
    return path, jax.vmap(surface)(path)


def steps_to_target(losses: jax.Array) -> jax.Array:
    """First index at which the losses ``f[steps + 1]`` are at most ``TARGET`` of the first, else infinity."""
    arrived = losses <= TARGET * losses[0]
    return jnp.where(arrived.any(), jnp.argmax(arrived).astype(float), jnp.inf)


def steps_to_settle(losses: jax.Array) -> jax.Array:
    """First index from which the losses ``f[steps + 1]`` stay that low until the end, else infinity."""
    # A loss that is not a number is not below the target either.
    above = ~(losses <= TARGET * losses[0])
    return jnp.where(above[-1], jnp.inf, (losses.size - jnp.argmax(above[::-1])).astype(float))


def straightness(path: jax.Array, last: jax.Array) -> jax.Array:
    """Distance from the first to the ``last`` point of the path over the length of the path between them."""
    lengths = jnp.linalg.norm(jnp.diff(path, axis=0), axis=-1)
    length = jnp.sum(lengths, where=jnp.arange(lengths.size) < last)
    return jnp.linalg.norm(path[last] - path[0]) / length


def sign_changes(positions: jax.Array, last: jax.Array) -> jax.Array:
    """How often positions ``f[steps + 1]`` change sign up to ``last``; touching zero is no change."""

    def step(side, position):
        # A position on the floor leaves the side as it was, so that + 0 - is one change and + 0 + is none.
        new_side = jnp.where(jnp.abs(position) > ROUNDING, jnp.sign(position), side)
        return new_side, side * new_side < 0

    _, changed = jax.lax.scan(step, jnp.zeros_like(positions[0]), positions)
    return jnp.sum(changed, where=jnp.arange(positions.size) <= last)


def path_statistics(surface: Surface, path: jax.Array, losses: jax.Array) -> PathStatistics:
    """Measure a path ``f[steps + 1, 2]`` with its losses, up to its arrival (or its end)."""
    steps = steps_to_target(losses)
    last = jnp.where(jnp.isfinite(steps), steps, losses.size - 1).astype(int)
    steep = jax.vmap(surface.coordinates)(path)[:, 1]
    return PathStatistics(
        steps=steps,
        settled=steps_to_settle(losses),
        straightness=straightness(path, last),
        sign_changes=sign_changes(steep, last),
        lowest=jnp.nanmin(losses) / losses[0],
    )
