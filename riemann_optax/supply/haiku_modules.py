"""Layers of Haiku, imported where Haiku is: watched by ``hk.intercept_methods``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import haiku

from riemann_optax.supply import calls, taps
from riemann_optax.supply.calls import Call
from riemann_optax.supply.taps import Weight

_NORMS = (haiku.LayerNorm, haiku.BatchNorm, haiku.GroupNorm, haiku.RMSNorm)
_CONVOLUTIONS = (haiku.Conv1D, haiku.Conv2D, haiku.Conv3D)
_KNOWN = (haiku.Linear, haiku.Embed, *_NORMS, *_CONVOLUTIONS)


@contextmanager
def watch() -> Iterator[None]:
    """Show the calls of layers inside of the ``with`` block."""
    derived = calls.Derived()

    def intercept(go_on: Callable[..., Any], arguments: Any, keywords: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return go_on(*arguments, **keywords)
        arguments, keywords = calls.positional(type(module).__call__, arguments, keywords)
        if isinstance(module, haiku.BatchNorm):
            arguments, keywords = _statistics(module, arguments, keywords)
        with derived.call(module):
            sent = go_on(*arguments, **keywords)
        recorder = taps.recording()
        known = isinstance(module, _KNOWN)
        if recorder is not None and arguments and known and not derived.is_shown(module):
            call = _call(module, recorder, arguments[0], sent)
            kind = next(kind for kind in _KNOWN if isinstance(module, kind))
            own = type(module).__call__ is not kind.__call__ and not derived.is_super(module)
            refused = calls.CALL_OF_ITS_OWN if own else ""
            calls.show(call._replace(refused=call.refused or refused), recorder)
        return sent

    with haiku.intercept_methods(intercept):
        yield


def _statistics(module: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    training = arguments[1] if len(arguments) > 1 else keywords.get("is_training")
    if training is False or not calls.takes_running_statistics(f"BatchNorm ({module.module_name})"):
        return arguments, keywords
    return arguments[:1], {**keywords, "is_training": False}


def _call(module: Any, recorder: taps.Recorder, received: Any, sent: Any) -> Call:
    found: dict[str, Weight] = {}
    for path, value in module.params_dict().items():
        found[path.rpartition("/")[2]] = recorder.weight(value)
    weight = next((found[name] for name in ("w", "embeddings", "scale") if name in found), None)
    bias = next((found[name] for name in ("b", "offset") if name in found), None)
    call = Call(received, sent, weight, bias, lambda: received)
    if isinstance(module, haiku.Embed):
        size: Any = module.vocab_size
        return call._replace(inputs=lambda: calls.one_hot(received, size))
    if isinstance(module, _NORMS):
        return call._replace(normalises=True, refused="a scale of Haiku's, whose inputs it does not show")
    if isinstance(module, _CONVOLUTIONS):
        return call._replace(refused="a convolution of Haiku's, whose inputs it does not show")
    return call
