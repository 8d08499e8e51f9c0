"""Which phi to try: questions, and for each phi what it needs and what it costs. One table, as data."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax.examples.train.phis import PHIS, Phi, find
from riemann_optax.testing._needs import made

# A question that somebody has, and the phis that answer it, the first to be tried first.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "I want a drop-in for AdamW": ("factored_activity", "activity", "per_neuron"),
    "my memory is tight": ("momentum_activity", "factored_activity"),
    "my gradients are noisy": ("surprise", "bayesian_synapse", "autostep"),
    "one axis is steep": (
        *("secant_curvature", "gauss_newton_curvature", "hutchinson_curvature", "factored_activity"),
    ),
    "tasks arrive one after another": (
        *("online_ewc", "synaptic_intelligence", "rwalk", "memory_aware_synapses", "laplace"),
        *("metaplasticity", "presynaptic_release", "utility_gate"),
    ),
    "tasks change and nobody says when": ("mesu", "bayesian_gradient_descent"),
    "each input has a relevance of its own": ("idbd", "autostep"),
    "features come up rarely": ("accumulated_activity",),
    "my weights are binary or few bits": ("metaplasticity",),
    "I count energy": (
        *("sparse_change", "plasticity_and_energy", "maintenance_energy", "modification_energy"),
    ),
    "neurons regulate themselves": ("sliding_threshold", "per_neuron"),
    "weights grow in proportion": ("multiplicative_geometry",),
    "is it the metric at all (controls)": ("permuted_activity", "leaf_mean_activity"),
}

# What it costs to make an extra argument, in gradients of the batch, beside the gradient itself.
COSTS: dict[str, str] = {
    "obj_fn": "a Hessian product, 2 gradients",
    "outputs_fn": "a Gauss-Newton product, 2 gradients",
    "per_example_gradients": "1 gradient, and memory for one per example",
    "output_norm_gradients": "1 gradient, and memory for one per example",
    "perturbed_gradients": "10 gradients in the place of one",
    "gradients_at_previous_params": "1 gradient",
    "inputs": "the forward pass it shares with the gradient",
    "activities": "the forward pass it shares with the gradient",
    "task_boundary": "nothing; here an epoch is a task",
}

OTHERS = "others"

# What was measured of each phi: written by python -m benchmarks.report --tables, from the records.
TABLE = Path(__file__).with_name("chooser.json")


class Entry(NamedTuple):
    """A row of the table.

    Attributes:
      question: that somebody has.
      name: of a phi that answers it.
      summary: what it is, in one line.
      reads: what it reads beside the gradient, and what making that costs.
      state: values of state per weight.
      time: of a training step over AdamW's, or None where it has not been measured.
      seen: what it was seen to do in the report of the benchmarks; empty where they do not have it.
    """

    question: str
    name: str
    summary: str
    reads: str
    state: float
    time: float | None
    seen: str


def questions(phis: Mapping[str, Phi] = PHIS) -> dict[str, tuple[str, ...]]:
    """Return the names of the phis by question; a phi that no question names is among the others.

    Examples:
      >>> questions()["weights grow in proportion"]
      ('multiplicative_geometry',)
    """
    known = {name for names in QUESTIONS.values() for name in names}
    others = tuple(name for name in phis if name not in known)
    by_question = {
        question: tuple(name for name in names if name in phis) for question, names in QUESTIONS.items()
    }
    return {question: names for question, names in {**by_question, OTHERS: others}.items() if names}


@functools.cache
def state_per_weight(name: str) -> float:
    """Return the values of state that a phi keeps for each weight of a 64 x 64 matrix.

    Examples:
      >>> state_per_weight("activity"), state_per_weight("secant_curvature")
      (1.0, 4.0)
    """
    return _state_per_weight(find(name))


def _state_per_weight(phi: Phi) -> float:
    kept = jax.tree.leaves(jax.eval_shape(phi.factory().init, jnp.zeros([64, 64])))
    return round(sum(int(np.prod(leaf.shape)) for leaf in kept if leaf.ndim) / 64**2, 2)


def costs(phi: Phi) -> str:
    """Return what a phi reads beside the gradient, and what making it costs.

    Examples:
      >>> costs(find("activity")), costs(find("maintenance_energy"))
      ('nothing but the gradient', 'the weights')
      >>> costs(find("secant_curvature"))
      'gradients_at_previous_params: 1 gradient; the weights'
    """
    transformation = phi.factory()
    reads = [f"{need}: {COSTS[need]}" for need in getattr(transformation, "needs", ()) if need in COSTS]
    if _reads_weights(transformation):
        reads.append("the weights")
    return "; ".join(reads) or "nothing but the gradient"


def _reads_weights(phi: optax.GradientTransformation) -> bool:
    """Whether an update does not run without the weights."""
    weights = jnp.ones([4, 4])
    extra = made(getattr(phi, "needs", ()), weights, weights, jnp.asarray(False))
    update = optax.with_extra_args_support(phi).update
    try:
        jax.eval_shape(lambda gradients: update(gradients, phi.init(gradients), **extra), weights)
    except Exception:  # whatever a phi of one's own raises without them
        return True
    return False


@functools.cache
def packaged() -> dict[str, Any]:
    """Return what was measured: model and batch size of the steps that were timed, and a row for each phi.

    Examples:
      >>> packaged()["model"], packaged()["batch_size"]
      ('convnet', 32)
    """
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


def entries(phis: Mapping[str, Phi] = PHIS) -> list[Entry]:
    """Return the whole table: a row for each question and phi that answers it."""
    measured = packaged()["phis"]
    return [
        Entry(
            question,
            name,
            phis[name].summary,
            costs(phis[name]),
            _state_per_weight(phis[name]),
            measured.get(name, {}).get("ratio"),
            measured.get(name, {}).get("seen", ""),
        )
        for question, names in questions(phis).items()
        for name in names
    ]


def as_text(phis: Mapping[str, Phi] = PHIS) -> str:
    """Return the table for a terminal."""
    width, lines, asked = max(map(len, phis)), [], ""
    for entry in entries(phis):
        if entry.question != asked:
            asked = entry.question
            lines.append(f"{asked}:")
        lines.append(f"  {entry.name:{width}}  {entry.summary}")
        time = "" if entry.time is None else f"; a step takes {entry.time:.2f} times AdamW's"
        state = f"{entry.state:g} values of state per weight"
        lines.append(f"  {'':{width}}  reads {entry.reads}; {state}{time}")
        if entry.seen:
            lines.append(f"  {'':{width}}  seen: {entry.seen}")
    where = f"a {packaged()['model']} with batches of {packaged()['batch_size']}"
    lines.append(f"Steps were timed on a CPU, on {where}. A phi without a line 'seen' is not in the report.")
    return "\n".join(lines)
