"""How a transformation says what it is: its name, and what it needs.

Said where the transformation is written, and nowhere else. Whoever needs to know listens:
:func:`names_of` while an update runs, :func:`needs_of` while a state is made. Listening goes through every
wrapper, of Optax or of a user, because each calls what it wraps.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.extend.core
import optax

from riemann_optax import _tree
from riemann_optax._tree import Group
from riemann_optax._vocabulary import EXTRA_ARGUMENTS, OPTAX_NEEDS

T = TypeVar("T")
# The least value of a phi that is above -1 by as little as one likes: ``E`` is positive up to ``alpha = 1``.
ABOVE_MINUS_1 = math.nextafter(-1.0, 0.0)


class Declaration(NamedTuple):
    """What a transformation says of itself.

    Attributes:
      name: what messages and tables call it.
      needs: the extra arguments that its ``update`` reads.
      update_with_means: of a phi whose group means cost less than a pass over its values, see
        :func:`update_phi`; otherwise None.
      least: what the values of a phi do not fall below.
    """

    name: str
    needs: tuple[str, ...]
    update_with_means: Callable[..., Any] | None = None
    least: float = 0.0


# Names of the phis evaluated so far, where somebody listens; and all declarations initialised so far.
_evaluated: ContextVar[list[str] | None] = ContextVar("evaluated", default=None)
_initialised: ContextVar[list[Declaration] | None] = ContextVar("initialised", default=None)
_momenta: ContextVar[list[Any] | None] = ContextVar("momenta", default=None)
_links: ContextVar[list["UnitLink"] | None] = ContextVar("links", default=None)


class UnitLink(NamedTuple):
    """Which weights read the units of a layer, as a transformation takes it that resets these.

    Attributes:
      layer: the path of the layer's kernel in the parameters.
      readers: those of the kernels that read its units.
    """

    layer: tuple[Any, ...]
    readers: list[tuple[Any, ...]]


class Declared(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # Optax ships no types
    """An Optax transformation that says its name and which extra arguments its ``update`` reads.

    It *is* an Optax transformation: ``chain``, ``partition``, ``masked`` and ``inject_hyperparams`` take it
    like any other.

    Args:
      init: the function that makes the state.
      update: the function of updates, state, params and extra arguments.
      name: what messages and tables call it.
      needs: names from :data:`EXTRA_ARGUMENTS`.
      update_with_means: see :func:`update_phi`.
      least: what the values of a phi do not fall below.

    Raises:
      ValueError: for a name that is not in the vocabulary; for a declaration without a ``name``.
    """

    def __new__(
        cls,
        init: Callable[..., Any],
        update: Callable[..., Any],
        *,
        name: str | None = None,
        needs: Iterable[str] = (),
        update_with_means: Callable[..., Any] | None = None,
        least: float = 0.0,
    ) -> Self:
        """Make a transformation whose two functions report to whoever listens."""
        if name is None and (tuple(needs) or update_with_means is not None or least != 0.0):
            raise ValueError(
                f"{cls.__name__}: needs, update_with_means and least are declared under a name: give one, "
                'name="...", which messages and tables use.'
            )
        if name is None:  # rebuilt, as jax.tree.map rebuilds a NamedTuple: the functions know it already
            rebuilt: Self = super().__new__(cls, init, update)
            return rebuilt
        declaration = Declaration(name, tuple(needs), least=least)
        for need in declaration.needs:
            if need not in EXTRA_ARGUMENTS:
                raise ValueError(
                    f"{name}: needs must name extra arguments that this package knows, got {need!r}: use one "
                    f"of {', '.join(EXTRA_ARGUMENTS)}."
                )
        if update_with_means is not None:
            own = _reporting_update(update_with_means, declaration, place=1)
            declaration = declaration._replace(update_with_means=own)
        made: Self = super().__new__(
            cls, _reporting_init(init, declaration), _reporting_update(update, declaration)
        )
        return made

    @property
    def declaration(self) -> Declaration:
        """The name and the needs."""
        found = getattr(self.update, "declaration", None)
        return found if isinstance(found, Declaration) else Declaration(type(self).__name__, ())

    @property
    def name(self) -> str:
        """What messages and tables call this transformation."""
        return self.declaration.name

    @property
    def needs(self) -> tuple[str, ...]:
        """The extra arguments that ``update`` reads."""
        return self.declaration.needs


class Phi(Declared):
    """A phi: an Optax transformation from the gradient tree to the tree of phi values, with a name and needs.

    Args:
      init: builds the state from the parameters, with ``jnp.zeros_like`` so that shardings carry over.
      update: ``(updates, state, params=None, **extra_args) -> (phi, new_state)``, one real value per weight.
      name: what :func:`riemann_optax.describe` and messages call it. The arguments below want one.
      needs: the extra arguments that ``update`` reads, from ``riemann_optax.phi.EXTRA_ARGUMENTS``.
      update_with_means: None; or, for a phi that knows the means of its groups at less cost than a pass over
        its values, ``(over, updates, state, params, **extra_args) -> (phi, means, new_state)``.
      least: what its values do not fall below; where it is negative, ``alpha`` has a limit.

    Raises:
      ValueError: for a need that is not in the vocabulary; for one of the arguments below without a ``name``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> def update(updates, state, params=None, **extra_args):
      ...     return jax.tree.map(jnp.abs, updates), state
      >>> phi = ro.phi.Phi(optax.init_empty_state, update, name="gradient_size")
      >>> print(ro.describe(ro.phi.unit_mean(phi), jnp.zeros(2)).leaves[0].phi)
      unit_mean(gradient_size)
    """


def _reporting_init(init: Callable[..., Any], declaration: Declaration) -> Callable[..., Any]:
    @functools.wraps(init)
    def reporting(*args: Any, **kwargs: Any) -> Any:
        _initialising(declaration)
        return init(*args, **kwargs)

    return reporting


def _reporting_update(
    update: Callable[..., Any], declaration: Declaration, place: int = 0
) -> Callable[..., Any]:
    """Return ``update`` with a report of its evaluation; its updates are the argument at ``place``."""
    demanded = _demanded(update, declaration.needs)
    trees = [need for need in declaration.needs if EXTRA_ARGUMENTS[need].kind in ("vectors", "per_weight")]

    @functools.wraps(update)
    def reporting(*args: Any, **kwargs: Any) -> Any:
        for name in trees:
            if kwargs.get(name) is not None:
                kwargs[name] = _own_part(kwargs[name], args[place] if args[place:] else kwargs["updates"])
        for name in demanded:
            required(declaration.name, name, kwargs.get(name))
        return _evaluating(declaration.name, lambda: update(*args, **kwargs))

    reporting.declaration = declaration  # type: ignore[attr-defined]
    return reporting


# Functions of their own: cloudpickle copies a closure with the globals that it reads, and a ContextVar cannot
# be copied.
def _initialising(declaration: Declaration) -> None:
    listener = _initialised.get()
    if listener is not None:
        listener.append(declaration)


def _evaluating(name: str, call: Callable[[], T]) -> T:
    """Return the result of ``call``, and report that a phi was evaluated: what it is made of stays inside."""
    listener = _evaluated.get()
    if listener is None:
        return call()
    result, _ = _listened(_evaluated, call)
    listener.append(name)
    return result


def _own_part(tree: Any, updates: Any) -> Any:
    """Return an extra argument without what ``optax.masked`` and ``partition`` have left out of updates."""
    try:
        return _tree.masked_like(tree, updates)
    except ValueError:  # another structure: whoever reads it names the argument
        return tree


def _demanded(update: Callable[..., Any], needs: Iterable[str]) -> list[str]:
    """Return the needs without which Python itself would not call ``update``."""
    try:
        parameters = inspect.signature(update).parameters.values()
    except (TypeError, ValueError):  # a callable that does not tell
        return []
    wanted = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    return [name for name in wanted if name in needs]


def _listened(variable: ContextVar[Any], call: Callable[[], T]) -> tuple[T, list[Any]]:
    heard: list[Any] = []
    token = variable.set(heard)
    try:
        return call(), heard
    finally:
        variable.reset(token)


def update_phi(
    phi: optax.GradientTransformationExtraArgs,
    over: Group | None,
    updates: Any,
    state: Any,
    params: Any,
    /,  # an extra argument may have any name
    **extra_args: Any,
) -> tuple[Any, Any, Any]:
    """Return the values of ``phi``, the means of their groups where it hands them along, and its new state.

    A phi hands them along where it declares ``update_with_means(over, updates, state, params, **extra_args)``
    with these results, for each leaf the mean over its group in a shape that broadcasts against the leaf.
    Where ``over`` is None, and from any other phi, the means are None: the caller takes them from the values.
    """
    own = phi.declaration.update_with_means if isinstance(phi, Declared) else None
    if own is None:
        values, state = phi.update(updates, state, params, **extra_args)
        return values, None, state
    values, means, state = own(over, updates, state, params, **extra_args)
    return values, means, state


def names_of(call: Callable[[], T]) -> tuple[T, list[str]]:
    """Return the result of ``call`` and the names of the phis that it has evaluated, the outermost ones."""
    return _listened(_evaluated, call)


def keeps_momentum(momentum: Any) -> None:
    """Report the momentum that a phi keeps: for each leaf a function of whether to look ahead."""
    listener = _momenta.get()
    if listener is not None:
        listener.append((trace_state(), momentum))


def momentum_kept_by(call: Callable[[], T]) -> tuple[T, Any]:
    """Return the result of ``call`` and the momentum that a phi reported; None of no phi or of several.

    None as well of a phi inside of a branch or loop: its values are not known outside.
    """
    result, heard = _listened(_momenta, call)
    here = trace_state()
    reported = [momentum for where, momentum in heard if where == here]
    return result, reported[0] if len(reported) == 1 else None


def links_units(links: Iterable[UnitLink]) -> None:
    """Report, while a state is made, which weights are taken to read the units of which layer."""
    listener = _links.get()
    if listener is not None:
        listener.extend(links)


def unit_links_of(tx: optax.GradientTransformation, params: optax.Params) -> list[UnitLink]:
    """Return the links that anything within ``tx`` reports. Computes nothing."""
    return _listened(_links, lambda: jax.eval_shape(lambda p: tx.init(p), params))[1]


def trace_state() -> Any:
    """Return what tells one trace of JAX from another, by ``==``."""
    # JAX 0.8 and 0.9 keep it in jax.core, later releases in jax.extend.core.
    module = jax.extend.core if hasattr(jax.extend.core, "get_opaque_trace_state") else jax.core
    return module.get_opaque_trace_state(convention="riemann_optax")


def needs_of(tx: optax.GradientTransformation, params: optax.Params) -> tuple[str, ...]:
    """Return the extra arguments that anything within ``tx`` reads, in the order of the vocabulary.

    Makes the state of ``tx`` in the abstract, and so computes nothing. Optax's own transformations are known
    by their states.
    """
    # A new function each time: of the same one JAX remembers the result, and there is nothing to hear.
    state, declarations = _listened(_initialised, lambda: jax.eval_shape(lambda p: tx.init(p), params))
    needed = {need for declaration in declarations for need in declaration.needs}

    def note(node: Any) -> bool:
        needed.update(OPTAX_NEEDS.get(type(node).__name__, ()))
        return False

    jax.tree.leaves(state, is_leaf=note)
    return tuple(name for name in EXTRA_ARGUMENTS if name in needed)


def name_of(tx: optax.GradientTransformation) -> str:
    """Return the declared name of ``tx``."""
    return tx.name if isinstance(tx, Declared) else "undeclared"


def least_of(tx: optax.GradientTransformation) -> float:
    """Return what the values of a phi do not fall below, by its declaration."""
    return tx.declaration.least if isinstance(tx, Declared) else 0.0


def phi_around(
    parts: Iterable[optax.GradientTransformation],
    init: Callable[..., Any],
    update: Callable[..., Any],
    name: str | None = None,
    least: float | None = None,
) -> Phi:
    """Return the phi that a wrapper makes of others: their names inside its own, and all of their needs.

    Without a ``name`` of the wrapper the phi keeps that of the one it wraps, whose values it has; without a
    ``least`` its values fall as low as theirs.
    """
    parts = list(parts)
    least = min(map(least_of, parts)) if least is None else least
    inside = ", ".join(map(name_of, parts))
    needs = dict.fromkeys(need for part in parts if isinstance(part, Declared) for need in part.needs)
    return Phi(init, update, name=inside if name is None else f"{name}({inside})", needs=needs, least=least)


def required_loss(rule: str, obj_fn: Any, extra_args: Mapping[str, Any]) -> Any:
    """Return the loss as a function of the parameters, under either of the names that Optax has for it."""
    loss = required(rule, "obj_fn", extra_args.get("value_fn") if obj_fn is None else obj_fn)

    def called(params: Any, *arguments: Any) -> Any:
        try:
            return loss(params, *arguments)
        except Exception as error:
            if not _tree.has_masked(params):
                raise
            raise ValueError(
                f"{rule}: obj_fn fails on parameters without those that optax.partition or optax.masked "
                "leaves out: take the step from ro.value_and_grad, whose obj_fn puts them back."
            ) from error

    return called


def required(rule: str, name: str, value: T | None, instead: str = "") -> T:
    """Return an extra argument; where it is missing raise ``ValueError`` with the line that makes it."""
    if value is None:
        argument = EXTRA_ARGUMENTS[name]
        step = "" if name.startswith("task_") else "; riemann_optax.value_and_grad(loss, needs=tx) makes it"
        raise ValueError(
            f"{rule} needs the extra argument {name}, {argument.shape}: call tx.update(gradients, state, "
            f"params, {name}=...) with {argument.made}{instead}{step}. metric_at and describe take it by "
            "name as well."
        )
    return value
