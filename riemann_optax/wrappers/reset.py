"""Reset hidden units that no longer learn, together with their optimiser state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes
from riemann_optax._declare import Declared, UnitLink, links_units
from riemann_optax._population import when
from riemann_optax._varying import varying_like
from riemann_optax.boundary import check_outermost
from riemann_optax.eigenbasis import InEigenbasisState
from riemann_optax.eigenbasis.mesh import on_auto_mesh
from riemann_optax.phi import _state
from riemann_optax.phi._layers import like_updates
from riemann_optax.wrappers._hidden_layers import HiddenLayer, Side, hidden_layers
from riemann_optax.wrappers._renewed_state import Slices, renewal_of, renewed, where_new
from riemann_optax.wrappers.unit_rules import UnitRule

Initializer = Callable[..., Any]


class ResetUnitsState(NamedTuple):
    """State of :func:`reset_units`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      key: the random key of the next update.
      resets: int32 scalar, how many units have been reset so far.
      spread: a scalar at the kernel of each hidden layer, the standard deviation of its initial weights;
        ``optax.MaskedNode`` elsewhere, and everywhere if an initialiser is given.
      rule: the state of the rule.
      inner_state: the state of the wrapped optimiser.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    key: jax.Array
    resets: jax.Array
    spread: Any
    rule: Any
    inner_state: optax.OptState

    def places_weights(self) -> str:
        """Return what puts weights in a place; what multiplies updates asks for this method."""
        return "reset_units"


