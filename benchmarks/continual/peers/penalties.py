"""Penalties as part of the loss, each a stage in front of an optimiser, of parts that are there already."""

import jax
import optax

import riemann_optax as ro


def l2(strength: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """Build the pull to 0, ``strength * w``."""
    return optax.add_decayed_weights(strength)


def l2_init(strength: jax.typing.ArrayLike) -> optax.GradientTransformationExtraArgs:
    """Build the pull to the initial weights, ``strength * (w - w_0)`` (Kumar, Marklund and Van Roy, 2023)."""
    return ro.add_anchored_weights(strength, ro.anchor.initial_weights())


def ewc(strength: jax.typing.ArrayLike, memory: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Build elastic weight consolidation: ``strength * F * (w - w_old)``.

    ``F`` is that of the finished tasks, given by :func:`riemann_optax.consolidate` (Kirkpatrick et al, 2017);
    with ``memory`` below 1 it fades (Schwarz et al, 2018).
    """
    return ro.add_anchored_weights(
        strength,
        ro.anchor.task_boundary_weights(),
        precision=ro.phi.online_ewc(memory=memory, running=False),
    )


def synaptic_intelligence(
    strength: jax.typing.ArrayLike, damping: float = 0.1
) -> optax.GradientTransformationExtraArgs:
    """Build ``strength * Omega * (w - w_old)`` with the path integral of Zenke, Poole and Ganguli, 2017."""
    return ro.add_anchored_weights(
        strength, ro.anchor.task_boundary_weights(), precision=ro.phi.synaptic_intelligence(damping=damping)
    )
