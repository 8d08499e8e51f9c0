"""Models of Flax NNX, imported where one is used: split in functional form, and their layers watched.

What is watched is a copy that belongs to one evaluation: its layers get a class of their own, and the user's
model is never changed.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from flax import nnx

from riemann_optax import _tree
from riemann_optax._axes import entry_key
from riemann_optax.supply import calls, taps
from riemann_optax.supply.calls import Call
from riemann_optax.supply.companions import keys_of
from riemann_optax.supply.derived import CALL_OF_ITS_OWN, shown_once, watched_class
from riemann_optax.supply.recorder import Weight

_NORMS = (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm)
_LAYERS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.Embed, *_NORMS)
_WEIGHTS = ("kernel", "scale", "embedding")


class Functional(NamedTuple):
    """A model as a function of its trained parameters.

    Attributes:
      model: the module.
      graph: its static structure.
      boxed: the trained parameters, in their variables.
      params: their arrays, as the optimiser's transformation sees them.
      boxed_rest: all other variables: statistics, counters and keys of random numbers.
      rest: their arrays before the step, which the variables of the model will not be after it.
    """

    model: Any
    graph: Any
    boxed: Any
    params: Any
    boxed_rest: Any
    rest: Any

    def evaluate(self, loss: Callable[[Any], Any], params: Any, example: Any = None) -> tuple[Any, Any]:
        """Return the loss at parameters and the state after it, which is this one's before.

        Args:
          loss: the loss of a model.
          params: the parameters.
          example: the number of the example, to have random numbers of its own; None for a batch.
        """
        copy = nnx.merge(self.graph, params, keys_of(self.boxed_rest, self.rest, example))
        if calls.is_watched():
            watch(copy, params)
        result = loss(copy)
        rest = nnx.state(copy, self.others())
        known, sown = self._known_and_sown(rest)
        return result, (_tree.bare(known), sown)

    def others(self) -> Any:
        """Return a filter of all variables of a copy but the trained ones."""
        trained = {_plain(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.params)}
        return lambda path, _: tuple(str(part) for part in path) not in trained

    def gradients(self, gradients: Any) -> Any:
        """Return gradients in the form that ``nnx.Optimizer`` takes."""
        return _tree.like(gradients, self.boxed)

    def _known_and_sown(self, rest: Any) -> tuple[Any, Any]:
        """Return the state of the variables that were there before, and of those that are new or have grown.

        ``sow`` makes a variable, and adds to it where it is called again.
        """
        before, after = dict(nnx.to_flat_state(self.boxed_rest)), dict(nnx.to_flat_state(rest))
        sown = {path: variable for path, variable in after.items() if not _alike(variable, before.get(path))}
        known = {path: before[path] if path in sown else after.get(path, before[path]) for path in before}
        return nnx.from_flat_state(known), nnx.from_flat_state(sown)

    def write_back(self, rest: Any) -> None:
        """Put the state after the evaluation into the user's model."""
        known, sown = rest
        nnx.update(self.model, _tree.like(known, self.boxed_rest))
        nnx.update(self.model, sown)


def _alike(variable: Any, before: Any) -> bool:
    """Return whether a variable has as many arrays as before."""
    if before is None:
        return False
    structures = {str(jax.tree.structure(_tree.bare(one))) for one in (variable, before)}
    return len(structures) == 1


def functional(model: Any, wrt: Any) -> Functional:
    """Split a module into what is trained, ``wrt`` (``nnx.Param`` where None), and the rest."""
    if isinstance(wrt, nnx.DiffState):  # as nnx.grad takes it; here the model is always the first argument
        wrt = wrt.filter
    split: Any = nnx.split  # its type does not say that two filters make two states
    graph, boxed, rest = split(model, nnx.Param if wrt is None else wrt, ...)
    return Functional(model, graph, boxed, _tree.bare(boxed), rest, _tree.bare(rest))


def _plain(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(entry_key(entry)) for entry in path)


def watch(copy: Any, params: Any = None) -> None:
    """Watch the layers of a copy, which must belong to the evaluation under way alone.

    Args:
      copy: the module.
      params: its parameters, by whose paths its variables are known; None knows them by their arrays.
    """
    recorder = taps.recording()
    leaves = {
        _plain(path): index for index, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params))
    }
    for path, node in list(nnx.iter_graph(copy)):
        if isinstance(node, nnx.Variable):
            index = leaves.get(tuple(map(str, path)))
            if params is None and recorder is not None:
                index = recorder.index(node.get_raw_value())
            if index is not None:
                node.set_metadata(**{taps.METADATA: index})
        elif isinstance(node, nnx.Dropout | _Known):
            watched: Any = node
            watched._watched_name = ".".join(map(str, path)) or "the model itself"
            kind: Any = type(node)
            watched.__class__ = _watched(kind)
    if callable(copy):
        outer: Any = type(copy)
        copy.__class__ = _outermost(outer)