def reset_units(
    inner: optax.GradientTransformation,
    rule: UnitRule,
    *,
    outgoing: Mapping[str, str | Sequence[str]] | None = None,
    initializer: Initializer | None = None,
    key: jax.Array | int = 0,
    axes: Axes = "flax",
) -> optax.GradientTransformationExtraArgs:
    r"""Reset the hidden units that a rule chooses, and their state in ``inner``.

    ::

        tx = ro.reset_units(optax.adam(1e-3), ro.dormant_units(0.1, every=1000))
        step = ro.value_and_grad(loss_fn, needs=tx)

    The rule is :func:`dormant_units` (ReDo), :func:`silent_units` (self-normalised resets),
    :func:`least_useful_units` (continual backpropagation), or a :class:`UnitRule` of your own. After the step
    of ``inner``, each chosen unit is reset:

    .. math::
      W_{\cdot i} \sim N(0, \sigma_0^2), \qquad b_i = 0, \qquad W^\mathrm{out}_{i \cdot} = 0

    - its incoming weights are redrawn, and its bias and outgoing weights become 0 (a weight from one chosen
      unit to another is redrawn). So the network's outputs lose what the unit sent on, which is nothing if it
      was silent; a norm after the layer spreads the change over its other units;
    - the state of ``inner`` for these weights (momenta, averages, importances) becomes what ``inner.init``
      returns; in a factored state this is the row or column of the unit. Stored weights, such as an anchor,
      become the new weights. State shared with other units does not change: update counts, the other factor.

    In :func:`in_eigenbasis` this is exact if the side with the units is not turned. If it is turned, a unit
    has no coordinate of its own, and the update raises an error with the remedy.

    **Layers.** Without ``outgoing`` the kernels must form one chain: numbered names such as ``Dense_0`` and
    ``Dense_1``, or two layers whose sizes fit in one way only. Otherwise give the reader of each layer by
    module path: ``outgoing={"encoder/hidden": "head"}``, several readers as a tuple. Layers that are not
    named do not change. Neither names nor sizes tell a chain from a sum, ``x + relu(Dense_0(x))``, or a gate,
    ``relu(Dense_0(x)) * Dense_1(x)``: where a network has these, give ``outgoing``, and leave out their
    layers. :func:`value_and_grad` warns of units that are added to something else or go elsewhere too. The
    bias is the vector called ``bias`` or ``b`` in the module of the kernel, or as the kernel is (``w1`` and
    ``b1``), or the one behind it in a list of kernels and vectors in turn. A dense layer may read the
    flattened outputs of a convolution, channels last: with a multiple of its channels as rows it is taken to
    do so. Do not name a convolution whose reader reads several branches side by side, nor a layer that
    ``inner`` freezes or whose reader it freezes: both sides of a unit are written. Scales and biases of norms
    do not change: a unit that the bias of its norm keeps silent stays silent.

    State: the states of ``inner`` and of the rule, a number per layer, a key, two counts. Needs ``params``,
    and the extra argument ``activities``, which :func:`value_and_grad` makes: for every hidden layer the
    activities after its nonlinearity, with units along the last axis. Under data parallelism the means over
    the batch take one all-reduce of a value per unit.

    Args:
      inner: a whole optimiser.
      rule: chooses the units to reset.
      outgoing: a dictionary from the path of a layer to the paths of the layers that read its units; None
        for one chain.
      initializer: ``initializer(key, shape, dtype)`` draws a kernel with its outputs last, such as
        ``jax.nn.initializers.he_uniform()``; None for normal numbers with mean 0 and the standard deviation
        of the kernel's initial weights.
      key: a random key or an integer seed for the new weights; runs side by side want one each.
      axes: which axes are inputs and outputs: a preset of :func:`kernel_axes`, :class:`MatrixAxes`, a
        function of a leaf's name and the leaf that returns either, or a dictionary of these by the names of
        modules.

    Returns:
      A gradient transformation with state :class:`ResetUnitsState`.

    Raises:
      TypeError: if ``inner`` is not a gradient transformation, ``rule`` not a rule, or ``key`` not a key.
      ValueError: at ``init``, if it is not clear which layer reads the units of a kernel, or if ``inner``
        counts energy (put that after this one); at ``update``, if ``params`` or ``activities`` are missing,
        or a state in ``inner`` cannot be reset for one unit.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = ro.reset_units(optax.sgd(0.1), ro.dormant_units(every=1))
      >>> params = {"hidden": {"kernel": jnp.ones([3, 2])}, "out": {"kernel": jnp.ones([2, 1])}}
      >>> gradients = jax.tree.map(jnp.zeros_like, params)
      >>> activities = {"hidden": {"kernel": jnp.array([[1.0, 0.0]])}, "out": {"kernel": jnp.zeros([1, 1])}}
      >>> updates, state = tx.update(gradients, tx.init(params), params, activities=activities)
      >>> print(optax.apply_updates(params, updates)["out"]["kernel"].ravel(), state.resets)
      [1. 0.] 1

    References:
      Sokar et al, `The Dormant Neuron Phenomenon in Deep Reinforcement Learning
      <https://arxiv.org/abs/2302.12902>`_, ICML, 2023

      Dohare et al, `Loss of plasticity in deep continual learning
      <https://doi.org/10.1038/s41586-024-07711-7>`_, Nature, 2024
    """
    _check.check_transformation("inner", inner)
    if not isinstance(rule, UnitRule):
        raise TypeError(f"rule must be a UnitRule, such as riemann_optax.dormant_units(), got {rule!r}.")
    if initializer is not None and not callable(initializer):
        raise TypeError(f"initializer must be a function of key, shape and dtype, got {initializer!r}.")
    if outgoing is not None and not isinstance(outgoing, Mapping):
        raise TypeError(f'outgoing must be a dictionary, such as {{"hidden": "head"}}, got {outgoing!r}.')
    _check.check_key(key)
    _axes.check_axes(axes)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> ResetUnitsState:
        _tree.check_inexact(params, "params")
        bare = _tree.bare(_tree.arrays(params))
        layers = hidden_layers(bare, outgoing, axes) if jax.tree.leaves(bare) else ()
        leaves, structure = jax.tree.flatten(bare)
        paths = _axes.leaf_paths(bare)
        links_units(UnitLink(paths[one.kernel.leaf], [paths[r.leaf] for r in one.outgoing]) for one in layers)

        def tree(make: Callable[[HiddenLayer, Any], Any]) -> Any:
            return _of_layers(layers, structure, [make(one, leaves[one.kernel.leaf]) for one in layers])

        inner_state = inner.init(params)
        check_outermost("reset_units", inner_state)
        units = tree(lambda one, leaf: jnp.zeros(one.units, _tree.working_dtype(leaf)))
        state = ResetUnitsState(
            count=jnp.zeros([], jnp.int32),
            key=_state.as_key(key),
            resets=jnp.zeros([], jnp.int32),
            spread=tree(
                lambda one, leaf: (
                    jnp.zeros([], _tree.working_dtype(leaf)) if initializer is None else optax.MaskedNode()
                )
            ),
            rule=rule.init(units),
            inner_state=inner_state,
        )
        return varying_like(state, params)

    def update(
        updates: optax.Updates,
        state: ResetUnitsState,
        params: optax.Params | None = None,
        *,
        activities: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ResetUnitsState]:
        _tree.check_inexact(updates, "gradients")
        params = _check.require_params(_tree.trained(params, updates), "reset_units")
        bare = _tree.bare(params)
        _check.check_gradients(_tree.bare(updates), bare)
        leaves, structure = jax.tree.flatten(bare)
        layers = hidden_layers(bare, outgoing, axes)
        reset = _Reset(rule, initializer, inner.init, axes, params, layers, structure)
        # A phi in inner may read activities too; an eigenbasis refuses them.
        refused = _tree.find_states(state.inner_state, InEigenbasisState)
        passed_on = extra_args if refused or activities is None else {"activities": activities, **extra_args}
        steps, inner_state = inner.update(updates, state.inner_state, params, **passed_on)
        if not layers:
            return steps, state._replace(count=optax.safe_increment(state.count), inner_state=inner_state)
        steps = _tree.at_least_as_wide(steps, params)  # narrower ones would not end at the new weights
        activities = _without_others(layers, activities, bare)
        seen = _activities(
            layers, jax.tree.leaves(like_updates("reset_units", "activities", activities, bare))
        )
        next_key, draw_key = jax.random.split(state.key)

        # Weights may have any sharding: on an Explicit mesh the compiler infers it for the masks of units.
        old = (state.resets, _by_layer(layers, state.spread), state.rule, inner_state)
        step_leaves = jax.tree.leaves(steps)
        new_steps, (resets, spread, rule_state, inner_state) = on_auto_mesh(
            reset.new_steps, (step_leaves, old), leaves, step_leaves, seen, old, draw_key
        )
        return _tree.like(new_steps, steps), ResetUnitsState(
            count=optax.safe_increment(state.count),
            key=next_key,
            resets=resets,
            spread=_of_layers(layers, structure, spread) if spread else state.spread,
            rule=rule_state,
            inner_state=inner_state,
        )

    return Declared(init, update, name="reset_units", needs=("activities",))


