"""Train to an accuracy at all points and on all seeds at once, and count what it costs."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.energy import ledger
from benchmarks.energy.protocols import Images, Params, Protocol
from benchmarks.shared import lanes
from benchmarks.shared.tuning import Point

EXAMPLES = 2000  # between two tests


class Course(NamedTuple):
    """What a run has cost at each test; arrays of shape (points, seeds, tests).

    Attributes:
      accuracy: on the test images.
      energy: all that was spent so far, with what it would cost to consolidate the rest.
      maintenance: the part of it that transient changes cost.
      changed: changes of weights so far.
      path: ``sum(abs(dw))`` of the weights that the network computes with.
      distance: ``sum(abs(w - w_0))``.
    """

    accuracy: np.ndarray
    energy: np.ndarray
    maintenance: np.ndarray
    changed: np.ndarray
    path: np.ndarray
    distance: np.ndarray


def batches(images: Images, seed: int, updates: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the examples between two tests, epochs in random order, for ever."""
    generator, order = np.random.default_rng(seed), np.zeros(0, int)
    while True:
        while len(order) < updates * batch:
            order = np.concatenate([order, generator.permutation(len(images.train_labels))])
        chosen, order = order[: updates * batch].reshape(updates, batch), order[updates * batch :]
        yield images.train_inputs[chosen], images.train_labels[chosen]


def learner(outputs: Callable[..., Any], loss_of: Callable[..., Any]) -> Callable[..., Any]:
    """Return what learns up to the next test, for :func:`benchmarks.shared.lanes.mapped`."""

    def loss(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        return loss_of(outputs(params, inputs), labels)

    def learn(build, values, params, state, own):
        inputs, labels, start, test_inputs, test_labels = own
        tx = optax.with_extra_args_support(build(values, jax.random.key(0)))

        def step(carry, batch):
            params, before = carry
            value, gradients = jax.value_and_grad(loss)(params, *batch)
            updates, state = tx.update(gradients, before, params, value=value)
            cost = ledger.costs(updates, before, state)
            path = optax.tree.norm(updates, ord=1)
            measured = jnp.stack([cost.moved.sum(), cost.maintenance, cost.changed.sum(), path])
            return (jax.tree.map(jnp.add, params, updates), state), measured

        (params, state), costs = jax.lax.scan(step, (params, state), (inputs, labels))
        right = outputs(params, test_inputs).argmax(-1) == test_labels
        now = jnp.stack([right.mean(), ledger.pending(state), ledger.distance(params, start)])
        return params, state, (costs, now)

    return learn


def arrived(course: Course, target: float) -> np.ndarray:
    """Return the first test at or above the target, by point and seed; -1 for a miss."""
    reached = course.accuracy >= target
    return np.where(reached.any(-1), reached.argmax(-1), -1)


def hopeless(course: Course, target: float) -> np.ndarray:
    """Return which points are given up: all seeds of another are there for less energy.

    The energy to consolidate what is still transient counts as spent. Some of it may yet fade or cancel, so
    that a caching rule is given up a little early where it is nearly as good as the best.
    """
    at = arrived(course, target)
    spent = np.where(
        at >= 0, np.take_along_axis(course.energy, at[..., None], -1)[..., 0], course.energy[..., -1]
    )
    spent = np.where(np.isfinite(spent), spent, np.inf).mean(1)
    there = (at >= 0).all(1)
    return ~there & (spent >= np.min(spent[there], initial=np.inf))


def course(
    protocol: Protocol,
    target: float,
    images: Images,
    build: lanes.Build,
    points: Sequence[Point],
    seeds: Sequence[int],
    limit: int,
    examples: int = EXAMPLES,
    advance: Callable[[float], None] = lambda share: None,
) -> Course:
    """Train until every point is at the target on all seeds, or is beaten, or the limit is reached.

    Args:
      protocol: how.
      target: test accuracy.
      images: what is learned.
      build: from the values of a point and a key to the optimiser.
      points: values of the hyper-parameters.
      seeds: of weights, order and noise.
      limit: tests until a run counts as a miss.
      examples: between two tests.
      advance: told the share of the limit that has just been done.
    """
    shown = [protocol.prepare(images, seed) for seed in seeds]
    updates = max(examples // protocol.batch, 1)
    streams = [batches(own, seed, updates, protocol.batch) for own, seed in zip(shown, seeds, strict=True)]
    sizes = (images.train_inputs.shape[1], *protocol.hidden, 10)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    start = jax.jit(jax.vmap(lambda key: protocol.draw(key, sizes)))(keys)
    tests = [
        jnp.asarray(np.stack([getattr(own, part) for own in shown]))
        for part in ("test_inputs", "test_labels")
    ]
    values = lanes.values_of(points)
    params, state, axes = lanes.start(build, values, start, keys, in_turn=True)
    learn_all = lanes.mapped(learner_of(protocol.outputs, protocol.loss), build, axes, in_turn=True)
    found: list[np.ndarray] = []
    total = np.zeros((len(points), len(seeds), 4))
    while True:
        inputs, labels = (jnp.asarray(np.stack(part)) for part in zip(*map(next, streams), strict=True))
        params, state, (costs, now) = learn_all(values, params, state, (inputs, labels, start, *tests))
        total = total + np.asarray(costs, np.float64).sum(2)
        moved, maintenance, changed, path = np.moveaxis(total, -1, 0)
        accuracy, pending, distance = np.moveaxis(np.asarray(now, np.float64), -1, 0)
        found.append(
            np.stack([accuracy, moved + maintenance + pending, maintenance, changed, path, distance])
        )
        so_far = Course(*np.stack(found, axis=-1))
        advance(1 / limit)
        settled = (arrived(so_far, target) >= 0).all(1) | hopeless(so_far, target)
        if settled.all() or len(found) == limit:
            return so_far


@functools.lru_cache(maxsize=4)
def learner_of(outputs: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same :func:`learner` for the same network, so that a round of trials is compiled once."""
    return learner(outputs, loss)


def results(course: Course, target: float, examples: int = EXAMPLES) -> list[dict[str, Any]]:
    """Return what each point has cost up to its first test at the target, by seed; infinite for a miss."""
    at = arrived(course, target)

    def there(values: np.ndarray) -> np.ndarray:
        return np.where(at >= 0, np.take_along_axis(values, at[..., None], -1)[..., 0], np.inf)

    by_name = {name: there(values) for name, values in course._asdict().items() if name != "accuracy"}
    by_name["examples"] = np.where(at >= 0, (at + 1.0) * examples, np.inf)
    return [{name: values[n] for name, values in by_name.items()} for n in range(len(at))]
