"""A million steps of each phi on a noisy quadratic: what a run of three weeks does to its numbers.

    python -m tests.trust.long_runs                   # all that are not in the record yet
    python -m tests.trust.long_runs --steps 20000 --out /tmp/short.json

Each phi runs in float32 and in bfloat16. Beside each goes the same phi in float64, which is given the very
weights and gradients of the run, so that they differ in nothing but the rounding of what is kept. The bounds:

- ``E`` is finite and positive at every step; at the end every entry of state and weights is finite;
- a counter has counted every step, and none is negative;
- ``log E`` differs from that in float64 by at most ``tolerance``, for every weight at every step: nothing has
  stalled, drifted or been rounded away on the way there.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import riemann_optax as ro
from tests.contract.entries import with_phi
from tests.contract.problem import loss, params, readable, real_loss
from tests.contract.registry import ENTRIES

RESULTS = Path(__file__).parent / "results/long_runs.json"
STEPS, CHUNK = 1_000_000, 1_000
RATE, NOISE = 0.05, 1.0
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Phis that draw samples, here without what draws them: the run in float64 is given the same ones.
SAMPLED = {
    "phi.bayesian_gradient_descent": lambda: ro.phi.bayesian_gradient_descent(initial_deviation=3e-4),
    "phi.mesu": lambda: ro.phi.mesu(window=1.0),
}


def tolerance(name: str, dtype: str) -> float:
    """Return the bound of the difference from ``log E`` in float64."""
    state = jax.eval_shape(ENTRIES[name].build().init, params())[0].phi
    if name in SAMPLED or hasattr(state, "log_rate"):
        return 0.004  # the logarithm of a rate or a deviation is a sum of a million changes, each rounded
    # In bfloat16 a change of a weight may be rounded once before it is squared, to one part in 256.
    return {"float32": 0.001, "bfloat16": 0.004}[dtype]


def names() -> list[str]:
    """Return the entries of the phis."""
    return [name for name in ENTRIES if name.startswith("phi.")]


def noisy_gradients(weights: Any, noise: jax.Array) -> Any:
    """Return the gradients with noise added, in the dtype of the weights."""
    flat, unravel = ravel_pytree(jax.grad(real_loss)(weights))
    return unravel((flat + NOISE * noise).astype(flat.dtype))


def extra_args(name: str, weights: Any, previous: Any, state: Any, noise: jax.Array) -> dict[str, Any]:
    """Return the extra arguments of a phi; differences of gradients are of one batch."""
    if name in SAMPLED:
        places, drawn = ro.phi.draw_perturbations(state[0].phi, weights, samples=2)
        return {"perturbed_gradients": jax.vmap(jax.grad(real_loss))(places), "perturbations": drawn}
    if name == "phi.secant_curvature":
        return {"gradients_at_previous_params": noisy_gradients(previous, noise)}
    return ENTRIES[name].extra_args(loss)


def chunk_of(name: str) -> tuple[Any, Any]:
    """Return a compiled function that makes :data:`CHUNK` steps and tells what E was, and the optimiser.

    The metric is read from the state and gradient of the step; XLA finds that the update computes the same.
    """
    tx = (with_phi(SAMPLED[name]) if name in SAMPLED else ENTRIES[name]).make(RATE)

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)

    def log_metric(gradients: Any, state: Any, weights: Any, arguments: dict[str, Any]) -> jax.Array:
        metric = ro.metric_at(tx, gradients, state, weights, **arguments)
        return jnp.concatenate(
            [jnp.log(leaf.astype(jnp.float64)).ravel() for leaf in jax.tree.leaves(metric)]
        )

    def step(carry: Any, noise: jax.Array) -> Any:
        weights, previous, state, reference = carry
        gradients = noisy_gradients(weights, noise)
        arguments = extra_args(name, weights, previous, state, noise)
        logs = log_metric(gradients, state, weights, arguments)
        updates, state = tx.update(gradients, state, weights, **arguments)
        exact = wide(gradients), reference, wide(weights)
        fed = {key: value if callable(value) else wide(value) for key, value in arguments.items()}
        exact_logs = log_metric(*exact, fed)
        reference = tx.update(*exact, **fed)[1]
        told = {
            "least": logs.min(),
            "largest": logs.max(),
            "difference": jnp.abs(logs - exact_logs).max(),
        }
        return (optax.apply_updates(weights, updates), weights, state, reference), told

    @jax.jit
    def chunk(carry: Any, key: jax.Array) -> Any:
        return jax.lax.scan(step, carry, jax.random.normal(key, (CHUNK, 9), jnp.float32))

    return chunk, tx


def largest_entry(state: Any) -> float:
    """Return the largest absolute value of the state's numbers; NaN where one of them is."""
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return float(np.max([np.max(np.abs(np.asarray(leaf, np.complex128))) for leaf in floats], initial=0.0))


def counters(state: Any) -> list[int]:
    """Return the scalar integers of the state."""
    leaves = jax.tree.leaves(readable(state))
    return [int(leaf) for leaf in leaves if leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)]


def run(name: str, dtype: str, steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    """Make the steps; return the extremes of E, its distance to float64's, and what the state ends with."""
    start = time.monotonic()
    with jax.enable_x64(True):
        chunk, tx = chunk_of(name)
        weights = params(DTYPES[dtype])
        exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), weights)
        carry = weights, weights, tx.init(weights), tx.init(exact)
        chunks = []
        for key in jax.random.split(jax.random.key(seed), steps // CHUNK):
            carry, told = chunk(carry, key)
            chunks.append(jax.tree.map(np.asarray, told))
        told = {key: np.concatenate([one[key] for one in chunks]) for key in chunks[0]}
        return {
            "steps": len(told["least"]),
            "least": float(np.exp(told["least"].min())),
            "largest": float(np.exp(told["largest"].max())),
            "difference": float(told["difference"].max()),
            "largest_entry": largest_entry(carry[2]),
            "largest_weight": largest_entry(carry[0]),
            "counters": counters(carry[2]),
            "seconds": round(time.monotonic() - start, 1),
        }


def broken(name: str, dtype: str, one: dict[str, Any]) -> list[str]:
    """Return the bounds of the module's docstring that a run does not keep."""
    found = []
    numbers = [one[key] for key in ("least", "largest", "difference", "largest_entry", "largest_weight")]
    if not all(map(math.isfinite, numbers)) or one["least"] <= 0:
        found.append("E, the state or the weights are not finite and positive")
    if one["steps"] not in one["counters"] or min(one["counters"]) < 0:
        found.append("no counter has counted every step, or one is negative")
    if not one["difference"] <= tolerance(name, dtype):
        found.append(f"the difference from log E in float64 is {one['difference']:.3g}")
    return found


def main() -> None:
    """Run what the record lacks, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", nargs="+", metavar="PHI", help="entries of the contract suite")
    options = parser.parse_args()
    record = json.loads(options.out.read_text()) if options.out.exists() else {"phis": {}}
    record["versions"] = {"jax": jax.__version__, "optax": optax.__version__}
    for name in options.only or names():
        runs = record["phis"].setdefault(name, {})
        for dtype in DTYPES:
            if runs.get(dtype, {}).get("steps") != options.steps:
                runs[dtype] = run(name, dtype, options.steps)
                options.out.parent.mkdir(exist_ok=True)
                options.out.write_text(json.dumps(record, indent=1) + "\n")
            print(
                f"{name}, {dtype}: {'; '.join(broken(name, dtype, runs[dtype])) or 'within the bounds'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