class _Reset(NamedTuple):
    """What a reset knows beside arrays.

    Attributes:
      rule: chooses the units.
      initializer: draws a kernel, or None.
      begin: the wrapped optimiser's ``init``.
      axes: which axes are inputs and outputs.
      params: the parameters.
      layers: the hidden layers.
      structure: of the bare parameters.
    """

    rule: UnitRule
    initializer: Initializer | None
    begin: Callable[[optax.Params], optax.OptState]
    axes: Axes
    params: optax.Params
    layers: tuple[HiddenLayer, ...]
    structure: Any

    def new_steps(
        self, leaves: list[Any], steps: list[Any], seen: list[Any], own: tuple[Any, ...], draw_key: jax.Array
    ) -> tuple[Any, ...]:
        """Return the steps, those of reset units to their new weights, and what is kept after them."""
        resets, spread, rule_state, inner_state = own
        moved = [leaf + step.astype(leaf.dtype) for leaf, step in zip(leaves, steps, strict=True)]
        masks, rule_state = self._chosen(moved, seen, rule_state)
        if self.initializer is None:
            # 0 before the first update, of a layer that came later, and of a kernel that began constant.
            spread = [
                jnp.where(before == 0, now.astype(before.dtype), before)
                for now, before in zip(_spreads(self.layers, leaves), spread, strict=True)
            ]
        slices = _slices(self.layers, masks, len(leaves))

        def renew(steps: list[Any], inner_state: Any) -> tuple[list[Any], Any]:
            drawn = _drawn(self.layers, leaves, spread, draw_key, self.initializer)
            weights = _renewed_weights(self.layers, masks, moved, drawn)
            to_new = [
                where_new(new, (to - leaf).astype(step.dtype), step, leaf.shape)
                for new, to, leaf, step in zip(slices, weights, leaves, steps, strict=True)
            ]
            begun = self.begin(_tree.like(weights, self.params))
            return to_new, renewed(inner_state, begun, renewal_of(self.params, weights, slices, self.axes))

        some = jnp.any(jnp.stack([jnp.any(mask) for mask in masks]))
        steps, inner_state = when(some, renew, lambda *same: same, steps, inner_state)
        resets = sum((jnp.sum(mask).astype(resets.dtype) for mask in masks), start=resets)
        return steps, (resets, spread, rule_state, inner_state)

    def _chosen(self, moved: list[Any], seen: list[Any], rule_state: Any) -> tuple[list[jax.Array], Any]:
        """Return a mask of the units that the rule chooses in each layer, and the rule's state."""
        outgoing_sizes = [_outgoing(one, moved) for one in self.layers]
        chosen, new_rule_state = self.rule.update(
            _of_layers(self.layers, self.structure, [h.reshape(-1, h.shape[-1]) for h in seen]),
            _of_layers(self.layers, self.structure, outgoing_sizes),
            rule_state,
        )
        # One batch that is no number would stay in running means for good.
        finite = jnp.all(jnp.stack([jnp.isfinite(array).all() for array in (*seen, *outgoing_sizes)]))
        masks = [jnp.logical_and(finite, mask) for mask in _by_layer(self.layers, chosen)]
        return masks, jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_rule_state, rule_state)


def _of_layers(layers: tuple[HiddenLayer, ...], structure: Any, values: list[Any]) -> Any:
    """Return a tree like the parameters with each value at the kernel of its layer, masked elsewhere."""
    nodes: list[Any] = [optax.MaskedNode()] * structure.num_leaves
    for one, value in zip(layers, values, strict=True):
        nodes[one.kernel.leaf] = value
    return jax.tree.unflatten(structure, nodes)


