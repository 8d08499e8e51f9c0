"""Transplant the state of one chain into another: keep what fits, begin the rest anew, and report it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check, _tree, sharding
from riemann_optax.boundary import is_nnx_optimizer, parameters_of, trained
from riemann_optax.checkpoint import growing
from riemann_optax.checkpoint.compressed import narrow, wide
from riemann_optax.checkpoint.growing import Weight
from riemann_optax.checkpoint.matching import (
    Path,
    Station,
    align,
    containers_of,
    is_below,
    kind_of,
    listed,
    same_leaves,
    stations,
)
from riemann_optax.eigenbasis import InEigenbasisState
from riemann_optax.inspect import RecordMetricState

_NAMED = 6  # arrays of a kind that a printed report lists


class TransplantReport(NamedTuple):
    """What :func:`transplant` did with each array, by its path in the new state; ``print`` shows it.

    Attributes:
      kept: arrays with the old values, and their paths in the old state.
      grown: kept arrays that have grown, with the old and the new shape.
      cast: kept arrays with a new dtype, with both dtypes.
      begun_anew: arrays as ``tx.init`` makes them, and why.
      dropped: old paths of arrays that have no place in the new state.
    """

    kept: dict[str, str]
    grown: dict[str, str]
    cast: dict[str, str]
    begun_anew: dict[str, str]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        """Return a readable summary of a few lines."""
        kept = [here if here == there else f"{here} (was {there})" for here, there in self.kept.items()]
        lines = {
            "kept": kept,
            "grown": [f"{path} {change}" for path, change in self.grown.items()],
            "cast": [f"{path} {change}" for path, change in self.cast.items()],
            "begun anew": [f"{path} ({reason})" for path, reason in self.begun_anew.items()],
            "dropped": list(self.dropped),
        }
        return "\n".join(f"{what}: {_some(items)}" for what, items in lines.items())


def transplant(
    state: optax.OptState,
    tx: optax.GradientTransformation,
    params: optax.Params,
    *,
    old_params: optax.Params | None = None,
    places: Mapping[str, str] | None = None,
    anew: Sequence[str] = (),
) -> tuple[optax.OptState, TransplantReport]:
    r"""Put the state of a run into another chain: keep what fits, begin the rest anew, and report both.

    Use it for a chain that gained or lost a recorder, a clip or a wrapper, or has another schedule, momentum
    or phi; for state in another dtype; and for parameters that have grown. States are matched by class,
    order and, if both chains have any, the keys of ``optax.partition``. Nested chains do not matter. Within a
    state, arrays are matched by path and shape, and cast to the dtypes of ``tx``. Numbers in the state, such
    as the learning rate of ``optax.inject_hyperparams`` and the counts that schedules read, are kept as well;
    list them in ``anew`` to start them again.

    With ``old_params``, arrays of grown parameters grow too: old entries stay at the front of each axis, new
    ones begin as ``tx.init`` makes them, or as the weights themselves if the state holds weights. The result
    equals the state of a run in which the new weights had no gradient, except that values which past updates
    computed from the whole model (``conformal="tree"``), or from the length of the other side
    (``correlate="whitened_gradients"``), do not change. So the means over rows and columns of
    ``factored_activity`` and ``per_neuron`` shrink by the share of the old weights, and a basis :math:`Q` of
    ``in_eigenbasis`` becomes

    .. math::
      \begin{pmatrix} Q & 0 \\ 0 & I \end{pmatrix}.

    A state has one count for all of its arrays: new entries begin at 0 without the bias correction of a first
    update, and their first steps are longer under Adam. Lower the learning rate for a few steps. Without
    ``old_params``, arrays of another shape begin anew. So does an array that is in an eigenbasis in only one
    of the chains. Where that is most of what a state had, its count and the rest begin anew with it.

    Args:
      state: the state of the run, or its ``nnx.Optimizer``.
      tx: the transformation to continue with.
      params: the parameters to continue with; or a model of Flax NNX, of which those count that the
        ``nnx.Optimizer`` trains, without one ``nnx.Param``. The state is sharded as in
        :func:`riemann_optax.sharding.init`.
      old_params: the parameters that ``state`` was made for, or their shapes.
      places: a dictionary from paths of states here to paths of their states in ``state``, if class and order
        do not determine the match. States within go with them.
      anew: paths of states or arrays here that begin anew although they fit.

    Returns:
      The state for ``tx``, which may share arrays with ``state``, and a :class:`TransplantReport`.

    Raises:
      ValueError: if the match is not unique, if ``places`` or ``anew`` names a missing path, or if an array
        cannot be grown exactly. Messages name the paths.
      TypeError: if ``state`` has no named tuples, for example after a restore without a target, or no values;
        inside of ``jit`` or ``vmap``.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> params = {"w": jnp.ones([2, 3])}
      >>> old = optax.chain(ro.scale_by_metric(ro.phi.activity()), optax.sgd(0.1)).init(params)
      >>> tx = optax.chain(ro.scale_by_metric(ro.phi.activity()), optax.sgd(0.1, 0.9), ro.track_energy())
      >>> state, report = ro.checkpoint.transplant(old, tx, params)
      >>> print(len(report.kept), len(report.begun_anew), len(report.dropped))
      3 6 0
      >>> report.begun_anew["[1][0].trace['w']"]
      'new'
    """
    tx = _check.transformation("tx", tx)
    if places is not None and not isinstance(places, Mapping):
        raise TypeError(f"places must be a dictionary from paths here to paths in state, got {places!r}.")
    _check.check_names("anew", anew)
    if params is None:
        raise ValueError("params must be the parameters of tx, got None: give their values.")
    if isinstance(state, optax.GradientTransformation):
        raise TypeError("transplant: state is the transformation: pass the state that update returns.")
    if is_nnx_optimizer(state) and parameters_of(params) is not params:
        params = trained("transplant", state, params)
    params, old_params = parameters_of(params), parameters_of(old_params)
    old_tree = wide(getattr(state, "opt_state", state))
    _check_concrete(old_tree, params)
    fresh = sharding.init(tx, params)
    if _has_states(fresh) and not _has_states(old_tree):
        raise TypeError(
            f"state must be the state of an optimiser, got a {type(old_tree).__name__} without any of its "
            "named tuples: restore it into riemann_optax.checkpoint.target(tx, params) of the old run first."
        )
    new_tree = wide(fresh)
    containers = containers_of(_tree.bare((params, old_params)))
    old, new = (list(stations(_tree.bare(tree), containers)) for tree in (old_tree, new_tree))
    begun = [j for j, one in enumerate(new) if any(is_below(jax.tree_util.keystr(one.path), a) for a in anew)]
    try:
        matched = align(old, new, places or {})
    except ValueError:  # what begins anew may be what makes it unclear
        if not begun:
            raise
        matched = align(old, new, places or {}, begun)
    weights = growing.weights_of(params, old_params)
    surgery = _Surgery(old, new, matched, weights, tuple(anew))
    filled = {
        jax.tree_util.keystr(station.path + place): surgery.array(index, place)
        for index, station in enumerate(new)
        for place in station.arrays
    }
    surgery.check_anew()
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(_tree.bare(new_tree))]
    result = jax.tree.unflatten(jax.tree.structure(new_tree), [filled[path] for path in paths])
    used = set(surgery.kept.values())
    dropped = [jax.tree_util.keystr(station.path + place) for station in old for place in station.arrays]
    report = TransplantReport(
        surgery.kept,
        surgery.grown,
        surgery.cast,
        surgery.begun_anew,
        tuple(path for path in dropped if path not in used),
    )
    changed = (*report.begun_anew, *report.grown)
    return narrow(result, fresh, getattr(state, "opt_state", state), report.kept, changed), report


def _check_concrete(state: Any, params: Any) -> None:
    """Raise ``TypeError`` where there are no values to keep."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, params))):
        raise TypeError(
            "transplant: called inside of jit or vmap, where arrays do not tell their values and where they "
            "lie: call it between two steps, outside."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"transplant: state is abstract at {jax.tree_util.keystr(path)} and has no value to keep: "
                "restore the state of the run first."
            )


