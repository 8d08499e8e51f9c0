"""Training one network at all rates and on all seeds at once, under one disturbance."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import riemann_optax as ro
from benchmarks.energy.protocols import PROTOCOLS, Images, Params, layers, load
from benchmarks.robustness.disturbances import CALM, Conditions
from benchmarks.shared.experiment import Size
from benchmarks.shared.records import Records
from benchmarks.time_to_target.methods import Method, averaged

ADAMW, NADAMW, FREE_ADAMW = "optax.adamw", "optax.nadamw", "optax schedule_free_adamw"
DROP_IN, FREE = "ro.riemannian_adamw", "ro.riemannian_schedule_free"
METHODS: dict[str, Method] = {
    ADAMW: Method(optax.adamw, ({},)),
    NADAMW: Method(optax.nadamw, ({},)),
    FREE_ADAMW: averaged(optax.contrib.schedule_free_adamw, ({},)),
    DROP_IN: Method(ro.riemannian_adamw, ({},), "ours"),
    FREE: averaged(
        functools.partial(ro.riemannian_schedule_free, warmup_steps=0), ({},), "ours", ro.eval_params
    ),
}
OURS = (DROP_IN, FREE)
EXPONENTS = range(-11, 0)  # of the rates, powers of 2
HIDDEN = (64, 64)
FULL = Size({}, tuning_seeds=range(2), seeds=range(10, 20))
QUICK = Size({"steps": 20}, tuning_seeds=range(1), seeds=range(10, 12))


@functools.cache
def images() -> Images:
    """Return scikit-learn's digits."""
    return load("digits")


def draw(key: jax.Array, dtype: str) -> Params:
    """Return the first weights of a perceptron of rectifiers."""
    return optax.tree.cast(PROTOCOLS["modern"].draw(key, (64, *HIDDEN, 10)), dtype)


def loss(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, in nats; it is float32 whatever the weights are."""
    outputs = layers(params, inputs.astype(params[0]["kernel"].dtype), jax.nn.relu)
    return optax.softmax_cross_entropy_with_integer_labels(outputs.astype(jnp.float32), labels).mean()


def makes(name: str, conditions: Conditions) -> bool:
    """Return whether an optimiser has the hyper-parameters that the conditions set."""
    return "alpha" not in conditions.options or name in OURS


@functools.cache
def _trainer(name: str, conditions: Conditions) -> Callable[..., jax.Array]:
    """Return the run of one lane; what differs only in numbers is compiled once."""
    method = METHODS[name]
    learned, right, held_out, held_out_labels = map(jnp.asarray, images())

    def train(rate: jax.Array, wrong_labels: jax.Array, shock: jax.Array, seed: jax.Array) -> jax.Array:
        weights_key, batch_key, label_key, share_key = jax.random.split(jax.random.key(seed), 4)
        random = jax.random.randint(label_key, right.shape, 0, 10)
        answers = jnp.where(jax.random.uniform(share_key, right.shape) < wrong_labels, random, right)
        tx = optax.with_extra_args_support(
            method.make(method.schedule(rate, conditions.planned), **conditions.options)
        )
        params = draw(weights_key, conditions.dtype)

        def step(carry: Any, count: jax.Array) -> tuple[Any, None]:
            params, state = carry
            chosen = jax.random.randint(
                jax.random.fold_in(batch_key, count), (conditions.batch,), 0, len(answers)
            )
            factor = jnp.where(count == conditions.steps // 2, shock, 1.0)
            gradients = jax.grad(loss)(params, factor * learned[chosen], answers[chosen])
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(conditions.steps))
        return loss(method.evaluated(state, params), held_out, held_out_labels)

    over_seeds = jax.vmap(train, (None, None, None, 0))
    return jax.jit(jax.vmap(over_seeds, (0, None, None, None)))


class Laboratory:
    """The runs of all optimisers under all conditions."""

    def __init__(
        self, records: Records, size: Size = FULL, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        """``progress`` is told what is run next."""
        self._records, self._size, self._progress = records, size, progress

    def losses(self, name: str, conditions: Conditions) -> tuple[np.ndarray, np.ndarray]:
        """Return the held-out losses at the end, (rates, seeds), on the tuning seeds and on fresh ones."""
        shorter = self._size.length.get("steps", CALM.steps) / CALM.steps
        conditions = conditions._replace(
            steps=round(shorter * conditions.steps), planned=round(shorter * conditions.planned)
        )
        tuning = list(self._size.tuning_seeds)
        seeds = [*tuning, *self._size.seeds]
        key = {
            "optimizer": name,
            "conditions": conditions._asdict(),
            "exponents": list(EXPONENTS),
            "seeds": seeds,
        }

        def make() -> dict[str, Any]:
            changed = {n: v for n, v in conditions._asdict().items() if v != getattr(CALM, n)}
            self._progress(f"{name}, {changed or 'undisturbed'}")
            return {"loss": run(name, conditions, [2.0**k for k in EXPONENTS], seeds)}

        found = np.array(self._records.get(key, make)["loss"], float)  # None, which did not stay finite: NaN
        found = np.where(np.isfinite(found), found, np.inf)
        return found[:, : len(tuning)], found[:, len(tuning) :]


def run(name: str, conditions: Conditions, rates: Sequence[float], seeds: Sequence[int]) -> np.ndarray:
    """Return the held-out loss at the end, by rate and seed."""
    compiled = _trainer(name, conditions._replace(wrong_labels=0.0, shock=1.0))
    numbers = map(jnp.float32, (conditions.wrong_labels, conditions.shock))
    return np.asarray(compiled(jnp.asarray(rates), *numbers, jnp.asarray(seeds)))
