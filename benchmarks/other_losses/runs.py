"""Training at all rates and on all seeds at once; the rate is chosen on seeds of its own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import riemann_optax as ro
from benchmarks.other_losses.problems import PROBLEMS, Problem
from benchmarks.shared.experiment import Size
from benchmarks.shared.records import Records
from benchmarks.shared.statistics import standard_error
from benchmarks.time_to_target.methods import Method, averaged


def _free(**settings: float) -> Method:
    make = functools.partial(ro.riemannian_schedule_free, warmup_steps=0, **settings)
    return averaged(make, ({},), evaluated=ro.eval_params)


# All with 5% of warm-up; those that do not average cool down along a cosine.
METHODS: dict[str, Method] = {
    "optax.adamw": Method(optax.adamw, ({},)),
    "ro.riemannian_adamw": Method(ro.riemannian_adamw, ({},)),
    "ro.riemannian_adamw, phi=activity(decay=0.999)": Method(
        functools.partial(ro.riemannian_adamw, phi=ro.phi.activity(decay=0.999)), ({},)
    ),
    "ro.riemannian_eigenbasis": Method(ro.riemannian_eigenbasis, ({},)),
    "ro.riemannian_eigenbasis, gradient_share=1.0": Method(
        functools.partial(ro.riemannian_eigenbasis, gradient_share=1.0), ({},)
    ),
    "optax schedule_free_adamw": averaged(optax.contrib.schedule_free_adamw, ({},)),
    "optax schedule_free_adamw, b1=0.5": averaged(
        functools.partial(optax.contrib.schedule_free_adamw, b1=0.5), ({},)
    ),
    "ro.riemannian_schedule_free": _free(),
    "ro.riemannian_schedule_free, b1=0.5": _free(b1=0.5),
}
EXPONENTS = range(-12, -1)  # of the rates, powers of 2
FULL = Size({}, tuning_seeds=range(3), seeds=range(10, 20))
QUICK = Size({"steps": 5}, tuning_seeds=range(1), seeds=range(10, 12))


class Row(NamedTuple):
    """A method on a problem.

    Attributes:
      rate: that the tuning seeds choose.
      means: of each measure over the fresh seeds; infinite where a run diverged.
      errors: their standard errors.
    """

    rate: float
    means: dict[str, float]
    errors: dict[str, float]


def run(
    problem: Problem, method: Method, steps: int, rates: Sequence[float], seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Return what is measured at the end, by rate and seed."""

    def train(rate: jax.Array, seed: jax.Array) -> dict[str, jax.Array]:
        first, last, learning = jax.random.split(jax.random.key(seed), 3)
        params, rest = problem.init(first)
        tx = optax.with_extra_args_support(method.make(method.schedule(rate, steps)))

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, rest, state = carry
            gradients, rest = problem.gradients(params, rest, key)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), rest, state), None

        begin = (params, rest, tx.init(params))
        (params, rest, state), _ = jax.lax.scan(step, begin, jax.random.split(learning, steps))
        return problem.measures(method.evaluated(state, params), rest, last)

    at_all = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))
    found = at_all(jnp.asarray(rates, jnp.float32), jnp.asarray(seeds))
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def row(
    records: Records,
    problem_name: str,
    name: str,
    size: Size = FULL,
    announce: Callable[[str], None] = lambda text: None,
) -> Row:
    """Return what the runs of a method come to; what is not recorded is announced, and made."""
    problem = PROBLEMS[problem_name]
    steps, tuning = size.length.get("steps", problem.steps), list(size.tuning_seeds)
    seeds = [*tuning, *size.seeds]
    key = {
        "problem": problem_name,
        "method": name,
        "steps": steps,
        "exponents": list(EXPONENTS),
        "seeds": seeds,
    }

    def make() -> dict[str, Any]:
        announce(f"{problem_name}: {name}")
        return dict(run(problem, METHODS[name], steps, [2.0**k for k in EXPONENTS], seeds))

    diverged = -np.inf if problem.higher else np.inf
    found = {
        measure: np.nan_to_num(np.array(values, float), nan=diverged)
        for measure, values in records.get(key, make).items()
    }
    tuned = next(iter(found.values()))[:, : len(tuning)].mean(1)
    chosen = int(tuned.argmax() if problem.higher else tuned.argmin())
    fresh = {measure: values[chosen, len(tuning) :] for measure, values in found.items()}
    return Row(
        2.0 ** EXPONENTS[chosen],
        {measure: float(values.mean()) for measure, values in fresh.items()},
        {measure: standard_error(values) for measure, values in fresh.items()},
    )
