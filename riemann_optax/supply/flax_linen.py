"""Layers of Flax Linen, imported where Linen is: watched by ``nn.intercept_methods``."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from riemann_optax.supply import calls, taps
from riemann_optax.supply.calls import Call
from riemann_optax.supply.derived import CALL_OF_ITS_OWN, shown_once
from riemann_optax.supply.recorder import Recorder, Weight

_NORMS = (linen.BatchNorm, linen.LayerNorm, linen.RMSNorm, linen.GroupNorm, linen.InstanceNorm)
_LAYERS = (linen.Dense, linen.DenseGeneral, linen.Conv, linen.Embed, *_NORMS)
_WEIGHTS = ("kernel", "scale", "embedding")
_KNOWN = (linen.Dropout, *_LAYERS)


@contextmanager
def watch() -> Iterator[None]:
    """Show the calls of layers and the outputs of outermost modules inside of the ``with`` block."""
    watcher = _Watcher()
    with linen.intercept_methods(watcher):
        yield


class _Watcher:
    def __init__(self) -> None:
        self.busy = False
        self.depth = 0

    def __call__(self, go_on: Callable[..., Any], arguments: Any, keywords: Any, context: Any) -> Any:
        module, method = context.module, context.method_name
        if self.busy or method in ("setup", "__post_init__"):
            return go_on(*arguments, **keywords)
        known = method == "__call__" and isinstance(module, _KNOWN)
        if known:
            arguments, keywords = calls.positional(type(module).__call__, arguments, keywords)
        if isinstance(module, linen.BatchNorm) and method == "__call__":
            arguments, keywords = _statistics(module, arguments, keywords)
        recorder = taps.recording()

        def call() -> Any:
            return go_on(*arguments, **keywords)

        def show(sent: Any, by_super: bool) -> None:
            self._show(module, arguments, keywords, sent, by_super)

        self.depth += 1
        try:
            if recorder is not None and known and arguments:
                sent = shown_once(recorder, module, call, show)
            else:
                sent = call()
        finally:
            self.depth -= 1
        if method == "attend" and recorder is not None and isinstance(module, linen.Embed):
            recorder.refuse(_weight(module, recorder, "embedding"), calls.READS_OUT)
        return taps.outputs_seen(sent) if self.depth == 0 else sent

    def _show(self, module: Any, arguments: Any, keywords: Any, sent: Any, by_super: bool) -> None:
        recorder = taps.recording()
        if recorder is None:
            return
        if isinstance(module, linen.Dropout):
            calls.border(arguments[0], recorder)
            return
        call = _call(module, recorder, arguments[0], sent, self._again(arguments, keywords))
        calls.show(call._replace(refused=call.refused or _refused(module, by_super)), recorder)

    def _again(self, arguments: Any, keywords: Any) -> Callable[..., Any]:
        """Return a function that calls another module on the same, unwatched."""

        def again(module: Any, variables: Any) -> Any:
            self.busy = True
            try:
                sent, _ = module.apply(variables, *arguments, mutable=True, **keywords)
            finally:
                self.busy = False
            return sent

        return again


def _kind(module: Any) -> Any:
    """Return which of the known layers a module is, or is derived from."""
    return next(kind for kind in _LAYERS if isinstance(module, kind))


def _plain(module: Any, **attributes: Any) -> Any:
    """Return a layer of the known class with a module's attributes, some of them replaced."""
    kind = _kind(module)
    names = {field.name for field in dataclasses.fields(kind) if field.init} - {"parent", "name"}
    return kind(**{name: getattr(module, name) for name in names} | attributes, parent=None)


def _refused(module: Any, by_super: bool) -> str:
    """Return why the inputs of a derived layer cannot be told; empty where they can."""
    kind = _kind(module)
    if type(module).param is not kind.param:
        return calls.PARAMETERS_OF_ITS_OWN
    return "" if by_super or type(module).__call__ is kind.__call__ else CALL_OF_ITS_OWN


def _statistics(module: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of a BatchNorm's call, with the statistics that this evaluation may take."""
    given = arguments[1] if len(arguments) > 1 else keywords.get("use_running_average")
    running = module.use_running_average if given is None else given
    if running or not calls.takes_running_statistics(f"BatchNorm ({'/'.join(module.path)})"):
        return arguments, keywords
    if given is None:  # the module of this application alone: Linen makes another for each
        object.__setattr__(module, "use_running_average", True)
        return arguments, keywords
    return arguments[:1], {**keywords, "use_running_average": True}


def _call(module: Any, recorder: Recorder, received: Any, sent: Any, again: Callable[..., Any]) -> Call:
    weight, bias = _weight(module, recorder, *_WEIGHTS), _weight(module, recorder, "bias")
    call = Call(received, sent, weight, bias, lambda: received)
    if isinstance(module, linen.Embed):
        return call._replace(inputs=lambda: calls.one_hot(received, module.num_embeddings))
    if isinstance(module, _NORMS):
        others = {name: value for name, value in module.variables.items() if name != "params"}
        unit = {name: False for name in ("use_scale", "use_bias") if hasattr(module, name)}
        axis = getattr(module, "feature_axes", getattr(module, "axis", -1))
        return calls.of_norm(call, axis, lambda: again(_plain(module, **unit), others))
    if isinstance(module, linen.Conv):
        shape = jnp.shape(call.weight.value) if call.weight is not None else ()

        def patches() -> Any:
            unit = calls.unit_kernel(shape, len(shape) - 1, module.param_dtype)
            copying = _plain(module, features=unit.shape[-1], use_bias=False, mask=None)
            seen = again(copying, {"params": {"kernel": unit}})
            return seen.reshape(*seen.shape[:-1], *shape[:-1])

        refused = "" if module.feature_group_count == 1 else "a convolution of several groups"
        return call._replace(inputs=patches, input_axes=len(shape) - 1, refused=refused)
    if isinstance(module, linen.DenseGeneral):
        outputs = 1 if isinstance(module.features, int) else len(module.features)
        refused = "batch_dims" if tuple(module.batch_dims) else ""
        last, axes = calls.features_last(received, module.axis)
        return call._replace(inputs=lambda: last, input_axes=axes, output_axes=outputs, refused=refused)
    return call


def _weight(module: Any, recorder: Recorder, *names: str) -> Weight | None:
    for name in names:
        value = module.get_variable("params", name)
        if value is not None:
            value = getattr(value, "value", value)  # of a box, such as nn.Partitioned
            found = recorder.index(value)
            return Weight(
                _by_path(recorder, module, name, jnp.shape(value)) if found is None else (found,), value
            )
    return None


def _by_path(recorder: Recorder, module: Any, name: str, shape: tuple[int, ...]) -> tuple[int | None, ...]:
    """Return the leaves whose path ends with that of a parameter of this shape.

    Lifted transformations copy arrays, and take a row of a stack; and a loss may convert them: then no leaf
    is the very array.
    """
    wanted = (*module.path, name)
    found = tuple(
        index
        for index, path in enumerate(recorder.paths)
        if tuple(
            str(getattr(entry, "key", entry)) for entry in path if entry != jax.tree_util.GetAttrKey("value")
        )[-len(wanted) :]
        == wanted
        and _is_row(shape, recorder.leaves[index].shape)
    )
    return found or (None,)


def _is_row(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Return whether arrays of a shape may be stacked to one of another, along any axes."""
    sizes = iter(whole)
    return all(size in sizes for size in shape)
