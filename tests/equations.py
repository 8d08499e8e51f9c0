"""Eqs. 2 and 3 alone, which the tests of a stage or a phi are about: without what the defaults add."""

import riemann_optax as ro


def riemannian_sgd(
    learning_rate,
    momentum=None,
    nesterov=False,
    *,
    phi=None,
    alpha=1.0,
    conformal=None,
    state_dtype=None,
    **options,
):
    """Build ``ro.riemannian_sgd`` as the equations are written, by default under activity."""
    return ro.riemannian_sgd(
        learning_rate,
        momentum,
        nesterov,
        phi=ro.phi.activity(state_dtype=state_dtype) if phi is None else phi,
        alpha=alpha,
        conformal=conformal,
        state_dtype=state_dtype,
        **options,
    )
