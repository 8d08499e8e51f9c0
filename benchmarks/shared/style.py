"""The style of all pictures, that of :mod:`riemann_optax.plot`, and the colours of methods that recur."""

from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # a file, without a screen

from riemann_optax.plot import STYLE

# Okabe and Ito's. The metric has the same colour in every picture, and so have its most frequent peers.
METRIC, ADAMW, ADAM, SGD = "#d55e00", "#0072b2", "#009e73", "0.35"
# A point on a map, of the start or of the minimum.
LANDMARK = {"color": "white", "markeredgecolor": "black", "zorder": 20}


def styled() -> Any:
    """Return the context, which is a decorator too, in which pictures are drawn."""
    return mpl.rc_context(dict(STYLE))
