"""Layers of Haiku, imported where Haiku is: watched by ``hk.intercept_methods``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import haiku
import jax.numpy as jnp

from riemann_optax.supply import calls, taps
from riemann_optax.supply.calls import Call
from riemann_optax.supply.derived import CALL_OF_ITS_OWN, shown_once
from riemann_optax.supply.recorder import Recorder, Weight

_NORMS = (haiku.LayerNorm, haiku.BatchNorm, haiku.GroupNorm, haiku.RMSNorm)
_CONVOLUTIONS = (haiku.Conv1D, haiku.Conv2D, haiku.Conv3D)
_KNOWN = (haiku.Linear, haiku.Embed, *_NORMS, *_CONVOLUTIONS)


@contextmanager
def watch() -> Iterator[None]:
    """Show the calls of layers inside of the ``with`` block."""
    with haiku.intercept_methods(_intercept):
        yield


def _intercept(go_on: Callable[..., Any], arguments: Any, keywords: Any, context: Any) -> Any:
    module = context.module
    if context.method_name != "__call__":
        return go_on(*arguments, **keywords)
    arguments, keywords = calls.positional(type(module).__call__, arguments, keywords)
    if isinstance(module, haiku.BatchNorm):
        arguments, keywords = _statistics(module, arguments, keywords)
    recorder = taps.recording()
    kind = next((kind for kind in _KNOWN if isinstance(module, kind)), None)
    if recorder is None or not arguments or kind is None:
        return go_on(*arguments, **keywords)

    def show(sent: Any, by_super: bool) -> None:
        call = _call(module, recorder, arguments[0], sent)
        own = type(module).__call__ is not kind.__call__ and not by_super
        calls.show(call._replace(refused=call.refused or (CALL_OF_ITS_OWN if own else "")), recorder)

    return shown_once(recorder, module, lambda: go_on(*arguments, **keywords), show)


def _statistics(module: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    training = arguments[1] if len(arguments) > 1 else keywords.get("is_training")
    if training is False or not calls.takes_running_statistics(f"BatchNorm ({module.module_name})"):
        return arguments, keywords
    return arguments[:1], {**keywords, "is_training": False}


def _channels(module: Any, ndim: int) -> Any:
    """Return the axis of the channels of what a module gives, or several: not always the last."""
    axes = getattr(module, "param_axis", -1)
    if isinstance(axes, slice):
        return range(ndim)[axes]
    if getattr(module, "channel_index", -1) == -1:
        return axes
    # An image without a batch has one axis less.
    return -1 - module.num_spatial_dims if isinstance(module, _CONVOLUTIONS) else module.channel_index


def _call(module: Any, recorder: Recorder, received: Any, sent: Any) -> Call:
    found: dict[str, Weight] = {}
    for path, value in module.params_dict().items():
        found[path.rpartition("/")[2]] = recorder.weight(value)
    weight = next((found[name] for name in ("w", "embeddings", "scale") if name in found), None)
    bias = next((found[name] for name in ("b", "offset") if name in found), None)
    sent, axes = calls.features_last(sent, _channels(module, jnp.ndim(sent)))
    call = Call(received, sent, weight, bias, lambda: received, output_axes=axes)
    if isinstance(module, haiku.Embed):
        size: Any = module.vocab_size
        return call._replace(inputs=lambda: calls.one_hot(received, size))
    if isinstance(module, _NORMS):
        return call._replace(normalises=True, refused="a scale of Haiku's, whose inputs it does not show")
    if isinstance(module, _CONVOLUTIONS):
        return call._replace(refused="a convolution of Haiku's, whose inputs it does not show")
    return call
