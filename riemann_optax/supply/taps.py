"""What a loss function shows of its inside: the model's outputs, and what its layers receive and send on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _tree
from riemann_optax._declare import trace_state
from riemann_optax.supply import marks, program

Signal = Literal["inputs", "activities"]


class Outputs:
    """The outputs of a model in one evaluation of its loss.

    Args:
      given: what takes the place of the outputs, in a list of one; None leaves them as they are.
    """

    def __init__(self, given: list[Any] | None = None) -> None:
        self.given = given
        self.found: list[tuple[str, Any]] = []
        self.trace = trace_state()
        self.inside = False  # seen where values are of one example, or do not last

    def pass_on(self, source: str, value: Any) -> Any:
        """Keep outputs, and return what goes on in their place."""
        if trace_state() != self.trace:
            self.inside = True
            return value
        self.found.append((source, value))
        return value if self.given is None else self.given[0]

    def only(self) -> Any:
        """Return the outputs.

        Raises:
          ValueError: where there are none, or several.
        """
        marked = [value for source, value in self.found if source == "marked"] or [v for _, v in self.found]
        if len(marked) != 1:
            seen = "not seen" if not marked else f"seen {len(marked)} times"
            if self.inside and not marked:
                seen = "seen inside of a vmap, jit or loop only"
            raise ValueError(
                f"the outputs of the model were {seen} in the loss function: mark them in it, outputs = "
                "riemann_optax.supply.outputs(outputs), once and outside of vmap and jit; outputs of several "
                "calls together, as a tuple."
            )
        return marked[0]


_outputs: ContextVar[Outputs | None] = ContextVar("outputs", default=None)


@contextmanager
def watch_outputs(given: list[Any] | None = None) -> Iterator[Outputs]:
    """Keep the outputs of the model, or put others in their place, inside of the ``with`` block."""
    watcher = Outputs(given)
    token = _outputs.set(watcher)
    try:
        yield watcher
    finally:
        _outputs.reset(token)


def watching() -> bool:
    """Return whether somebody waits for the outputs."""
    return _outputs.get() is not None


def outputs_seen(value: Any) -> Any:
    """Pass on the result of the model's outermost module, which a library has called."""
    return _pass_on("seen", value)


def outputs(value: Any) -> Any:
    """Mark the outputs of a model inside of a loss function, and return them.

    For the phis that differentiate the outputs and the loss apart (``gauss_newton_curvature``,
    ``memory_aware_synapses``). The result of one call of an NNX or Linen model is seen without; a model of
    Haiku, of Equinox or of plain functions needs this mark. It also says where the model ends: of a model
    without it a function of single outputs in the loss, such as their square, counts as the nonlinearity of
    the last layer (``activities``). Outside of :func:`riemann_optax.value_and_grad` it does nothing.

    Args:
      value: the outputs, an array or a tree, with examples along the first axis; outside of any ``vmap``.

    Returns:
      The same value.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> def loss(w, batch):
      ...     return jnp.mean((ro.supply.outputs(batch["x"] * w) - batch["y"]) ** 2)
      >>> step = ro.value_and_grad(loss, needs=("outputs_fn", "outputs_loss_fn"))
      >>> batch = {"x": jnp.array([1.0, 2.0]), "y": jnp.zeros(2)}
      >>> value, gradient, extra = step(jnp.array(3.0), batch)
      >>> print(extra["outputs_fn"](jnp.array(5.0)), extra["outputs_loss_fn"](jnp.ones(2)))
      [ 5. 10.] 1.0
    """
    return _pass_on("marked", value)


def _pass_on(source: str, value: Any) -> Any:
    watcher = _outputs.get()
    if watcher is not None:
        return watcher.pass_on(source, value)
    recorder = _recorder.get()
    if recorder is not None:
        for leaf in jax.tree.leaves(value):
            marks.mark(marks.OUTPUTS if source == "marked" else marks.SEEN, leaf)
    return value


