"""Adam in the orthonormal frame of a metric, as a chain of one's own."""

import optax

import riemann_optax as ro


def adam_in_the_frame(
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    *,
    phi=None,
    alpha=1.0,
    weight_decay=1e-4,
    mask=None,
    mu_dtype=None,
    nesterov=False,
):
    """Build Riemannian Adam with decoupled weight decay."""
    adam = optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return optax.chain(
        ro.compute_metric(ro.phi.activity() if phi is None else phi, alpha),
        ro.in_orthonormal_frame(adam),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
