"""Controls of the one-sided form: which part of its gain is the metric's, and which its liberties'.

They run with ``--only`` at every size. The gain is the validation loss of Nesterov momentum, with a rate of
its own, less the form's. A control takes something away from the form, and keeps a part of the gain.
"""

from collections.abc import Sequence

import numpy as np
import optax
from rich.table import Table

import riemann_optax as ro
from benchmarks.eigenbasis.forms import DECAY, ONE_SIDED, Form, Row, ours
from benchmarks.shared import terminal

BASE = "re-tuned base: Nesterov"
# A steady step of the base is so many rates times the gradient, so that its best rate is near the others'.
UNIT = 32.0
B1, B2, SHARE = 0.9, 0.97, 0.3  # the form's own


def _phi() -> optax.GradientTransformation:
    return ro.phi.activity(decay=B2, state_dtype="bfloat16")


def _base(schedule: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(B1, nesterov=True),
        optax.scale(UNIT * (1 - B1)),
        optax.add_decayed_weights(DECAY),
        optax.scale_by_learning_rate(schedule),
    )


def norm_matched(over: str) -> Form:
    """Return the base's direction at the step length of the form, as one norm or one per leaf."""

    def make(schedule: optax.ScalarOrSchedule, **more: int) -> optax.GradientTransformation:
        reference = ro.riemannian_eigenbasis(1.0, weight_decay=0.0, **more)
        return optax.chain(
            ro.norm_matched_base(optax.sgd(1.0, B1, nesterov=True), reference, over=over),
            optax.scale(-1.0),  # both descend already
            optax.add_decayed_weights(DECAY),
            optax.scale_by_learning_rate(schedule),
        )

    return Form(make, "update_every")


CONTROLS = {
    BASE: Form(_base),
    "permuted phi in the basis": ours(phi=ro.phi.permuted(_phi()), gradient_share=SHARE),
    "leaf-mean phi in the basis": ours(phi=ro.phi.leaf_mean(_phi()), gradient_share=SHARE),
    "norm-matched base": norm_matched("tree"),
    "norm-matched base, by leaf": norm_matched("leaf"),
    "twin: alpha infinite": ours(alpha=1e8),
}
# Forms of the comparison that share the liberties of the one-sided form: each lacks one thing that it has.
TWINS = ("no basis", f"{ONE_SIDED}, no Nesterov", "SOAP, one-sided, Nesterov", "twin: alpha infinite")


def kept(rows: Sequence[Row]) -> dict[str, float]:
    """Return by control which share of the gain it keeps; empty where base or form are missing.

    Below 0 it is worse than the base; not a number where there is no gain.
    """
    loss = {row.name: float(np.mean(row.values())) for row in rows}
    if not {BASE, ONE_SIDED} <= loss.keys():
        return {}
    gain = loss[BASE] - loss[ONE_SIDED]
    shown = [name for name in (*CONTROLS, *TWINS) if name in loss and name != BASE]
    return {name: (loss[BASE] - loss[name]) / gain if gain > 0 else np.nan for name in shown}


def table(shares: dict[str, float]) -> Table:
    """Lay out the shares."""
    cells = [[name, "no gain" if np.isnan(share) else f"{share:.0%}"] for name, share in shares.items()]
    shown = terminal.table(f"What keeps how much of the gain of {ONE_SIDED}", ["control", "kept"], cells)
    shown.caption = f"The gain: validation loss of {BASE}, less the form's. Each has its own best rate."
    return shown
