"""Layers of Equinox, imported where Equinox is: those of a copy of the model get a class of their own."""

import functools
from collections.abc import Callable
from typing import Any

import equinox
import jax
import jax.numpy as jnp

from riemann_optax.supply import calls, taps
from riemann_optax.supply.calls import Call
from riemann_optax.supply.derived import CALL_OF_ITS_OWN, shown_once, watched_class
from riemann_optax.supply.taps import Weight

_NORMS = (equinox.nn.LayerNorm, equinox.nn.RMSNorm, equinox.nn.GroupNorm)
_LAYERS = (equinox.nn.Linear, equinox.nn.Conv, equinox.nn.Embedding, *_NORMS)
_KNOWN = (*_LAYERS, equinox.nn.BatchNorm, equinox.nn.Dropout)


def watch(copy: Any) -> None:
    """Watch the layers in a copy of a model, which must belong to the evaluation under way alone."""
    nodes = jax.tree.leaves(copy, is_leaf=lambda node: isinstance(node, _KNOWN))
    for node in nodes:
        if isinstance(node, _KNOWN):
            object.__setattr__(node, "__class__", _watched(type(node)))


@functools.cache
def _watched(kind: Any) -> Any:
    return watched_class(kind, _KNOWN, _watched, _methods)


def _methods(kind: Any) -> dict[str, Any]:
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        arguments, keywords = calls.positional(kind.__call__, arguments, keywords)
        if isinstance(self, equinox.nn.BatchNorm):
            keywords = _statistics(self, keywords)
        recorder = taps.recording()
        if recorder is None or not arguments:
            return kind.__call__(self, *arguments, **keywords)

        def again(layer: Any) -> Any:
            return kind.__call__(layer, *arguments, **keywords)

        def show(sent: Any, by_super: bool) -> None:
            del by_super  # the layer's own call has methods of its own
            if isinstance(self, equinox.nn.Dropout):
                calls.border(arguments[0], recorder)
            elif isinstance(self, _LAYERS):
                shown = _call(self, recorder, arguments[0], sent, again)
                refused = "" if kind in _KNOWN else CALL_OF_ITS_OWN
                calls.show(shown._replace(refused=shown.refused or refused), recorder)

        return shown_once(recorder, self, lambda: again(self), show)

    return {"__call__": call}


def _statistics(layer: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    given = keywords.get("inference")
    running = layer.inference if given is None else given
    if running is not True and calls.takes_running_statistics("BatchNorm of Equinox"):
        return {**keywords, "inference": True}
    return keywords


def _call(layer: Any, recorder: taps.Recorder, received: Any, sent: Any, again: Callable[[Any], Any]) -> Call:
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
    return call


def _with(layer: Any, **attributes: Any) -> Any:
    """Return a layer with other attributes."""
    copy = object.__new__(type(layer))
    copy.__dict__.update({**vars(layer), **attributes})
    return copy
