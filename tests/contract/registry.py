"""Every public transformation, in its minimal documented chain: a new one joins the suite by one line here.

An entry's name is the public name, with ``:`` and a note where one transformation has several entries;
``test_registry.py`` fails while a public transformation has none. Builders and flags: ``entries.py``.
"""

import optax

import riemann_optax as ro
from riemann_optax import riemannian_sgd

from .entries import (
    Entry,
    energetic_activity,
    half_open_gate,
    optimiser,
    with_edit,
    with_last,
    with_momentum_from_phi,
    with_phi,
    with_stage_2,
    with_tangent,
)

ENTRIES: dict[str, Entry] = {
    # the two stages
    "compute_metric:metric": with_phi(ro.phi.activity),
    "compute_metric:inverse_metric": with_phi(ro.phi.activity, role="inverse_metric"),
    "scale_by_metric": Entry(
        lambda learning_rate, alpha=1.0: optax.chain(
            ro.scale_by_metric(ro.phi.activity(), alpha), optax.scale_by_learning_rate(learning_rate)
        )
    ),
    "scale_by_inverse_metric": with_stage_2(ro.scale_by_inverse_metric),
    "in_orthonormal_frame:identity": with_stage_2(lambda: ro.in_orthonormal_frame(optax.identity())),
    "in_orthonormal_frame:trace": with_stage_2(lambda: ro.in_orthonormal_frame(optax.trace(0.9))),
    "in_orthonormal_frame:adam": with_stage_2(
        lambda: ro.in_orthonormal_frame(optax.scale_by_adam()), learning_rate=1e-2, optax_promotes=True
    ),
    # the phis
    "phi.activity:squared": with_phi(lambda: ro.phi.activity(decay=0.9, power=1.0), learning_rate=5e-3),
    "phi.surprise": with_phi(ro.phi.surprise, learning_rate=1e-2),
    "phi.accumulated_activity": with_phi(ro.phi.accumulated_activity, learning_rate=0.5),
    "phi.bayesian_synapse": with_phi(ro.phi.bayesian_synapse, learning_rate=0.1),
    "phi.presynaptic_release": with_phi(ro.phi.presynaptic_release, learning_rate=8e-3),
    "phi.presynaptic_release:constant": with_phi(
        lambda: ro.phi.presynaptic_release(form="constant"), learning_rate=8e-3
    ),
    "phi.secant_curvature": with_phi(ro.phi.secant_curvature, learning_rate=0.1),
    "phi.hutchinson_curvature": with_phi(ro.phi.hutchinson_curvature, learning_rate=0.1),
    "phi.maintenance_energy": with_phi(ro.phi.maintenance_energy),
    "phi.modification_energy": with_phi(ro.phi.modification_energy),
    "phi.modification_energy:mean": with_phi(lambda: ro.phi.modification_energy(decay=0.9)),
    "phi.from_weights": with_phi(lambda: ro.phi.from_weights(lambda w: abs(w) ** 2)),
    "phi.from_value": with_phi(lambda: ro.phi.from_value(lambda loss: loss / (1 + loss))),
    "phi.weighted_sum": with_phi(energetic_activity),
    "phi.product": with_phi(
        lambda: ro.phi.product(ro.phi.activity(), ro.phi.maintenance_energy()), learning_rate=5e-3
    ),
    "phi.power": with_phi(lambda: ro.phi.power(ro.phi.hutchinson_curvature(), 0.5), learning_rate=1e-2),
    "phi.unit_mean:tree": with_phi(lambda: ro.phi.unit_mean(ro.phi.activity(), over="tree"), all_reduced=2),
    "phi.unit_mean:leaf": with_phi(lambda: ro.phi.unit_mean(ro.phi.activity(), over="leaf"), all_reduced=2),
    "phi.unit_mean:neuron": with_phi(
        lambda: ro.phi.unit_mean(ro.phi.activity(), over="neuron"), all_reduced=2
    ),
    "phi.limited_mean": with_phi(lambda: ro.phi.limited_mean(ro.phi.activity(), limit=0.01), all_reduced=2),
    # gates
    "phi.metaplasticity": with_phi(lambda: ro.phi.metaplasticity(strength=0.1)),
    "phi.utility_gate": with_phi(half_open_gate, all_reduced=2),
    "phi.utility_gate:leaf": with_phi(lambda: half_open_gate("leaf"), all_reduced=2),
    # uncertainty and learned rates
    "phi.bayesian_gradient_descent": with_phi(
        lambda: ro.phi.bayesian_gradient_descent(initial_deviation=3e-4),
        loops=True,
    ),
    "phi.mesu": with_phi(lambda: ro.phi.mesu(window=1.0), learning_rate=0.1, loops=True),
    "phi.idbd": with_phi(lambda: ro.phi.idbd()),
    "phi.idbd:gradients": with_phi(lambda: ro.phi.idbd(form="gradients")),
    "phi.autostep": with_phi(lambda: ro.phi.autostep(), all_reduced=2),
    "phi.autostep:gradients": with_phi(
        lambda: ro.phi.autostep(form="gradients"), learning_rate=0.1, all_reduced=2
    ),
    # structure
    "phi.factored_activity": with_phi(ro.phi.factored_activity, reduces_state=True, all_reduced=2),
    "phi.per_neuron": with_phi(ro.phi.per_neuron, reduces_state=True, all_reduced=2),
    "phi.sliding_threshold": with_phi(lambda: ro.phi.sliding_threshold(), reduces_state=True),
    "phi.gauss_newton_curvature": with_phi(lambda: ro.phi.gauss_newton_curvature(), learning_rate=0.1),
    "phi.multiplicative_geometry": with_phi(lambda: ro.phi.multiplicative_geometry(eps=0.5)),
    "phi.multiplicative_geometry:anchored": with_phi(
        lambda: ro.phi.multiplicative_geometry(eps=0.5, anchor=ro.anchor.initial_weights())
    ),
    # identification controls
    "phi.permuted": with_phi(lambda: ro.phi.permuted(ro.phi.per_neuron()), reduces_state=True, all_reduced=2),
    "phi.leaf_mean": with_phi(lambda: ro.phi.leaf_mean(ro.phi.activity()), all_reduced=2),
    "norm_matched_base:tree": Entry(
        lambda learning_rate, alpha=1.0: ro.norm_matched_base(
            optax.sgd(1.0), riemannian_sgd(learning_rate, alpha=alpha)
        ),
        all_reduced=4,
    ),
    "norm_matched_base:leaf": Entry(
        lambda learning_rate, alpha=1.0: ro.norm_matched_base(
            optax.sgd(1.0), riemannian_sgd(learning_rate, alpha=alpha), over="leaf"
        ),
        all_reduced=4,
    ),
    # consolidation, anchors and noise
    "phi.online_ewc": with_phi(lambda: ro.phi.online_ewc(memory=0.5)),
    "phi.laplace": with_phi(lambda: ro.phi.laplace(memory=0.5)),
    "phi.memory_aware_synapses": with_phi(lambda: ro.phi.memory_aware_synapses(memory=0.5, running=False)),
    "phi.synaptic_intelligence": with_phi(lambda: ro.phi.synaptic_intelligence(memory=0.5)),
    "phi.rwalk": with_phi(lambda: ro.phi.power(ro.phi.rwalk(interval=2, damping=1.0), 0.5), all_reduced=8),
    "add_anchored_weights:slow_weights": with_edit(
        lambda: ro.add_anchored_weights(0.1, ro.anchor.slow_weights(decay=0.9), precision="phi")
    ),
    "add_anchored_weights:benna_fusi_chain": with_last(
        lambda: ro.add_anchored_weights(1e-6, ro.anchor.benna_fusi_chain())
    ),
    "add_anchored_weights:initial_weights": with_last(
        lambda: ro.add_anchored_weights(1e-9, ro.anchor.initial_weights())
    ),
    "add_anchored_weights:importance_weighted_weights": with_edit(
        lambda: ro.add_anchored_weights(0.1, ro.anchor.importance_weighted_weights(), precision="phi")
    ),
    "add_anchored_weights:task_boundary_weights": with_last(
        lambda: ro.add_anchored_weights(
            0.1, ro.anchor.task_boundary_weights(), precision=ro.phi.maintenance_energy()
        )
    ),
    # So weak that the minimum of the convergence tests stays where it is; what it does: test_isometry.py.
    "add_isometry_pull": with_last(lambda: ro.add_isometry_pull(1e-12), all_reduced=1),
    "add_spectral_pull": with_last(lambda: ro.add_spectral_pull(1e-12), reduces_state=True, all_reduced=4),
    "restart_at_boundary": Entry(
        lambda learning_rate, alpha=1.0: ro.restart_at_boundary(
            riemannian_sgd(learning_rate, alpha=alpha), ro.anchor.slow_weights(decay=0.9)
        )
    ),
    # Without hidden layers, for the trees here have none; what it does: tests/wrappers/test_reset_units.py.
    "reset_units": Entry(
        lambda learning_rate, alpha=1.0: ro.reset_units(
            riemannian_sgd(learning_rate, alpha=alpha), ro.dormant_units(), outgoing={}
        )
    ),
    "soft_resets": Entry(
        lambda learning_rate, alpha=1.0: ro.soft_resets(riemannian_sgd(learning_rate, alpha=alpha), 1e-12),
        needs_loss=True,
        reduces_state=True,  # numbers for each leaf
        all_reduced=4,
    ),
    "add_metric_noise": with_edit(
        lambda: ro.add_metric_noise(1e-3, temperature=1e-20, field=lambda w: 1 + w**2), real_only=True
    ),
    "add_idle_noise": with_edit(lambda: ro.add_idle_noise(1e-3, scale=1e-13)),
    "phi.momentum_activity": with_phi(ro.phi.momentum_activity),
    "momentum_from_phi": with_momentum_from_phi(nesterov=False),
    "momentum_from_phi:nesterov": with_momentum_from_phi(nesterov=True, conformal="tree", all_reduced=2),
    # the edits of a metric
    "on_metric:ema": with_edit(lambda: ro.on_metric(optax.ema(0.9)), optax_promotes=True),
    "on_gradient:trace": with_edit(lambda: ro.on_gradient(optax.trace(0.9))),
    "multiply_metric:function": with_edit(lambda: ro.multiply_metric(lambda w: 1 / (abs(w) + 0.5))),
    "multiply_metric:phi": with_edit(
        lambda: ro.multiply_metric(ro.phi.from_weights(lambda w: abs(w) + 1)), learning_rate=5e-3
    ),
    "multiply_metric:inverse_metric": with_edit(
        lambda: ro.multiply_metric(lambda w: 1 / (abs(w) + 0.5)), role="inverse_metric"
    ),
    # a metric whose scale is phi's own mean
    "compute_metric:conformal tree": with_phi(ro.phi.activity, conformal="tree", all_reduced=2),
    "compute_metric:conformal leaf": with_phi(ro.phi.activity, conformal="leaf", all_reduced=2),
    "compute_metric:conformal neuron": with_phi(ro.phi.activity, conformal="neuron", all_reduced=2),
    "compute_metric:conformal inverse_metric": with_phi(
        ro.phi.activity, role="inverse_metric", conformal="tree", learning_rate=4e-3, all_reduced=2
    ),
    "normalize_metric:tree": with_edit(lambda: ro.normalize_metric("tree"), all_reduced=2),
    "normalize_metric:leaf": with_edit(lambda: ro.normalize_metric("leaf"), all_reduced=2),
    "normalize_metric:neuron": with_edit(lambda: ro.normalize_metric("neuron"), all_reduced=2),
    "check_metric": with_edit(ro.check_metric),
    "clip_metric": with_edit(lambda: ro.clip_metric(low=0.5, high=10.0)),
    "competitive_plasticity:tree": with_edit(lambda: ro.competitive_plasticity(1.0, "tree"), all_reduced=2),
    "competitive_plasticity:leaf": with_edit(lambda: ro.competitive_plasticity(1.0), all_reduced=2),
    "competitive_plasticity:neuron": with_edit(
        lambda: ro.competitive_plasticity(1.0, "neuron"), all_reduced=2
    ),
    # looking at a metric, and guarding it
    "record_metric": with_edit(ro.record_metric, all_reduced=12),
    "track_energy": with_last(ro.track_energy, all_reduced=4),
    "synaptic_caching": with_last(lambda: ro.synaptic_caching(1e-2, fading=0.0), all_reduced=6),
    "skip_nonfinite": Entry(
        lambda learning_rate, alpha=1.0: ro.skip_nonfinite(riemannian_sgd(learning_rate, alpha=alpha)),
        all_reduced=2,
    ),
    # precision
    "low_precision_state:bfloat16": with_phi(lambda: ro.low_precision_state(ro.phi.activity())),
    "low_precision_state:int8": with_phi(
        lambda: ro.low_precision_state(ro.phi.activity(), "int8", block_size=2), reduces_state=True
    ),
    "master_weights": Entry(
        lambda learning_rate, alpha=1.0: ro.master_weights(riemannian_sgd(learning_rate, alpha=alpha)),
        rounds_weights=True,
    ),
    # in an eigenbasis
    "in_eigenbasis": Entry(
        lambda learning_rate, alpha=1.0: ro.in_eigenbasis(
            riemannian_sgd(learning_rate, alpha=alpha), update_every=2, sides="smaller"
        ),
        real_only=True,
        reduces_state=True,
        loops=True,
        mixes_weights=True,
    ),
    # metric fields
    "attach_field": Entry(
        lambda learning_rate, alpha=1.0: optax.chain(
            ro.attach_field(ro.fields.Quadratic(0.1)),
            ro.scale_by_inverse_metric(),
            riemannian_sgd(learning_rate, alpha=alpha),
        ),
        real_only=True,
    ),
    "retract:euler": with_last(lambda: ro.retract(ro.fields.Quadratic(0.1), "euler")),
    "retract:geodesic": with_last(
        lambda: ro.retract(ro.fields.Quadratic(0.1), "geodesic"), real_only=True, loops=True
    ),
    "retract:second_order": with_last(
        lambda: ro.retract(ro.fields.Quadratic(0.1), "second_order"), real_only=True, all_reduced=4
    ),
    "retract:mirror": with_last(lambda: ro.retract(ro.fields.Absolute(0.1), "mirror"), real_only=True),
    # whole optimisers
    "riemannian_sgd": optimiser(ro.riemannian_sgd),
    "riemannian_sgd:momentum": optimiser(ro.riemannian_sgd, momentum=0.9, nesterov=True, learning_rate=1e-4),
    "riemannian_sgd:decay": optimiser(
        ro.riemannian_sgd,
        reduces_state=True,
        momentum=0.9,
        phi=ro.phi.factored_activity(decay=0.97),
        weight_decay=1e-5,
        record=True,
        all_reduced=10,
    ),
    "riemannian_sgd:decay_in_metric": optimiser(
        ro.riemannian_sgd,
        reduces_state=True,
        phi=ro.phi.factored_activity(decay=0.97),
        weight_decay=1e-5,
        decay_in_metric=True,
        all_reduced=2,
    ),
    "riemannian_adamw": optimiser(ro.riemannian_adamw, reduces_state=True, all_reduced=4),
    "riemannian_adamw:relative": optimiser(
        ro.riemannian_adamw,
        learning_rate=1e-2,
        reduces_state=True,
        multiply_by_parameter_scale=True,
        all_reduced=8,  # Optax takes each root mean square twice: the second one has a gradient at 0
    ),
    "riemannian_adamw:activity": optimiser(
        ro.riemannian_adamw, phi=ro.phi.activity(decay=0.97), nesterov=False, conformal="leaf", all_reduced=2
    ),
    "riemannian_eigenbasis": Entry(
        lambda learning_rate, alpha=1.0: ro.riemannian_eigenbasis(learning_rate, alpha=alpha, update_every=2),
        real_only=True,
        reduces_state=True,
        loops=True,
        mixes_weights=True,
    ),
    "soap": Entry(
        lambda learning_rate, alpha=1.0: optax.chain(
            ro.scale_by_metric(ro.phi.activity(), alpha),
            ro.soap(learning_rate, precondition_frequency=2, weight_decay=1e-3, one_sided=True),
        ),
        learning_rate=1e-2,  # the first update only decays, which narrow weights must show
        real_only=True,
        reduces_state=True,
        optax_promotes=True,
        loops=True,
        mixes_weights=True,
    ),
    "riemannian_schedule_free": Entry(
        lambda learning_rate, alpha=1.0: ro.riemannian_schedule_free(learning_rate, alpha=alpha),
        reduces_state=True,
        rounds_weights=True,
        averages_weights=True,
        all_reduced=4,
    ),
    "ema": with_tangent(lambda: ro.ema(0.9)),
    "ema:nesterov": with_tangent(lambda: ro.ema(0.9, nesterov=True)),
    "schedule_free": Entry(
        lambda learning_rate, alpha=1.0: ro.schedule_free(riemannian_sgd(learning_rate, alpha=alpha)),
        learning_rate=1e-2,  # the average forgets its start more slowly than the iterates
        rounds_weights=True,
        averages_weights=True,
    ),
    "partition_by_kind": Entry(
        lambda learning_rate, alpha=1.0: ro.partition_by_kind(
            riemannian_sgd(learning_rate, alpha=alpha), bias=optax.sgd(learning_rate)
        )
    ),
}
