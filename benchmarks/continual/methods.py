"""Who takes part in the online streams: ours and its controls, plain optimisers, published rules on them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

import riemann_optax as ro
from benchmarks.continual.network import (
    Network,
    from_the_second_task_on,
    on_layers,
    permuted_once,
)
from benchmarks.continual.peers import penalties
from benchmarks.continual.peers.continual_backprop import continual_backprop
from benchmarks.continual.peers.shrink_and_perturb import shrink_and_perturb
from benchmarks.continual.peers.utility_gate import utility_based_descent
from benchmarks.continual.renewal import (
    MATURITY,
    Renewal,
    Transformation,
    Values,
    dormant,
    silent,
    with_resets,
)
from benchmarks.shared.experiment import Method, Role
from benchmarks.shared.tuning import Axis

DECAY = 0.985  # of the mean square, for the metric and for RMSprop
OTHERS = (0.999, 0.9)  # memories of RMSprop in the strongest published combination, beside DECAY
OURS, BASE = "metric + pull + noise", "SGD"
# The strongest published combination, with each of the memories.
SHAKEN = (
    "RMSprop + shrink and perturb",
    *(f"RMSprop, decay {decay} + shrink and perturb" for decay in OTHERS),
)

OfRate = Callable[[jax.Array], Transformation]

BASES: dict[str, OfRate] = {
    "SGD": optax.sgd,
    "RMSprop": lambda rate: optax.rmsprop(rate, decay=DECAY),
    "Adam": optax.adam,
}
ACTIVITY = ro.phi.activity(decay=DECAY)


class Scale(NamedTuple):
    """Where the grids of a stream are.

    Attributes:
      alpha: of the metric ``E = 1 + alpha * sqrt(v)``.
      metric: learning rate under it.
      pull, noise: between its stages.
      sgd, rmsprop, adam: learning rates.
      l2: strength of a penalty of the loss.
      share: of each weight that is taken away or pulled back per step, outside of the loss.
      shake: noise per step without a metric.
      gradient_noise: that of utility-based descent, in units of the gradient.
    """

    alpha: float
    metric: float
    pull: float
    noise: float
    sgd: float
    rmsprop: float
    adam: float
    l2: float
    share: float
    shake: float
    gradient_noise: float

    def rate_of(self, base: str) -> dict[str, Axis]:
        """Return the axis of the learning rate of a plain optimiser."""
        return {"rate": Axis({"SGD": self.sgd, "RMSprop": self.rmsprop, "Adam": self.adam}[base])}

    def three(self, rate: float, *parts: str) -> dict[str, Axis]:
        """Return the axes of the rate and of some parts of ours, both by default."""
        centres = {"pull": self.pull, "noise": self.noise}
        return {"rate": Axis(rate)} | {part: Axis(centres[part]) for part in parts or centres}


def three_parts(phi: Transformation, alpha: float, values: Values, key: jax.Array) -> Transformation:
    """Chain metric, pull to the initial weights and idle noise; what has no value is left out.

    Pull and noise stand between the stages, so that they are divided by ``E`` and its root: they act on the
    idle weights.
    """
    stages = [ro.compute_metric(phi, alpha)]
    if "pull" in values:
        stages.append(ro.add_anchored_weights(values["pull"], ro.anchor.initial_weights()))
    if "noise" in values:
        stages.append(ro.add_idle_noise(values["rate"], values["noise"], key))
    return optax.chain(*stages, ro.scale_by_inverse_metric(), optax.scale_by_learning_rate(values["rate"]))


def with_phi(
    alpha: float, phi: Callable[[jax.Array], Transformation]
) -> Callable[[Values, jax.Array], Transformation]:
    """Return what makes :func:`three_parts` of a phi that may want a random key."""
    return lambda values, key: three_parts(phi(key), alpha, values, key)


def activity(key: jax.Array) -> Transformation:
    """Return the phi of ours."""
    return ACTIVITY


def leaf_mean(key: jax.Array) -> Transformation:
    """Return the mean phi for all weights of a leaf: the metric's size and memory without its direction."""
    return ro.phi.leaf_mean(ACTIVITY)


def bases(scale: Scale) -> dict[str, Method]:
    """Return the plain optimisers."""

    def plain(name: str) -> Method:
        return Method(lambda values, key: BASES[name](values["rate"]), "base", scale.rate_of(name))

    return {name: plain(name) for name in BASES}


def ours(scale: Scale) -> dict[str, Method]:
    """Return ours and its parts."""
    make = with_phi(scale.alpha, activity)
    return {
        OURS: Method(make, "ours", scale.three(scale.metric)),
        "metric + pull": Method(make, "ours", scale.three(scale.metric, "pull")),
    }


