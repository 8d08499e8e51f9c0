"""What E is on the units that would die: ``python -m benchmarks.continual.dying``.

Plain descent and the metric with the pull learn the label-permuted digits from the same initial weights, on
the same batches, each at the point that its tuning chose. At the end of every task a hidden unit of plain
descent is dead, dying (dead at the end of the next task) or neither; E is the mean over its incoming weights,
along the path of plain descent, where it changes nothing, and along the path of the metric for the same unit.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.continual import online
from benchmarks.continual.images import Images, digits
from benchmarks.continual.measures import PROBE
from benchmarks.continual.methods import ACTIVITY
from benchmarks.continual.streams import STREAMS, quick
from benchmarks.shared.command import RESULTS, parse_with_folder
from benchmarks.shared.records import Records, write_record
from benchmarks.shared.statistics import standard_error
from benchmarks.shared.tuning import Point

STREAM, PLAIN, METRIC = "label_permuted_digits", "SGD", "metric + pull"
FILE = "dying_units.json"
GROUPS = ("dead", "dying", "others")


def follow(
    method: str, point: Point, seeds: Sequence[int], images: Images, draw: online.DrawTask, tasks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Learn all tasks; return, at the end of each, which hidden units are dead and their E.

    Returns:
      Two arrays of shape (seeds, tasks, hidden units): whether a unit is 0 on all images of the task, and the
      mean over its incoming weights of ``E = 1 + alpha * phi``, with phi as its gradients make it.
    """
    tx = online.METHODS[method].make(point, jax.random.key(0))
    layers = (images.inputs.shape[1], *online.HIDDEN, images.classes)
    rows = jnp.asarray(images.inputs)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0))
    def learn(lane: Any, task: online.Task) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        inputs, labels = rows[task.rows][..., task.pixels], task.labels[task.rows]

        def step(lane: Any, batch: Any) -> tuple[Any, Any]:
            params, state, seen, _ = lane
            gradients = jax.grad(online.loss, has_aux=True)(params, *batch)[0]
            phi, seen = ACTIVITY.update(gradients, seen, params)
            updates, state = tx.update(gradients, state, params)
            return (jax.tree.map(jnp.add, params, updates), state, seen, phi), None

        lane, _ = jax.lax.scan(step, lane, (inputs, labels))
        params, _, _, phi = lane
        probe = inputs.reshape(-1, inputs.shape[-1])[:PROBE], labels.reshape(-1)[:PROBE]
        hidden = online.loss(params, *probe)[1][1]
        dead = jnp.concatenate([(layer == 0).all(0) for layer in hidden])
        incoming = jnp.concatenate([layer["kernel"].mean(0) for layer in phi[:-1]])
        return lane, (dead, 1 + online.SCALE.alpha * incoming)

    def start(seed: jax.Array) -> Any:
        params, _ = online.begin(seed, layers)
        return params, tx.init(params), ACTIVITY.init(params), jax.tree.map(jnp.zeros_like, params)

    every = jnp.asarray(seeds)
    draw_all = jax.jit(jax.vmap(functools.partial(draw, images), (0, None)))
    lane, found = jax.jit(jax.vmap(start))(every), []
    for number in range(tasks):
        lane, measured = learn(lane, draw_all(every, number))
        found.append([np.asarray(part) for part in measured])
    dead, metric = (np.stack(parts, axis=1) for parts in zip(*found, strict=True))
    return dead, metric


def groups(dead: np.ndarray) -> dict[str, np.ndarray]:
    """Return which units are in which group, at the end of all tasks but the last; (..., tasks, units)."""
    now, then = dead[..., :-1, :], dead[..., 1:, :]
    return {"dead": now, "dying": ~now & then, "others": ~now & ~then}


def summed_up(values: np.ndarray, chosen: np.ndarray) -> dict[str, float | int]:
    """Return mean and standard error over the seeds that have chosen units of the mean over these."""
    means = np.array([v[c].mean() for v, c in zip(values, chosen, strict=True) if c.any()], np.float64)
    return {
        "mean": float(means.mean()) if len(means) else np.nan,
        "standard_error": standard_error(means),
        "seeds": len(means),
    }


def compare(dead: np.ndarray, plain: np.ndarray, dead_too: np.ndarray, metric: np.ndarray) -> dict[str, Any]:
    """Return, for each group of units of plain descent, E along both paths and how many the metric has dead.

    Args:
      dead: of plain descent, shape (seeds, tasks, units).
      plain: E along its path.
      dead_too: of the metric.
      metric: E along the metric's path.
    """
    result = {}
    for name, chosen in groups(dead).items():
        result[name] = {
            "share": float(chosen.mean()),
            "along plain descent": summed_up(plain[:, :-1], chosen),
            "along the metric": summed_up(metric[:, :-1], chosen),
            "dead under the metric": summed_up(dead_too[:, :-1], chosen),
        }
    return result


def chosen_point(records: Records, method: str) -> Point:
    """Return the point of the run on fresh seeds."""
    wanted = {"stream": STREAM, "method": method, "phase": "fresh", "data": "digits"}
    found = [e["key"]["point"] for e in records if all(e["key"].get(n) == v for n, v in wanted.items())]
    if not found:
        raise SystemExit(f"no fresh run of {method}: run python -m benchmarks.continual --streams {STREAM}")
    return found[-1]


def main(arguments: list[str]) -> None:
    """Follow both, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.continual.dying", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of {FILE}")
    parser.add_argument("--quick", action="store_true", help="a few steps, which show nothing")
    options = parse_with_folder(parser, arguments, ["quick"])
    stream = quick(STREAMS[STREAM]) if options.quick else STREAMS[STREAM]
    length, seeds = dict(stream.size.length), stream.size.seeds
    tasks = length.pop("blocks")
    records = Records(RESULTS / "continual.jsonl")
    points = {method: chosen_point(records, method) for method in (PLAIN, METRIC)}
    paths = [
        follow(method, point, seeds, digits(), online.drawing(**length), tasks)
        for method, point in points.items()
    ]
    content = {
        "stream": STREAM,
        "points": points,
        "seeds": [seeds[0], seeds[-1] + 1],
        "size": dict(stream.size.length),
        "groups": compare(*paths[0], *paths[1]),
    }
    command = ["python", "-m", "benchmarks.continual.dying", *(["--quick"] if options.quick else [])]
    write_record(options.out / FILE, command, content)
    for name, group in content["groups"].items():
        print(name, group)


if __name__ == "__main__":
    main(sys.argv[1:])