_Known = _LAYERS[0]
for _layer in _LAYERS[1:]:
    _Known = _Known | _layer  # type: ignore[assignment]


@functools.cache
def _outermost(kind: Any) -> Any:
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return taps.outputs_seen(kind.__call__(self, *arguments, **keywords))

    return type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


@functools.cache
def _watched(kind: Any) -> Any:
    return watched_class(kind, (nnx.Dropout, *_LAYERS), _watched, _methods)


def _methods(kind: Any) -> dict[str, Any]:
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        arguments, keywords = calls.positional(kind.__call__, arguments, keywords)
        if kind is nnx.BatchNorm:
            keywords = _statistics(self, arguments, keywords)
            arguments = arguments[:1]
        recorder = taps.recording()
        again = functools.partial(kind.__call__, self, *arguments, **keywords)
        if recorder is None or not arguments:
            return again()
        before = _copies_of_statistics(self)

        def show(sent: Any, by_super: bool) -> None:
            del by_super  # the layer's own call has methods of its own
            if isinstance(self, nnx.Dropout):
                calls.border(arguments[0], recorder)
            else:
                shown = _call(self, arguments[0], sent, again, before)
                refused = "" if kind in _LAYERS else CALL_OF_ITS_OWN
                calls.show(shown._replace(refused=shown.refused or refused), recorder)

        return shown_once(recorder, self, again, show)

    def attend(self: Any, *arguments: Any, **keywords: Any) -> Any:
        recorder = taps.recording()
        if recorder is not None:
            recorder.refuse(_weight(self.embedding), calls.READS_OUT)
        return kind.attend(self, *arguments, **keywords)

    return {"__call__": call, **({"attend": attend} if issubclass(kind, nnx.Embed) else {})}


def _statistics(layer: Any, arguments: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of a BatchNorm's call, with the statistics that this evaluation may take."""
    given = arguments[1] if len(arguments) > 1 else keywords.get("use_running_average")
    running = layer.use_running_average if given is None else given
    if not running and calls.takes_running_statistics(f"BatchNorm ({layer._watched_name})"):
        running = True
    return {**keywords, "use_running_average": running}


def _copies_of_statistics(layer: Any) -> dict[str, Any]:
    if not isinstance(layer, nnx.BatchNorm):
        return {}
    return {name: nnx.BatchStat(vars(layer)[name][...]) for name in ("mean", "var")}


def _call(layer: Any, received: Any, sent: Any, again: Callable[[], Any], statistics: dict[str, Any]) -> Call:
    variables = {name: vars(layer).get(name) for name in (*_WEIGHTS, "bias")}
    weight = next((_weight(variables[name]) for name in _WEIGHTS if variables[name] is not None), None)
    bias = None if variables["bias"] is None else _weight(variables["bias"])
    call = Call(received, sent, weight, bias, lambda: received)
    if isinstance(layer, nnx.Embed):
        return call._replace(inputs=lambda: calls.one_hot(received, layer.num_embeddings))
    if isinstance(layer, _NORMS):

        def normalised() -> Any:
            own = {name: None for name in ("scale", "bias") if name in vars(layer)}  # an RMSNorm has no bias
            with _instead(layer, **own, **statistics):
                return again()

        axis = getattr(layer, "feature_axes", getattr(layer, "axis", -1))
        return calls.of_norm(call, axis, normalised)
    if isinstance(layer, nnx.Conv):
        kernel = layer.kernel[...]

        def patches() -> Any:
            unit = nnx.Param(calls.unit_kernel(kernel.shape, kernel.ndim - 1, kernel.dtype))
            with _instead(layer, kernel=unit, bias=None, use_bias=False, mask=None):
                seen = again()
            return seen.reshape(*seen.shape[:-1], *kernel.shape[:-1])

        refused = "" if layer.feature_group_count == 1 else "a convolution of several groups"
        return call._replace(inputs=patches, input_axes=kernel.ndim - 1, refused=refused)
    if isinstance(layer, nnx.LinearGeneral):
        outputs = 1 if isinstance(layer.out_features, int) else len(layer.out_features)
        last, axes = calls.features_last(received, layer.axis)
        refused = "batch_axis" if layer.batch_axis else ""
        return call._replace(inputs=lambda: last, input_axes=axes, output_axes=outputs, refused=refused)
    return call


def _weight(variable: Any) -> Weight:
    return Weight((variable.get_metadata().get(taps.METADATA),), variable[...])


@contextmanager
def _instead(layer: Any, **attributes: Any) -> Iterator[None]:
    """Put other values into the attributes of a layer of our own copy."""
    kept = {name: vars(layer)[name] for name in attributes}
    vars(layer).update(attributes)
    try:
        yield
    finally:
        vars(layer).update(kept)
