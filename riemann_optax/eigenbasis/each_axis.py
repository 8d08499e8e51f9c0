"""A basis for each axis of a convolution, as published for SOAP: window and channels each by themselves."""

from typing import Any

import jax
import optax

from riemann_optax import _axes, _tree
from riemann_optax._axes import Axes
from riemann_optax._conventions import MatrixAxes
from riemann_optax.eigenbasis.coordinates import OfOtherAxes
from riemann_optax.eigenbasis.transform import InEigenbasisState, in_eigenbasis

_PARTS = 4  # channels, and at most three axes of a window


def in_eigenbasis_of_each_axis(
    inner: optax.GradientTransformation, *, axes: Axes, **options: Any
) -> optax.GradientTransformationExtraArgs:
    r"""Run ``inner`` with a basis for each axis of a convolution, and for both sides of every other matrix.

    .. math::
      \mathcal{U} = \mathrm{inner}(\mathcal{G} \times_1 Q_1^\top \cdots \times_d Q_d^\top)
      \times_1 Q_1 \cdots \times_d Q_d, \qquad C_k = \overline{G_{(k)} G_{(k)}^\top}

    with ``G_(k)`` the matrix that has axis k as rows and all others as columns. The outputs are turned with
    the other matrices. Inside of that one eigenbasis turns the channels, and one each axis of the window.
    They commute: a rotation along one axis leaves the correlations of the others as they were. All are there
    without a convolution too, and hold nothing: the structure of the state follows from that of the
    parameters alone, as ``optax.tree.map_params`` demands.

    Args:
      inner: any transformation that :func:`in_eigenbasis` takes.
      axes: as there; what :class:`MatrixAxes` calls a window has an axis for itself.
      **options: further arguments of :func:`in_eigenbasis`, for all of them.

    Returns:
      A gradient transformation whose state is five of :class:`InEigenbasisState`, one inside of the other.

    Raises:
      ValueError, TypeError: as :func:`in_eigenbasis` does.

    References:
      Vyas et al, `SOAP: Improving and Stabilizing Shampoo using Adam <https://arxiv.org/abs/2409.11321>`_,
      ICLR, 2025
    """
    in_eigenbasis(inner, axes=axes, **options)  # checks the arguments now, not at init

    def made_for(tree: Any) -> optax.GradientTransformationExtraArgs:
        bare = _tree.bare(_tree.arrays(tree))
        names = map(jax.tree_util.keystr, _axes.leaf_paths(bare))
        read = dict(zip(names, _axes.read(bare, axes), strict=True))
        convolutions = {name: found for name, found in read.items() if found is not None and found.window}
        turned = optax.with_extra_args_support(inner)
        for place in range(_PARTS):
            parts = {name: part for name, one in convolutions.items() if (part := _part(one, place))}
            turned = _turning(parts, turned, options)
        return in_eigenbasis(
            turned,
            sides=lambda name, leaf: "output" if name in convolutions else "both",
            axes=axes,
            **options,
        )

    def init(params: optax.Params) -> optax.OptState:
        return made_for(params).init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        new: tuple[optax.Updates, optax.OptState] = made_for(updates).update(
            updates, state, params, **extra_args
        )
        return new

    return optax.GradientTransformationExtraArgs(init, update)


def _part(axes: MatrixAxes, place: int) -> MatrixAxes | None:
    """Return a convolution as a matrix whose rows are its channels (place 0) or an axis of its window."""
    channels = tuple(axis for axis in axes.inputs if axis not in axes.window)
    parts = [channels, *((axis,) for axis in axes.window)]
    if place >= len(parts) or not parts[place]:
        return None
    others = {*axes.inputs, *axes.outputs}.difference(parts[place])
    return MatrixAxes(parts[place], tuple(sorted(others)))


def _turning(
    parts: dict[str, MatrixAxes], inner: optax.GradientTransformationExtraArgs, options: dict[str, Any]
) -> OfOtherAxes:
    """Return ``inner`` in the eigenbasis of the rows of these matrices, by the names of leaves."""
    turned = in_eigenbasis(inner, sides="input", axes=lambda name, leaf: parts.get(name), **options)

    def update(
        updates: optax.Updates,
        state: InEigenbasisState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if parts:
            updates, state = turned.update(updates, state, params, **extra_args)
            return updates, state
        updates, inner_state = inner.update(updates, state.inner, params, **extra_args)
        return updates, state._replace(inner=inner_state)

    return OfOtherAxes.of(turned.init, update)