def ablation(scale: Scale) -> dict[str, Method]:
    """Return the subsets of the three parts that are neither in :func:`ours` nor in :func:`controls`."""
    make, mean, low = with_phi(scale.alpha, activity), with_phi(scale.alpha, leaf_mean), scale.metric / 8
    only_rate = {"rate": Axis(scale.metric)}
    return {
        "metric": Method(make, "ours", only_rate),
        "metric + noise": Method(make, "ours", scale.three(scale.metric, "noise")),
        "leaf-mean phi only": Method(mean, "control", {"rate": Axis(low)}),
        "leaf-mean phi + pull only": Method(mean, "control", scale.three(low, "pull")),
        "leaf-mean phi + noise only": Method(mean, "control", scale.three(low, "noise")),
    }


def norm_matched_gradient(scale: Scale) -> Callable[[Values, jax.Array], Transformation]:
    """Return what makes the pulled gradient with the step lengths of ours."""

    def make(values: Values, key: jax.Array) -> Transformation:
        without_noise = {name: value for name, value in values.items() if name != "noise"}
        return ro.norm_matched_base(
            three_parts(ACTIVITY, 0.0, without_noise, key), three_parts(ACTIVITY, scale.alpha, values, key)
        )

    return make


def nothing(values: Values, key: jax.Array) -> Transformation:
    """Build what leaves the weights as they are drawn."""
    return optax.with_extra_args_support(optax.set_to_zero())


def controls(scale: Scale) -> dict[str, Method]:
    """Return what takes from ours the part that is said to help."""

    def permuted(key: jax.Array) -> Transformation:
        return permuted_once(ACTIVITY, key)

    # A weight that has the phi of an idle one sees the whole rate: stable rates are those of plain descent.
    low = scale.three(scale.metric) | {"rate": Axis(scale.metric / 100, 8.0)}
    bare = {"rate": Axis(scale.sgd), "pull": Axis(scale.l2, 4.0), "noise": Axis(scale.shake, 3.0)}
    return {
        "permuted phi": Method(with_phi(scale.alpha, permuted), "control", low),
        "leaf-mean phi": Method(with_phi(scale.alpha, leaf_mean), "control", scale.three(scale.metric)),
        "re-tuned base: pull + noise": Method(with_phi(0.0, activity), "control", bare),
        "norm-matched gradient + pull": Method(norm_matched_gradient(scale), "control", {}, point_of=OURS),
        "untrained": Method(nothing, "control", {}),
    }


def shaken(scale: Scale, base: str, optimiser: OfRate | None = None) -> Method:
    """Return shrink and perturb behind an optimiser."""
    inner = optimiser or BASES[base]

    def make(values: Values, key: jax.Array) -> Transformation:
        return optax.chain(inner(values["rate"]), shrink_and_perturb(values["shrink"], values["noise"], key))

    axes = {"shrink": Axis(scale.share, 4.0), "noise": Axis(scale.shake, 3.0)}
    return Method(make, "peer", scale.rate_of(base) | axes)


def penalised(
    scale: Scale, base: str, penalty: Callable[[jax.Array], Transformation], optimiser: OfRate | None = None
) -> Method:
    """Return a penalty in front of an optimiser."""
    inner = optimiser or BASES[base]

    def make(values: Values, key: jax.Array) -> Transformation:
        return optax.chain(penalty(values["strength"]), inner(values["rate"]))

    return Method(make, "peer", scale.rate_of(base) | {"strength": Axis(scale.l2, 4.0)})


def renewed(scale: Scale, base: str, network: Network) -> Method:
    """Return continual backpropagation behind an optimiser."""

    def make(values: Values, key: jax.Array) -> Transformation:
        renewal = continual_backprop(values["replacement"], MATURITY, key, network.draw)
        return optax.chain(BASES[base](values["rate"]), on_layers(renewal, network))

    return Method(make, "peer", scale.rate_of(base) | {"replacement": Axis(1e-4, 10.0)})


def pulled_outside(values: Values, key: jax.Array) -> Transformation:
    """Build RMSprop with pull and noise outside of the metric, the same for every weight."""
    return optax.chain(
        BASES["RMSprop"](values["rate"]),
        # Behind the learning rate the sign is that of a descent step.
        optax.scale(-1.0),
        ro.add_anchored_weights(values["pull"], ro.anchor.initial_weights()),
        optax.scale(-1.0),
        optax.add_noise(values["noise"] ** 2, 0.0, key),
    )


def gated(values: Values, key: jax.Array) -> Transformation:
    """Build utility-based perturbed gradient descent."""
    return utility_based_descent(values["rate"], values["noise"], values["decay"], key)


