"""The same optimisers with a higher rate for tables: how much of a difference is that of the embedding."""

from typing import Any

import jax
import optax

from benchmarks.eigenbasis.form import Form
from benchmarks.eigenbasis.forms import ADAMW, FORMS, MUON, ONE_SIDED

TIMES = 8  # the rate of all others


def with_faster_tables(form: Form) -> Form:
    """Return a form whose tables of tokens and positions move ``TIMES`` as far, decay included."""

    def faster(path: Any, update: jax.Array) -> jax.Array:
        return TIMES * update if "embedding" in jax.tree_util.keystr(path) else update

    def make(schedule: optax.Schedule, **more: Any) -> optax.GradientTransformation:
        scale = optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(faster, updates))
        return optax.chain(form.make(schedule, **more), scale)

    return Form(make, form.every)


TABLES = {
    f"{name}, tables {TIMES} times the rate": with_faster_tables(FORMS[name])
    for name in (ADAMW, "NAdamW", MUON, "SOAP, Nesterov", "no basis", ONE_SIDED)
}