class _Surgery:
    """Makes the arrays of the new state one by one, and collects the report."""

    def __init__(
        self,
        old: list[Station],
        new: list[Station],
        matched: dict[int, int],
        weights: dict[str, Weight],
        anew: tuple[str, ...],
    ) -> None:
        self.old, self.new, self.matched, self.weights, self.anew = old, new, matched, weights, anew
        self.kept: dict[str, str] = {}
        self.grown: dict[str, str] = {}
        self.cast: dict[str, str] = {}
        self.begun_anew: dict[str, str] = {}
        self.found: set[str] = set()
        self.whole: dict[int, tuple[bool, bool]] = {}
        self.recaptured: dict[int, bool] = {}

    def array(self, index: int, place: Path) -> Any:
        """Return one array of the new state."""
        station, begun = self.new[index], self.new[index].arrays[place]
        name = jax.tree_util.keystr(station.path + place)
        weight = self._weight(index, place)
        before = self.old[self.matched[index]] if index in self.matched else None
        reason = self._reason(index, place, name, before, weight)
        if before is not None and weight is not None and growing.holds_weights(station, place):
            begun = jnp.array(weight.value, dtype=begun.dtype, copy=True)
        if reason is not None or before is None:
            self.begun_anew[name] = reason or "new"
            return begun
        old = before.arrays[place]
        value = old
        if weight is not None and weight.has_grown:
            value = self._grown(index, place, before, begun, weight)
            if np.shape(old) != np.shape(begun):
                self.grown[name] = f"{np.shape(old)} -> {np.shape(begun)}"
        self.kept[name] = jax.tree_util.keystr(before.path + place)
        if value.dtype != begun.dtype:
            self.cast[name] = f"{old.dtype} -> {begun.dtype}"
            value = jnp.asarray(value).astype(begun.dtype)
        value = jnp.asarray(value)
        return value if value.sharding == begun.sharding else jax.device_put(value, begun.sharding)

    def _weight(self, index: int, place: Path) -> Weight | None:
        """Return the parameter that an array of the new state belongs to."""
        weight = growing.weight_of(place, self.weights)
        # One array for all parameters has no name: a count beside its averages is told by its dtype.
        named = weight is not None and bool(weight.path)
        return weight if named or jnp.issubdtype(self.new[index].arrays[place].dtype, jnp.inexact) else None

    def check_anew(self) -> None:
        """Raise ``ValueError`` for a path in ``anew`` that matches no array."""
        for path in self.anew:
            if path not in self.found:
                raise ValueError(
                    f"transplant: anew names {path!r}, but no array of the new state is at or below it: its "
                    f"states are {', '.join(repr(jax.tree_util.keystr(s.path)) for s in self.new)}."
                )

    def _reason(
        self, index: int, place: Path, name: str, before: Station | None, weight: Weight | None
    ) -> str | None:
        """Return why an array begins anew; None if it is kept."""
        reason = self._own_reason(index, place, name, before, weight)
        if reason is None and any(map(self._recaptures, (index, *self._above(index)))):
            return "weights inside of its eigenbasis are copied anew"
        return reason

    def _recaptures(self, index: int) -> bool:
        """Whether weights inside of a kept eigenbasis are copied anew: it would not turn these copies."""
        if self.new[index].kind is not InEigenbasisState or index not in self.matched:
            return False
        if index not in self.recaptured:
            inside = [one for one in range(len(self.new)) if index in self._above(one)]
            self.recaptured[index] = any(self._has_new_copies(one, self.new[index]) for one in inside)
        return self.recaptured[index]

    def _has_new_copies(self, index: int, eigenbasis: Station) -> bool:
        """Whether a state inside of an eigenbasis begins with copies of weights that are turned there."""
        station, before = self.new[index], self.old[self.matched[index]] if index in self.matched else None

        def is_anew(place: Path) -> bool:
            name = jax.tree_util.keystr(station.path + place)
            return self._own_reason(index, place, name, before, self._weight(index, place)) is not None

        for place in station.arrays:
            weight = growing.weight_of(place, self.weights)
            turned = weight is not None and growing.has_basis(eigenbasis, weight.path)
            if turned and growing.holds_weights(station, place) and is_anew(place):
                # A state whose init copies none does it at its own first update, if all of it begins anew.
                return growing.captures_weights(station, place) or not all(map(is_anew, station.arrays))
        return False

    def _own_reason(
        self, index: int, place: Path, name: str, before: Station | None, weight: Weight | None
    ) -> str | None:
        """Return why an array begins anew, whatever encloses its state; None if it is kept."""
        asked = [path for path in self.anew if is_below(name, path)]
        self.found.update(asked)
        if asked:
            return "asked for"
        if before is None or place not in before.arrays:
            return "new"
        reason = self._misfit(index, place, before, weight)
        if reason is not None:
            return reason
        if index not in self.whole:  # once for all arrays of a state
            self.whole[index] = self._lost(index, before), self._has_turned_weights(index, before)
        lost, turned = self.whole[index]
        if turned:
            return "the weights it holds are in other coordinates"
        return "most of the values of its state do not fit" if lost else None

    def _has_turned_weights(self, index: int, before: Station) -> bool:
        """Whether a state holds weights in other coordinates; it must then capture all of them again."""
        station = self.new[index]
        places = [p for p in station.arrays if growing.holds_weights(station, p) and p in before.arrays]
        weights = [growing.weight_of(place, self.weights) for place in places]
        return any(weight is not None and not self._same_coordinates(index, weight) for weight in weights)

    def _lost(self, index: int, before: Station) -> bool:
        """Whether so little of a state fits that its count would be wrong of the rest."""
        weights = {place: self._weight(index, place) for place in self.new[index].arrays}
        if None not in weights.values():
            return False  # it has no count
        fits, misfits = 0, 0
        for place, weight in weights.items():
            if weight is not None and place in before.arrays:
                fit = self._misfit(index, place, before, weight) is None
                fits += fit * np.size(weight.value)
                misfits += (not fit) * np.size(weight.value)
        if not fits:
            return any(weight is not None for weight in weights.values())
        # What tasks have left behind has no bias correction that a count could spoil.
        return misfits > fits and not hasattr(self.new[index].kind, "consolidated")

    def _misfit(self, index: int, place: Path, before: Station, weight: Weight | None) -> str | None:
        station = self.new[index]
        old, begun = before.arrays[place], station.arrays[place]
        if station.kind is RecordMetricState and not same_leaves(station, before):
            return "a record of other arrays"
        if kind_of(old) != kind_of(begun):
            return f"{old.dtype} in the old state"
        if weight is not None and not self._same_coordinates(index, weight):
            return "other coordinates"
        if np.shape(old) != np.shape(begun) and not (weight is not None and weight.has_grown):
            return f"shape {np.shape(old)} in the old state"
        return None

    def _grown(self, index: int, place: Path, before: Station, begun: Any, weight: Weight) -> Any:
        station = self.new[index]
        for above in (index, *self._above(index)):
            if self.new[above].kind is InEigenbasisState:
                growing.check_bases(self.new[above], self.old[self.matched[above]], weight)
                turned = above != index and growing.has_basis(self.new[above], weight.path)
                if turned and growing.holds_weights(station, place):
                    growing.refuse_turned_weights(station, place)
            elif self.new[above].kind.__name__ == "PermutedState" and above != index:
                growing.grown(self.new[above], place, before.arrays[place], begun, weight)
        return growing.grown(station, place, before.arrays[place], begun, weight)

    def _above(self, index: int, old: bool = False) -> list[int]:
        """Return the states that enclose a state."""
        known = self.old if old else self.new
        path = known[index].path
        return [i for i, s in enumerate(known) if len(s.path) < len(path) and path[: len(s.path)] == s.path]

    def _same_coordinates(self, index: int, weight: Weight) -> bool:
        """Whether an array is in its old coordinates, or in the grown ones."""
        pairs = [(above, self.matched.get(above)) for above in (index, *self._above(index))]
        mine = [(here, there) for here, there in pairs if self.new[here].kind is InEigenbasisState]
        origin = self.matched[index]
        theirs = [
            i for i in (origin, *self._above(origin, old=True)) if self.old[i].kind is InEigenbasisState
        ]
        turned_here = [(h, t) for h, t in mine if growing.has_basis(self.new[h], weight.path)]
        turned_there = [i for i in theirs if growing.has_basis(self.old[i], weight.path)]
        if weight.has_grown and turned_here and [t for _, t in turned_here] == turned_there:
            return True  # _grown checks it
        return [t for _, t in turned_here] == turned_there and all(
            growing.same_bases(self.new[h], self.old[t], weight.path) for h, t in turned_here if t is not None
        )


def _has_states(tree: Any) -> bool:
    """Whether there is a named tuple in a tree: lists and dictionaries alone are what a reader made of it."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: hasattr(node, "_fields"))
    return any(hasattr(node, "_fields") for node in nodes)


def _some(items: list[str]) -> str:
    return listed(items, _NAMED) if items else "nothing"
