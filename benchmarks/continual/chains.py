"""Ours in one chain: a pull, the metric, and the renewal of units, in the forms that are compared."""

import jax
import optax

import riemann_optax as ro
from benchmarks.continual.methods import ACTIVITY, OTHERS, Scale, three_parts
from benchmarks.continual.network import Network
from benchmarks.continual.renewal import Renewal, Transformation, Values, with_resets
from benchmarks.shared.experiment import Method
from benchmarks.shared.tuning import Axis

# Of every stream; a part that a family of streams has no use for is left out.
ONE_CHAIN = "one chain: pull, metric, noise, renewal"
# The same chain, its units renewed by another rule.
DORMANT_CHAIN, SILENT_CHAIN = "one chain, dormant units renewed", "one chain, silent units renewed"
# And with a phi that forgets in 1,000 updates instead of 67.
LONG_CHAIN = "one chain, memory 0.999"
LONG_DORMANT_CHAIN, LONG_SILENT_CHAIN = f"{LONG_CHAIN}, dormant units", f"{LONG_CHAIN}, silent units"
# Pulled to isometries, behind the metric, and not to the initial weights.
ISOMETRIC_CHAIN, LONG_ISOMETRIC_CHAIN = "one chain, isometric", f"{LONG_CHAIN}, isometric"
ISOMETRIC_SILENT_CHAIN = f"{ISOMETRIC_CHAIN}, silent units"
# Controls of them: with a huge alpha the metric is RMSprop's, with one phi per array it has no direction.
INFINITE, SHARED = "alpha infinite", "leaf-mean phi"

LONG_ACTIVITY = ro.phi.activity(decay=OTHERS[0])


def one_chain(
    scale: Scale,
    network: Network,
    renewal: Renewal | None,
    phi: Transformation = ACTIVITY,
    **centres: Axis,
) -> Method:
    """Return the pull, the metric that sees it, idle noise, and the renewal of units where there is a rule.

    The renewal is outermost: it resets the metric's own state of a unit as well.
    """

    def make(values: Values, key: jax.Array) -> Transformation:
        parts = {name: value for name, value in values.items() if name != "pull"}
        chain = optax.chain(
            ro.add_anchored_weights(values["pull"], ro.anchor.initial_weights()),
            three_parts(phi, scale.alpha, parts, key),
        )
        return chain if renewal is None else with_resets(chain, renewal(values), network, key)

    return Method(make, "ours", centres)


def isometric_chain(
    scale: Scale, network: Network, renewal: Renewal, phi: Transformation = ACTIVITY, **centres: Axis
) -> Method:
    """Return the metric, behind it the pull to isometries as AdamO has it behind Adam, and the renewal."""

    def make(values: Values, key: jax.Array) -> Transformation:
        chain = optax.chain(
            ro.scale_by_metric(phi, scale.alpha),
            ro.add_isometry_pull(values["pull"]),
            optax.scale_by_learning_rate(values["rate"]),
        )
        return with_resets(chain, renewal(values), network, key)

    return Method(make, "ours", centres)
