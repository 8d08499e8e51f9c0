"""Layers of Equinox, imported where Equinox is: their classes get another call while they are watched.

Equinox has no interception of its own, and an instance cannot have a call of its own: a model that is put
together of two trees, as ``eqx.combine`` does it, has instances of the class that both trees have.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import equinox
import jax
import jax.numpy as jnp

from riemann_optax.supply import calls, taps
from riemann_optax.supply.calls import Call
from riemann_optax.supply.derived import CALL_OF_ITS_OWN, shown_once
from riemann_optax.supply.recorder import Recorder, Weight

_NORMS = (equinox.nn.LayerNorm, equinox.nn.RMSNorm, equinox.nn.GroupNorm)
_LAYERS = (equinox.nn.Linear, equinox.nn.Conv, equinox.nn.Embedding, *_NORMS)
_KNOWN = (*_LAYERS, equinox.nn.BatchNorm, equinox.nn.Dropout)


_lock = threading.Lock()
_own_calls: dict[Any, Any] = {}  # of the classes that are watched now
_watchers = 0  # evaluations under way, in all threads


def is_model(tree: Any) -> bool:
    """Return whether a tree is a module or holds one."""

    def is_module(node: Any) -> bool:
        return isinstance(node, equinox.Module)

    return any(is_module(node) for node in jax.tree.leaves(tree, is_leaf=is_module))


@contextmanager
def watch() -> Iterator[None]:
    """Show the calls of layers inside of the ``with`` block; in other threads they go on as ever."""
    global _watchers
    with _lock:
        _watchers += 1
    try:
        with _lock:
            for kind in _classes(_KNOWN):
                if kind not in _own_calls and "__call__" in vars(kind):
                    _own_calls[kind] = vars(kind)["__call__"]
                    type.__setattr__(kind, "__call__", _watched(kind, _own_calls[kind]))
        yield
    finally:
        with _lock:
            _watchers -= 1
            if not _watchers:
                for kind, own in _own_calls.items():
                    type.__setattr__(kind, "__call__", own)
                _own_calls.clear()


def _classes(kinds: Any) -> Iterator[Any]:
    for kind in kinds:
        yield kind
        yield from _classes(kind.__subclasses__())


def _watched(kind: Any, own: Any) -> Callable[..., Any]:
    """Return a call for a class that shows what its own call is given and gives."""

    def own_call(layer: Any, *arguments: Any, **keywords: Any) -> Any:
        return own.__get__(layer, kind)(*arguments, **keywords)

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if not calls.is_watched():
            return own_call(self, *arguments, **keywords)
        arguments, keywords = calls.positional(own.__get__(None, kind), arguments, keywords)
        if isinstance(self, equinox.nn.BatchNorm):
            keywords = _statistics(self, keywords)
        recorder = taps.recording()
        if recorder is None or not arguments:
            return own_call(self, *arguments, **keywords)

        def again(layer: Any) -> Any:
            return own_call(layer, *arguments, **keywords)

        def show(sent: Any, by_super: bool) -> None:
            del by_super  # the layer's own call has methods of its own
            if isinstance(self, equinox.nn.Dropout):
                calls.border(arguments[0], recorder)
            elif isinstance(self, _LAYERS):
                shown = _call(self, recorder, arguments[0], sent, again)
                refused = "" if kind in _KNOWN else CALL_OF_ITS_OWN
                calls.show(shown._replace(refused=shown.refused or refused), recorder)

        return shown_once(recorder, self, lambda: again(self), show)

    return call


def _statistics(layer: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    given = keywords.get("inference")
    running = layer.inference if given is None else given
    if running is not True and calls.takes_running_statistics("BatchNorm of Equinox"):
        return {**keywords, "inference": True}
    return keywords


def _call(layer: Any, recorder: Recorder, received: Any, sent: Any, again: Callable[[Any], Any]) -> Call:
    def weight(value: Any) -> Weight | None:
        return None if value is None else recorder.weight(value)

    call = Call(received, sent, weight(layer.weight), weight(getattr(layer, "bias", None)), lambda: received)
    if isinstance(layer, equinox.nn.Embedding):
        return call._replace(inputs=lambda: calls.one_hot(received, layer.num_embeddings))
    if isinstance(layer, _NORMS):

        def normalised() -> Any:
            bias = getattr(layer, "bias", None)
            weight: Any = layer.weight
            unit = {"weight": jnp.ones_like(weight)}
            return again(_with(layer, **unit, **({} if bias is None else {"bias": jnp.zeros_like(bias)})))

        if isinstance(layer, equinox.nn.GroupNorm):
            return calls.of_norm(call, 0, normalised)
        axes = layer.weight.ndim if layer.weight is not None else 1
        return call._replace(inputs=normalised, normalises=True, input_axes=axes, output_axes=axes)
    if isinstance(layer, equinox.nn.Conv):
        channels_first = jnp.moveaxis(sent, 0, -1)

        def patches() -> Any:
            unit = calls.unit_kernel(layer.weight.shape, 0, layer.weight.dtype)
            seen = again(_with(layer, weight=unit, bias=None, use_bias=False))
            return jnp.moveaxis(seen, 0, -1).reshape(*seen.shape[1:], *layer.weight.shape[1:])

        refused = "" if layer.groups == 1 else "a convolution of several groups"
        return call._replace(
            sent=channels_first, inputs=patches, input_axes=layer.weight.ndim - 1, refused=refused
        )
    if layer.in_features == "scalar":  # the kernel has an axis for what has none
        call = call._replace(inputs=lambda: received[..., None])
    return call._replace(output_axes=0) if layer.out_features == "scalar" else call


def _with(layer: Any, **attributes: Any) -> Any:
    """Return a layer with other attributes."""
    copy = object.__new__(type(layer))
    copy.__dict__.update({**vars(layer), **attributes})
    return copy
