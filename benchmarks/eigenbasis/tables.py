"""The same optimisers with a higher rate for tables: how much of a difference is that of the embedding."""

from typing import Any

import jax
import optax

import riemann_optax as ro
from benchmarks.eigenbasis.form import Form
from benchmarks.eigenbasis.forms import ADAMW, FORMS, MUON, ONE_SIDED

TIMES = 8  # the rate of all others
TIMES_AT_19_MILLION = 4  # where 8 times is too much


def with_faster_tables(form: Form, times: int) -> Form:
    """Return a form whose tables of tokens and positions move ``times`` as far, decay included."""

    def tables(params: Any) -> Any:
        return jax.tree.map(lambda kind: kind == "embedding", ro.parameter_kinds(params))

    def make(schedule: optax.Schedule, **more: Any) -> optax.GradientTransformation:
        return optax.chain(form.make(schedule, **more), optax.masked(optax.scale(times), tables))

    return Form(make, form.every)


TABLES = {
    f"{name}, tables {times} times the rate": with_faster_tables(FORMS[name], times)
    for times, names in {
        TIMES: (ADAMW, "NAdamW", MUON, "SOAP, Nesterov", "no basis", ONE_SIDED),
        TIMES_AT_19_MILLION: (ADAMW, MUON, ONE_SIDED),
    }.items()
    for name in names
}