class Mark(NamedTuple):
    """A signal of one weight array in one call of its layer.

    Attributes:
      name: of the mark in the program.
      axes: how many of its last axes belong to the weights of one layer.
      ndim: the number of axes of the weights in this call: one less than they have where a scan or a vmap
        stacks layers.
      stacked: how many of those axes a vmap has put before the last ``axes`` of the signal.
    """

    name: str
    axes: int
    ndim: int
    stacked: int = 0


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

    def keep(self, index: int | None, value: Any, axes: int, weights: Any, sent: Any = None) -> Mark:
        """Mark a signal of a leaf, which is ``weights`` in this call of a layer that gives ``sent``."""
        self.number += 1
        made = Mark(f"{self.signal}/{index}/{self.number}", axes, jnp.ndim(weights))
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
        signals = {index: self._own(index, found, stacked) for index in range(len(self.leaves))}
        for index, pairs in signals.items():
            beside = "read besides by what is no layer" if f"{marks.UNSEEN}/{index}" in found else ""
            for reason in filter(None, (beside, *(self._mixed(index, *pair) for pair in pairs))):
                self.refused.setdefault(index, reason)
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
            if (index in one.sources.read if leaf is not None else index == one.sources.same)
        ]
        learned = [pair for pair in read if pair[1].learns and index in pair[1].sources.differentiated]
        return learned or read

    def _mixed(self, index: int, made: Mark, marked: program.Marked) -> str:
        """Return why a signal does not belong to the entries of a leaf; empty where it does."""
        if index in marked.sources.turned and made.ndim + made.stacked < self.leaves[index].ndim:
            return "layers that are stacked along another axis than the first"
        if self.signal == "inputs" and marked.sources.entries != index:
            return "a layer whose weights are computed from these"
        return ""

    def _of_leaf(self, index: int, own: list[tuple[Mark, program.Marked]]) -> Any:
        values = []
        for made, marked in own:
            value = marked.value if self.signal == "inputs" else marked.sent_on
            scanned = self.leaves[index].ndim - made.ndim - made.stacked
            if scanned > 1 or (scanned and made.stacked):
                raise ValueError(
                    f"the {self.signal} of {_tree.leaf_name(self.paths[index])}, which stacks layers along "
                    "more than one axis, cannot be observed: keep it from this phi with optax.partition."
                )
            if scanned:
                value = jnp.moveaxis(value, 0, value.ndim - made.axes - 1)
            values.append(value)
        if len(values) == 1:
            return values[0]
        axes = own[0][0].axes
        if any(
            value.shape[value.ndim - axes :] != values[0].shape[values[0].ndim - axes :] for value in values
        ):
            raise ValueError(
                f"the {self.signal} of {_tree.leaf_name(self.paths[index])} differ in shape between calls "
                "of its layer: keep it from this phi with optax.partition."
            )
        rows = [value.reshape(-1, *value.shape[value.ndim - axes :]) for value in values]
        return jnp.concatenate(rows)  # a layer that is called several times has seen all of it


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


_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def recording() -> Recorder | None:
    """Return the recorder of the evaluation under way."""
    return _recorder.get()


def record(
    signal: Signal,
    params: Any,
    evaluate: Callable[[Any], Any],
    is_partitioned: Callable[[], bool] = lambda: False,
) -> Any:
    """Return a tree like ``params`` with the signal of each leaf in one evaluation of the loss."""
    recorders: list[Recorder] = []

    def watched(params: Any) -> Any:
        recorder = Recorder(signal, params)
        recorders[:] = [recorder]
        token = _recorder.set(recorder)
        try:
            return evaluate(params)
        finally:
            _recorder.reset(token)

    found = program.marked_values(watched, params)
    return jax.tree.unflatten(jax.tree.structure(params), recorders[0].collect(found, is_partitioned))


def observe(parameter: Any, *, inputs: Any = None, activities: Any = None) -> None:
    """Tell, where a layer of one's own is used, what it receives and what its neurons send on.

    For the phis that read ``inputs`` (``idbd``, ``autostep``) or ``activities`` (``sliding_threshold``). The
    usual layers of NNX, Linen, Haiku and Equinox are observed without. May stand inside of ``vmap``, ``jit``,
    ``remat`` and ``scan``; outside of :func:`riemann_optax.value_and_grad` it does nothing.

    Args:
      parameter: the weights, the very array (or NNX variable) that the loss function was given.
      inputs: what each of them multiplies, shaped like the weights without the axes of the fan-out, with any
        batch axes in front; the number 1 for a bias.
      activities: those of the neurons, shaped like the weights without the axes of the fan-in, likewise.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> def loss(params, batch):
      ...     def neuron(x):  # of one example
      ...         y = jnp.tanh(x @ params["w"])
      ...         ro.supply.observe(params["w"], inputs=x, activities=y)
      ...         return y
      ...     return jnp.mean((jax.vmap(neuron)(batch["x"]) - batch["y"]) ** 2)
      >>> step = ro.value_and_grad(loss, needs="inputs")
      >>> batch = {"x": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "y": jnp.zeros([2, 1])}
      >>> _, _, extra = step({"w": jnp.ones([2, 1])}, batch)
      >>> print(extra["inputs"]["w"])
      [[1. 2.]
       [3. 4.]]
    """
    recorder = _recorder.get()
    if recorder is None:
        return
    value = inputs if recorder.signal == "inputs" else activities
    index = recorder.index(parameter)
    if index is None and hasattr(parameter, "get_metadata"):
        index = parameter.get_metadata().get(METADATA)
    if index is None:
        raise ValueError(
            "observe: parameter is none of the arrays that the loss function was given: pass the very array, "
            "not one computed from it."
        )
    if value is not None:
        recorder.told.add(index)
        if recorder.signal == "inputs" and jnp.ndim(value) == 0:
            recorder.constant.add(index)
        else:
            weights = parameter[...] if hasattr(parameter, "get_metadata") else parameter
            axes = max(jnp.ndim(weights) - 1, 1) if recorder.signal == "inputs" else 1
            recorder.keep(index, value, axes, weights)


# By which a variable of Flax NNX is known again inside of its transformations.
METADATA = "riemann_optax_leaf"