def _by_layer(layers: tuple[HiddenLayer, ...], tree: Any) -> list[Any]:
    """Return the values of such a tree in the order of the layers, which is not that of the leaves."""
    leaves = jax.tree.leaves(tree)
    places = sorted(one.kernel.leaf for one in layers)
    return [leaves[places.index(one.kernel.leaf)] for one in layers] if leaves else []


def _without_others(layers: tuple[HiddenLayer, ...], activities: Any, params: optax.Params) -> Any:
    """Return activities with a 0, which nobody reads, for what was not observed and is no hidden layer."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    read = {paths[one.kernel.leaf] for one in layers}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0.0 if _tree.is_masked(leaf) and path not in read else leaf,
        _tree.bare(activities),
        is_leaf=_tree.is_masked,
    )


def _activities(layers: tuple[HiddenLayer, ...], seen: list[Any]) -> list[jax.Array]:
    """Return the activities of each hidden layer, shape [examples, units]."""
    found = []
    for one in layers:
        given = seen[one.kernel.leaf]
        if np.shape(given)[-1:] != (one.units,):
            raise ValueError(
                f"activities has shape {np.shape(given)} at a kernel of {one.units} units: units must be its "
                "last axis, with batch axes in front of it. For kernels that have their outputs first, give "
                'axes=, such as axes="equinox".'
            )
        given = jnp.asarray(given)
        found.append(given[None] if given.ndim == 1 else given)
    return found


def _outgoing(layer: HiddenLayer, leaves: list[jax.Array]) -> jax.Array:
    """Return the sum of the magnitudes of the outgoing weights of each unit."""

    def sums(side: Side) -> jax.Array:
        size = _tree.magnitude(leaves[side.leaf])
        total = jnp.sum(size, axis=[axis for axis in range(size.ndim) if axis != side.axis])
        return jnp.sum(total.reshape(side.repeats, layer.units), axis=0)

    first, *others = map(sums, layer.outgoing)
    return sum((other.astype(first.dtype) for other in others), start=first)


def _spreads(layers: tuple[HiddenLayer, ...], leaves: list[jax.Array]) -> list[jax.Array]:
    kernels = [leaves[one.kernel.leaf] for one in layers]
    return [jnp.std(kernel.astype(_tree.wide_dtype(kernel))) for kernel in kernels]


def _drawn(
    layers: tuple[HiddenLayer, ...],
    leaves: list[jax.Array],
    spread: list[jax.Array],
    key: jax.Array,
    initializer: Initializer | None,
) -> list[jax.Array]:
    """Return a new kernel for each hidden layer."""
    drawn = []
    for number, one in enumerate(layers):
        kernel, own_key = leaves[one.kernel.leaf], jax.random.fold_in(key, number)
        if initializer is not None:  # JAX's divide by the inputs, and take the last axis for the outputs
            shape = (*np.delete(kernel.shape, one.kernel.axis).tolist(), one.units)
            drawn.append(jnp.moveaxis(initializer(own_key, shape, kernel.dtype), -1, one.kernel.axis))
        else:
            normal = jax.random.normal(own_key, kernel.shape, _tree.wide_dtype(kernel))
            drawn.append(spread[number] * normal)
    return drawn


def _slices(layers: tuple[HiddenLayer, ...], masks: list[jax.Array], number: int) -> list[Slices]:
    """Return for each leaf its axes with units, and the positions of chosen units along each."""
    slices: list[Slices] = [[] for _ in range(number)]
    for one, mask in zip(layers, masks, strict=True):
        for side in (one.kernel, one.bias, *one.outgoing):
            if side is not None:
                slices[side.leaf].append((side.axis, jnp.tile(mask, side.repeats)))
    return slices


def _renewed_weights(
    layers: tuple[HiddenLayer, ...], masks: list[jax.Array], moved: list[jax.Array], drawn: list[jax.Array]
) -> list[jax.Array]:
    """Return the leaves with the weights of the chosen units renewed, layer by layer."""
    weights = list(moved)

    def renew(side: Side, mask: jax.Array, value: Any) -> None:
        leaf = weights[side.leaf]
        weights[side.leaf] = where_new([(side.axis, jnp.tile(mask, side.repeats))], value, leaf, leaf.shape)

    for one, mask, kernel in zip(layers, masks, drawn, strict=True):
        renew(one.kernel, mask, kernel.astype(moved[one.kernel.leaf].dtype))
        if one.bias is not None:
            renew(one.bias, mask, 0)
        for reader in one.outgoing:
            renew(reader, mask, 0)
    return weights
