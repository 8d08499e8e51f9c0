"""The signals of the layers in one evaluation of a loss, and to which weights they belong."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _tree
from riemann_optax.supply import marks, program
from riemann_optax.supply.sources import Sources

Signal = Literal["inputs", "activities"]
_TAKEN_OUT = (
    "layers that are taken out of their stack by an index, in parts (as a scan of scans or lax.map with "
    "batch_size do), or in another order: run all of the stack, as it is, by one scan or vmap, or keep the "
    "layers apart, each in parameters of its own, and call each with these"
)
_MOVED = (
    "weights that are transposed, indexed, joined, stacked or chosen before their layer has them: give it "
    "the parameters as they are"
)
_COMPUTED = "a layer whose weights are computed from these"


class Mark(NamedTuple):
    """A signal of one weight array in one call of its layer.

    Attributes:
      name: of the mark in the program.
      axes: how many of its last axes belong to the weights of one layer.
      ndim: the number of axes of the weights in this call: one less than they have where a scan or a vmap
        stacks layers.
      stacked: how many of those axes a vmap has put before the last ``axes`` of the signal.
      leaves: which leaves the weights may be; None where that is not known.
    """

    name: str
    axes: int
    ndim: int
    stacked: int = 0
    leaves: tuple[int | None, ...] = ()


class Weight(NamedTuple):
    """A parameter of a layer in one call.

    Attributes:
      leaves: which leaves it may be: one, or by its path several; None where that is not known. Which it is
        computed from is seen in the program.
      value: its array there.
    """

    leaves: tuple[int | None, ...]
    value: Any


class Recorder:
    """The signals of the layers in one evaluation of a loss.

    Args:
      signal: ``"inputs"`` or ``"activities"``.
      params: the parameters as the loss function is given them.
    """

    def __init__(self, signal: Signal, params: Any) -> None:
        self.signal = signal
        self.paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        self.leaves = jax.tree.leaves(params)
        self.by_identity = {id(leaf): index for index, leaf in enumerate(self.leaves)}
        self.number = 0
        self.marks: dict[int | None, list[Mark]] = {}
        self.remarks: dict[str, tuple[int | None, str | None]] = {}  # by a mark's name: the leaf, why refused
        self.open: list[list[Any]] = []  # of each call under way: whose it is, and whether it was shown
        self.told: set[int] = set()  # by observe
        self.constant: set[int] = set()  # weights whose input is the number 1
        self.refused: dict[int, str] = {}
        # What layers gave, and whose it is.
        self.sent: dict[int, tuple[Any, list[tuple[int | None, Any, Mark]]]] = {}

    def index(self, parameter: Any) -> int | None:
        """Return which leaf an array is, by identity."""
        return self.by_identity.get(id(parameter))

    def weight(self, parameter: Any) -> Weight:
        """Return what an array is, by identity."""
        return Weight((self.index(parameter),), parameter)

    def refuse(self, weight: Weight | None, reason: str) -> None:
        """Say why the signal of a weight cannot be told, unless the user tells it."""
        self._remark(weight, reason)

    def is_constant(self, weight: Weight | None) -> None:
        """Say that the input of a weight is the number 1."""
        self._remark(weight, None)

    def _remark(self, weight: Weight | None, reason: str | None) -> None:
        for leaf in weight.leaves if weight is not None else ():
            name = f"remark/{leaf}/{len(self.remarks)}"
            marks.mark(name, 0.0, 0, weight.value if weight is not None else None)
            self.remarks[name] = leaf, reason

    def makes(self, weight: Weight, sent: Any, axes: int) -> None:
        """Mark what a layer makes of its weight, with so many axes of features."""
        for leaf in weight.leaves:
            self.number += 1
            marks.mark(f"{marks.OWN}/{leaf}/{self.number}", sent, axes, weight.value, sent)

    def normalises(self, received: Any, sent: Any) -> None:
        """Mark what a normalisation is given and what it makes of it."""
        self.number += 1
        marks.mark(f"{marks.NORMALISED}-{self.number}", received)
        marks.mark(f"{marks.NORMALISED}-{self.number}-sent", sent)

    def keep(
        self,
        index: int | None,
        value: Any,
        axes: int,
        weights: Any,
        sent: Any = None,
        leaves: tuple[int | None, ...] = (),
    ) -> Mark:
        """Mark a signal of a leaf, one of those that ``weights`` may be in this call of a layer.

        ``sent`` is what the layer gives.
        """
        self.number += 1
        name = f"{self.signal}/{index}/{self.number}"
        made = Mark(name, axes, jnp.ndim(weights), leaves=leaves or (index,))
        marks.mark(made.name, value, axes, weights, sent)
        self.marks.setdefault(index, []).append(made)
        return made

    def collect(self, found: program.Found, is_partitioned: Callable[[], bool]) -> list[Any]:
        """Return the signal of each leaf.

        What another network shows, whose weights are not computed from a leaf, is not the leaf's. Nor is what
        a call shows through which no gradient flows, if there is another. Where phi does not see all of the
        weights, what was not observed is left out: phi itself names it, if it needs it.

        Raises:
          ValueError: that names the leaves of which nothing was seen.
        """
        stacked = dict(marks.number_stacked(name) for name in found)
        found = {marks.number_stacked(name)[0]: marked for name, marked in found.items()}
        for name, (index, reason) in self.remarks.items():
            # A library may trace a function more often than the program runs it.
            for one in found.get(name, ()):
                leaf = one.sources.same if index is None else index
                if leaf in one.sources.read and reason is None:
                    self.constant.add(leaf)
                elif leaf in one.sources.read and reason is not None:
                    self.refused[leaf] = reason
                elif index is None and reason is not None:
                    self.refused.update(dict.fromkeys(_passing(one), reason))
        for index in self._used_by_others(found):
            self.refused.setdefault(index, _COMPUTED)
        signals = {index: self._own(index, found, stacked) for index in range(len(self.leaves))}
        for index, pairs in signals.items():
            beside = "read besides by what is no layer" if f"{marks.UNSEEN}/{index}" in found else ""
            mixed = [self._mixed(index, *pair) for pair in pairs]
            for reason in filter(None, (beside, *mixed)):
                self.refused.setdefault(index, reason)
            if index in self.told and not all(mixed):  # what is told stands in the place of what is mixed
                signals[index] = [pair for pair, reason in zip(pairs, mixed, strict=True) if not reason]
        signals = {index: own for index, own in signals.items() if own}
        seen = (signals.keys() | self.constant) - (self.refused.keys() - self.told)
        lacking = [index for index in range(len(self.leaves)) if index not in seen]
        if lacking and not is_partitioned():
            raise ValueError(_not_observed(self, lacking))

        def of_leaf(index: int) -> Any:
            if index in lacking:
                return optax.MaskedNode()
            return 1.0 if index in self.constant else self._of_leaf(index, signals[index])

        return [of_leaf(index) for index in range(len(self.leaves))]

    def _own(
        self, index: int, found: program.Found, stacked: dict[str, int]
    ) -> list[tuple[Mark, program.Marked]]:
        """Return the marks of a leaf that belong to it, and what is found there."""
        read = [
            (made._replace(stacked=stacked[made.name]), one)
            for leaf in (index, None)
            for made in self.marks.get(leaf, ())
            for one in found.get(made.name, ())
            if (index in one.sources.direct if leaf is not None else index == one.sources.same)
        ]
        learned = [pair for pair in read if pair[1].learns and index in pair[1].sources.differentiated]
        return learned or read

    def _used_by_others(self, found: program.Found) -> set[int]:
        """Return the leaves from which the weights of a layer are computed that is none of theirs."""
        return {
            index
            for marks_of_leaf in self.marks.values()
            for made in marks_of_leaf
            for one in found.get(made.name, ())
            for index in _passing(one)
            if index not in (one.sources.same if leaf is None else leaf for leaf in made.leaves)
        }

    def _mixed(self, index: int, made: Mark, marked: program.Marked) -> str:
        """Return why a signal does not belong to the entries of a leaf; empty where it does."""
        if index in marked.sources.turned and made.ndim + made.stacked < self.leaves[index].ndim:
            return "layers that are stacked along another axis than the first"
        if not self._has_stack(index, made, marked.sources):
            return _TAKEN_OUT
        scanned = self.leaves[index].ndim - made.ndim - made.stacked
        several = scanned > 1 or (scanned == 1 and made.stacked)  # which `_of_leaf` refuses
        if not several and index not in marked.sources.placed:
            return _MOVED if index in marked.sources.moved else _COMPUTED
        return _COMPUTED if self.signal == "inputs" and marked.sources.entries != index else ""

    def _has_stack(self, index: int, made: Mark, sources: Sources) -> bool:
        """Return whether a signal has an axis for each of those along which a leaf stacks layers."""
        missing = self.leaves[index].ndim - made.ndim
        if missing < 1:
            return True
        if made.stacked and index not in sources.whole:
            return False
        # Further axes are those of a vmap in a vmap, or `_of_leaf` says that there are too many.
        return missing > 1 or len(_depths(index, sources)) + made.stacked == 1

    def _of_leaf(self, index: int, own: list[tuple[Mark, program.Marked]]) -> Any:
        values, axes = [], []
        for made, marked in own:
            value = marked.value if self.signal == "inputs" else marked.sent_on
            scanned = max(self.leaves[index].ndim - made.ndim - made.stacked, 0)
            if scanned > 1 or (scanned and made.stacked):
                raise ValueError(
                    f"the {self.signal} of {_tree.leaf_name(self.paths[index])}, which stacks layers along "
                    "more than one axis, cannot be observed: keep it from this phi with optax.partition."
                )
            if scanned and self._has_stack(index, made, marked.sources):
                (depth,) = _depths(index, marked.sources)
                value = jnp.moveaxis(value, depth, value.ndim - made.axes - 1)
            last = made.axes
            if made.ndim and not last:  # the layer gives a scalar; its weights have an axis for that neuron
                value, last = value[..., None], 1
            values.append(value)
            axes.append(last + max(self.leaves[index].ndim - made.ndim, 0))  # those of the stack as well
        if len(values) == 1:
            return values[0]
        shapes = [value.shape[value.ndim - last :] for value, last in zip(values, axes, strict=True)]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                f"the {self.signal} of {_tree.leaf_name(self.paths[index])} differ in shape between calls "
                "of its layer: keep it from this phi with optax.partition."
            )
        rows = [value.reshape(-1, *shape) for value, shape in zip(values, shapes, strict=True)]
        return jnp.concatenate(rows)  # a layer that is called several times has seen all of it


def _passing(marked: program.Marked) -> frozenset[int]:
    """Return the leaves from which weights are computed, by no layer, and to which a gradient flows back."""
    sources = marked.sources
    return sources.direct & sources.differentiated if marked.learns else frozenset()


def _depths(index: int, sources: Sources) -> list[int]:
    """Return in how many others the scans stand that take rows of a leaf."""
    return [depth for one, depth in sources.rows if one == index]


def _not_observed(recorder: Recorder, lacking: list[int]) -> str:
    names = [_tree.leaf_name(recorder.paths[index]) for index in lacking]
    reasons = [f" ({recorder.refused[index]})" if index in recorder.refused else "" for index in lacking]
    listed = ", ".join(f"{name}{reason}" for name, reason in zip(names, reasons, strict=True))
    return (
        f"{recorder.signal}: the layers of {listed} cannot be observed: they are no layers that "
        "riemann_optax.supply knows, were not called, or were called with arrays that are computed from "
        "these parameters. Tell it where they are used in the loss function, "
        f"riemann_optax.supply.observe(parameter, {recorder.signal}=...), keep it from "
        f"this phi with optax.partition, or choose a phi that does not read {recorder.signal}."
    )
