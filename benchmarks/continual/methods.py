"""Who takes part in the online streams: ours and its controls, plain optimisers, published rules on them."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import optax

import riemann_optax as ro
from benchmarks.continual.network import Network, on_layers, permuted_once
from benchmarks.continual.trials import Axis
from benchmarks.peers import penalties
from benchmarks.peers.continual_backprop import continual_backprop
from benchmarks.peers.shrink_and_perturb import shrink_and_perturb
from benchmarks.peers.utility_gate import utility_based_descent

DECAY = 0.985  # of the mean square, for the metric and for RMSprop
OTHERS = (0.999, 0.9)  # memories of RMSprop in the strongest published combination, beside DECAY
MATURITY = 100  # updates, of continual backpropagation, as published
OURS, BASE = "metric + pull + noise", "SGD"

Values = Mapping[str, jax.Array]
Transformation = optax.GradientTransformation


class Method(NamedTuple):
    """One row of the table.

    Attributes:
      axes: What is tuned.
      make: From the values of the axes, a key and the learner's layers to the optimiser.
      role: Ours or a part of it, a control of it, a published rule, or a plain optimiser.
      point_of: The method whose chosen point it takes over instead of being tuned.
    """

    axes: dict[str, Axis]
    make: Callable[[Values, jax.Array, Network], Transformation]
    role: Literal["ours", "control", "peer", "base"]
    point_of: str | None = None


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


def three_parts(
    phi: Transformation,
    alpha: float,
    values: Values,
    key: jax.Array,
    parts: tuple[str, ...] = ("pull", "noise"),
) -> Transformation:
    """Chain metric, pull to the initial weights and idle noise, or the metric with some of the ``parts``.

    Pull and noise stand between the stages, so that they are divided by ``E`` and its root: they act on the
    idle weights.
    """
    stages = [ro.compute_metric(phi, alpha)]
    if "pull" in parts:
        stages.append(ro.add_anchored_weights(values["pull"], ro.anchor.initial_weights()))
    if "noise" in parts:
        stages.append(ro.add_idle_noise(values["rate"], values["noise"], key))
    return optax.chain(*stages, ro.scale_by_inverse_metric(), optax.scale_by_learning_rate(values["rate"]))


def ablation(scale: Scale) -> dict[str, Method]:
    """Return the subsets of the three parts that :func:`online_methods` does not have, each tuned by itself.

    Where the metric is left out each leaf has the mean phi in its place: the metric's size and memory
    without its direction.
    """
    activity = ro.phi.activity(decay=DECAY)
    axes = {"pull": Axis(scale.pull), "noise": Axis(scale.noise)}

    def subset(phi: Transformation, rate: float, *parts: str) -> Method:
        return Method(
            {"rate": Axis(rate)} | {part: axes[part] for part in parts},
            lambda values, key, network: three_parts(phi, scale.alpha, values, key, parts),
            "ours" if phi is activity else "control",
        )

    mean = ro.phi.leaf_mean(activity)
    return {
        "metric": subset(activity, scale.metric),
        "metric + noise": subset(activity, scale.metric, "noise"),
        "leaf-mean phi only": subset(mean, scale.metric / 8),
        "leaf-mean phi + pull only": subset(mean, scale.metric / 8, "pull"),
        "leaf-mean phi + noise only": subset(mean, scale.metric / 8, "noise"),
    }


def online_methods(scale: Scale) -> dict[str, Method]:
    """Return all methods of an online stream, the most important first."""
    activity = ro.phi.activity(decay=DECAY)
    rates = {"SGD": scale.sgd, "RMSprop": scale.rmsprop, "Adam": scale.adam}
    bases: dict[str, Callable[[jax.Array], Transformation]] = {
        "SGD": optax.sgd,
        "RMSprop": lambda rate: optax.rmsprop(rate, decay=DECAY),
        "Adam": optax.adam,
    }

    def ours(
        alpha: float, phi: Callable[[jax.Array], Transformation], parts: tuple[str, ...] = ("pull", "noise")
    ):
        return lambda values, key, network: three_parts(phi(key), alpha, values, key, parts)

    def norm_matched_gradient(values: Values, key: jax.Array, network: Network) -> Transformation:
        return ro.norm_matched_base(
            three_parts(activity, 0.0, values, key, ("pull",)),
            three_parts(activity, scale.alpha, values, key),
        )

    def rate_of(base: str) -> dict[str, Axis]:
        return {"rate": Axis(rates[base])}

    def with_penalty(base: str, penalty: Callable[[jax.Array], Transformation]) -> Method:
        def make(values: Values, key: jax.Array, network: Network) -> Transformation:
            return optax.chain(penalty(values["strength"]), bases[base](values["rate"]))

        return Method(rate_of(base) | {"strength": Axis(scale.l2, 4.0)}, make, "peer")

    def with_shaking(base: str, optimiser: Callable[[jax.Array], Transformation] | None = None) -> Method:
        inner = optimiser or bases[base]

        def make(values: Values, key: jax.Array, network: Network) -> Transformation:
            return optax.chain(
                inner(values["rate"]), shrink_and_perturb(values["shrink"], values["noise"], key)
            )

        axes = {"shrink": Axis(scale.share, 4.0), "noise": Axis(scale.shake, 3.0)}
        return Method(rate_of(base) | axes, make, "peer")

    def decoupled(values: Values, key: jax.Array, network: Network) -> Transformation:
        """Pull and noise outside of the metric, the same for every weight."""
        return optax.chain(
            bases["RMSprop"](values["rate"]),
            # Behind the learning rate the sign is that of a descent step.
            optax.scale(-1.0),
            ro.add_anchored_weights(values["pull"], ro.anchor.initial_weights()),
            optax.scale(-1.0),
            optax.add_noise(values["noise"] ** 2, 0.0, key),
        )

    def with_replacement(base: str) -> Method:
        def make(values: Values, key: jax.Array, network: Network) -> Transformation:
            renewal = continual_backprop(values["replacement"], MATURITY, key, network.draw)
            return optax.chain(bases[base](values["rate"]), on_layers(renewal, network))

        return Method(rate_of(base) | {"replacement": Axis(1e-4, 10.0)}, make, "peer")

    def gated(values: Values, key: jax.Array, network: Network) -> Transformation:
        return utility_based_descent(values["rate"], values["noise"], values["decay"], key)

    three = {"rate": Axis(scale.metric), "pull": Axis(scale.pull), "noise": Axis(scale.noise)}
    # A weight that has the phi of an idle one sees the whole rate: stable rates are those of plain descent.
    permuted = three | {"rate": Axis(scale.metric / 100, 8.0)}
    bare = {"rate": Axis(scale.sgd), "pull": Axis(scale.l2, 4.0), "noise": Axis(scale.shake, 3.0)}
    outside = {"pull": Axis(scale.share, 4.0), "noise": Axis(scale.shake, 3.0)}
    utility = {"noise": Axis(scale.gradient_noise, 4.0), "decay": Axis(scale.l2, 4.0)}
    return {
        OURS: Method(three, ours(scale.alpha, lambda key: activity), "ours"),
        "RMSprop + shrink and perturb": with_shaking("RMSprop"),
        **{
            f"RMSprop, decay {decay} + shrink and perturb": with_shaking(
                "RMSprop", lambda rate, decay=decay: optax.rmsprop(rate, decay=decay)
            )
            for decay in OTHERS
        },
        "SGD": Method(rate_of("SGD"), lambda v, k, n: bases["SGD"](v["rate"]), "base"),
        "RMSprop": Method(rate_of("RMSprop"), lambda v, k, n: bases["RMSprop"](v["rate"]), "base"),
        "permuted phi": Method(permuted, ours(scale.alpha, lambda k: permuted_once(activity, k)), "control"),
        "leaf-mean phi": Method(three, ours(scale.alpha, lambda k: ro.phi.leaf_mean(activity)), "control"),
        "re-tuned base: pull + noise": Method(bare, ours(0.0, lambda key: activity), "control"),
        "norm-matched gradient + pull": Method({}, norm_matched_gradient, "control", point_of=OURS),
        "untrained": Method(
            {}, lambda v, k, n: optax.with_extra_args_support(optax.set_to_zero()), "control"
        ),
        "RMSprop + pull + noise outside": Method(rate_of("RMSprop") | outside, decoupled, "peer"),
        "RMSprop + L2-Init": with_penalty("RMSprop", penalties.l2_init),
        "Adam": Method(rate_of("Adam"), lambda v, k, n: bases["Adam"](v["rate"]), "base"),
        "SGD + shrink and perturb": with_shaking("SGD"),
        "SGD + continual backprop": with_replacement("SGD"),
        "UPGD": Method(rate_of("SGD") | utility, gated, "peer"),
        "metric + pull": Method(
            {name: three[name] for name in ("rate", "pull")},
            ours(scale.alpha, lambda key: activity, ("pull",)),
            "ours",
        ),
        "SGD + L2-Init": with_penalty("SGD", penalties.l2_init),
        "RMSprop + continual backprop": with_replacement("RMSprop"),
        "Adam + continual backprop": with_replacement("Adam"),
        "Adam + shrink and perturb": with_shaking("Adam"),
        "Adam + L2-Init": with_penalty("Adam", penalties.l2_init),
        "SGD + L2": with_penalty("SGD", penalties.l2),
        "RMSprop + L2": with_penalty("RMSprop", penalties.l2),
    }