def peers(scale: Scale, network: Network) -> dict[str, Method]:
    """Return the published rules, those on adaptive optimisers too."""
    peer: Role = "peer"
    outside = {"pull": Axis(scale.share, 4.0), "noise": Axis(scale.shake, 3.0)}
    utility = {"noise": Axis(scale.gradient_noise, 4.0), "decay": Axis(scale.l2, 4.0)}
    memories = [None, *(lambda rate, decay=decay: optax.rmsprop(rate, decay=decay) for decay in OTHERS)]
    return {
        **{name: shaken(scale, "RMSprop", memory) for name, memory in zip(SHAKEN, memories, strict=True)},
        "RMSprop + pull + noise outside": Method(pulled_outside, peer, scale.rate_of("RMSprop") | outside),
        "RMSprop + L2-Init": penalised(scale, "RMSprop", penalties.l2_init),
        f"RMSprop, decay {OTHERS[0]} + L2-Init": penalised(scale, "RMSprop", penalties.l2_init, memories[1]),
        "SGD + shrink and perturb": shaken(scale, "SGD"),
        "SGD + continual backprop": renewed(scale, "SGD", network),
        "UPGD": Method(gated, peer, scale.rate_of("SGD") | utility),
        "SGD + L2-Init": penalised(scale, "SGD", penalties.l2_init),
        "RMSprop + continual backprop": renewed(scale, "RMSprop", network),
        "Adam + continual backprop": renewed(scale, "Adam", network),
        "Adam + shrink and perturb": shaken(scale, "Adam"),
        "Adam + L2-Init": penalised(scale, "Adam", penalties.l2_init),
        "SGD + L2": penalised(scale, "SGD", penalties.l2),
        "RMSprop + L2": penalised(scale, "RMSprop", penalties.l2),
    }


def reset(scale: Scale, base: str, network: Network, renewal: Renewal, **axes: Axis) -> Method:
    """Return an optimiser whose hidden units are drawn anew by a rule, with all that it keeps of them."""

    def make(values: Values, key: jax.Array) -> Transformation:
        return with_resets(BASES[base](values["rate"]), renewal(values), network, key)

    return Method(make, "peer", scale.rate_of(base) | axes)


def softly_reset(scale: Scale, base: str, network: Network) -> Method:
    """Return soft resets round an optimiser, with a share of each layer's kernel and bias of its own."""

    def make(values: Values, key: jax.Array) -> Transformation:
        return on_layers(ro.soft_resets(BASES[base](values["rate"]), values["leak"], key=key), network)

    return Method(make, "peer", scale.rate_of(base) | {"leak": Axis(1e-2, 4.0)})


def spectral(scale: Scale, base: str, network: Network) -> Method:
    """Return the pull of the largest singular values to 1 in front of an optimiser."""

    def make(values: Values, key: jax.Array) -> Transformation:
        chain = optax.chain(ro.add_spectral_pull(values["strength"]), BASES[base](values["rate"]))
        return on_layers(chain, network)

    return Method(make, "peer", scale.rate_of(base) | {"strength": Axis(scale.l2, 4.0)})


def isometric(scale: Scale, network: Network) -> Method:
    """Return AdamO: Adam, and outside of it the pull to isometries."""

    def make(values: Values, key: jax.Array) -> Transformation:
        chain = optax.chain(
            optax.scale_by_adam(),
            ro.add_isometry_pull(values["pull"]),
            optax.scale_by_learning_rate(values["rate"]),
        )
        return on_layers(chain, network)

    return Method(make, "peer", scale.rate_of("Adam") | {"pull": Axis(1e-2, 10.0)})


def restarted(scale: Scale, base: str, network: Network) -> Method:
    """Return FIRE: an optimiser that begins each task at the nearest isometries. It is told of boundaries."""

    def make(values: Values, key: jax.Array) -> Transformation:
        restart = ro.restart_at_boundary(BASES[base](values["rate"]), ro.anchor.nearest_isometry())
        return on_layers(from_the_second_task_on(restart), network)

    return Method(make, "peer", scale.rate_of(base))


def newer_peers(scale: Scale, network: Network) -> dict[str, Method]:
    """Return the rules published since, on plain descent and on an adaptive optimiser."""
    found = {"AdamO": isometric(scale, network)}
    for base in ("SGD", "RMSprop"):
        found |= {
            f"{base} + ReDo": reset(scale, base, network, dormant, threshold=Axis(0.05, 2.0)),
            f"{base} + SNR": reset(scale, base, network, silent, above=Axis(0.05, 2.0)),
            f"{base} + soft resets": softly_reset(scale, base, network),
            f"{base} + spectral": spectral(scale, base, network),
            f"{base} + FIRE": restarted(scale, base, network),
        }
    return found


def online_methods(scale: Scale, network: Network) -> dict[str, Method]:
    """Return all methods of an online stream by name, ours first.

    ``make`` takes the values of the axes and a random key.
    """
    rivals = peers(scale, network) | newer_peers(scale, network)
    return ours(scale) | bases(scale) | controls(scale) | rivals
