"""Calls of classes that are derived from a layer's: shown once, where they reach the layer's own call."""

from collections.abc import Callable, Sequence
from typing import Any

from riemann_optax.supply.recorder import Recorder

CALL_OF_ITS_OWN = "a layer whose class has a call of its own"


def shown_once(
    recorder: Recorder, module: Any, call: Callable[[], Any], show: Callable[[Any, bool], None]
) -> Any:
    """Call a module, and show it unless a call of the same module inside of this one was shown.

    A derived class may call the layer's own by ``super()``: that call has what the weights are given.

    Args:
      recorder: of the evaluation under way.
      module: whose call it is.
      call: makes it.
      show: is given the result, and whether the call stands in another of the module's.
    """
    own = [module, False]
    recorder.open.append(own)
    try:
        sent = call()
    finally:
        recorder.open.pop()
    if not own[1]:
        for outer in recorder.open:
            outer[1] = outer[1] or outer[0] is module
        show(sent, bool(recorder.open) and recorder.open[-1][0] is module)
    return sent


def watched_class(
    kind: Any, layers: Sequence[Any], watch: Callable[[Any], Any], methods: Callable[[Any], dict[str, Any]]
) -> Any:
    """Return a class derived from a layer's, or from one that is itself derived, with other methods.

    Those of the layer stand right before it among the classes of a derived one: ``super()`` reaches them.

    Args:
      kind: the class.
      layers: those that are known.
      watch: returns the watched class of a layer, always the same.
      methods: makes the methods of a class.
    """
    layer = next(one for one in layers if issubclass(kind, one))
    if kind is layer:
        own = methods(kind)
    else:
        own = {} if kind.__call__ is layer.__call__ else {"__call__": methods(kind)["__call__"]}
    bases = (kind,) if kind is layer else (kind, watch(layer))
    return type(kind)(kind.__name__, bases, {**own, "__module__": kind.__module__})
