"""How a transformation says what it is: its name, what it needs, and what its state holds.

Said where the transformation is written, and nowhere else. Whoever needs to know listens:
:func:`names_of` while an update runs, :func:`needs_of` while a state is made. Listening goes through every
wrapper, of Optax or of a user, because each calls what it wraps.
"""

import functools
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, Self, TypeVar

import jax
import optax

Kind = Literal["function", "vectors", "per_weight", "other"]
T = TypeVar("T")


class ExtraArgument(NamedTuple):
    """An extra argument of ``update``: what it is, and how it is made from a loss function.

    Attributes:
      name: the keyword.
      kind: how it changes with coordinates. ``"function"`` of the parameters; ``"vectors"``, a tree linear in
        the gradient, with any number of leading axes; ``"per_weight"``, which belongs to single weights and
        has no meaning in other coordinates; ``"other"``, which has nothing to do with them.
      shape: what its leaves look like.
      made: an expression that makes it from ``loss(params, batch)``.
    """

    name: str
    kind: Kind
    shape: str
    made: str


# The one vocabulary of the package. ``value``, ``grad`` and ``value_fn`` are those of Optax's line searches.
EXTRA_ARGUMENTS: dict[str, ExtraArgument] = {
    argument.name: argument
    for argument in (
        ExtraArgument("value", "other", "a scalar: the loss of the batch", "loss(params, batch)"),
        ExtraArgument(
            "grad", "vectors", "a tree like the parameters: their gradient", "jax.grad(loss)(params, batch)"
        ),
        ExtraArgument(
            "value_fn",
            "function",
            "a function of the parameters: the loss of the batch",
            "lambda params: loss(params, batch)",
        ),
        ExtraArgument(
            "obj_fn",
            "function",
            "a function of the parameters: the loss of the batch",
            "lambda params: loss(params, batch)",
        ),
        ExtraArgument(
            "outputs_fn",
            "function",
            "a function of the parameters: the outputs of the model for the batch, an array or a tree",
            "lambda params: model(params, batch.inputs)",
        ),
        ExtraArgument(
            "outputs_loss_fn",
            "other",
            "a function of the outputs: the loss of the batch",
            "lambda outputs: loss_of_outputs(outputs, batch.targets)",
        ),
        ExtraArgument(
            "per_example_gradients",
            "vectors",
            "a tree like the parameters, with a leading axis of examples",
            "jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)",
        ),
        ExtraArgument(
            "output_norm_gradients",
            "vectors",
            "a tree like the parameters, with a leading axis of examples: the gradients of the squared norm "
            "of each example's outputs",
            "jax.vmap(jax.grad(squared_output_norm), in_axes=(None, 0))(params, batch)",
        ),
        ExtraArgument(
            "perturbed_gradients",
            "vectors",
            "a tree like the parameters, with a leading axis of samples: the gradients at perturbed weights",
            "jax.lax.map(jax.grad(lambda params: loss(params, batch)), places), with "
            "places, perturbations = riemann_optax.phi.draw_perturbations(state, params)",
        ),
        ExtraArgument(
            "perturbations",
            "vectors",
            "a tree like the parameters, with a leading axis of samples: the noise of the perturbed weights",
            "places, perturbations = riemann_optax.phi.draw_perturbations(state, params)",
        ),
        ExtraArgument(
            "gradients_at_previous_params",
            "vectors",
            "a tree like the parameters: the gradient of this batch at the parameters of the last update",
            "jax.grad(loss)(previous_params, batch)",
        ),
        ExtraArgument(
            "inputs",
            "per_weight",
            "a tree like the parameters: at each kernel the inputs of its layer, [batch, ..., fan_in], at "
            "each bias the number 1",
            "the activations before each layer",
        ),
        ExtraArgument(
            "activities",
            "per_weight",
            "a tree like the parameters: at each leaf the activities of its layer, [batch, ..., neurons]",
            "the activations after each layer",
        ),
        ExtraArgument(
            "task_boundary",
            "other",
            "one boolean: whether this update is the first of a new task",
            "step == first_step_of_the_task",
        ),
        ExtraArgument(
            "task_importance",
            "per_weight",
            "a tree like the parameters: the importance of each weight for the task that has ended",
            "a measure of your own",
        ),
    )
}


class Declaration(NamedTuple):
    """What a transformation says of itself.

    Attributes:
      name: what messages and tables call it.
      needs: the extra arguments that its ``update`` reads.
    """

    name: str
    needs: tuple[str, ...]


# Names of the phis evaluated so far, where somebody listens; and all declarations initialised so far.
_evaluated: ContextVar[list[str] | None] = ContextVar("evaluated", default=None)
_initialised: ContextVar[list[Declaration] | None] = ContextVar("initialised", default=None)


class Declared(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # Optax ships no types
    """An Optax transformation that says its name and which extra arguments its ``update`` reads.

    It *is* an Optax transformation: ``chain``, ``partition``, ``masked`` and ``inject_hyperparams`` take it
    like any other.

    Args:
      init: the function that makes the state.
      update: the function of updates, state, params and extra arguments.
      name: what messages and tables call it.
      needs: names from :data:`EXTRA_ARGUMENTS`.

    Raises:
      ValueError: for a name that is not in the vocabulary.
    """

    def __new__(
        cls,
        init: Callable[..., Any],
        update: Callable[..., Any],
        *,
        name: str | None = None,
        needs: Iterable[str] = (),
    ) -> Self:
        """Make a transformation whose two functions report to whoever listens."""
        if name is None:  # rebuilt, as jax.tree.map rebuilds a NamedTuple: the functions know it already
            rebuilt: Self = super().__new__(cls, init, update)
            return rebuilt
        declaration = Declaration(name, tuple(needs))
        for need in declaration.needs:
            if need not in EXTRA_ARGUMENTS:
                raise ValueError(
                    f"{name}: needs must name extra arguments that this package knows, got {need!r}: use one "
                    f"of {', '.join(EXTRA_ARGUMENTS)}."
                )
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
    """A phi: a :class:`Declared` transformation from the gradient tree to the tree of phi values.

    Args:
      init: builds the state from the parameters, with ``jnp.zeros_like`` so that shardings carry over.
      update: ``(updates, state, params=None, **extra_args) -> (phi, new_state)``, one real value per weight.
      name: what :func:`riemann_optax.describe` and messages call it.
      needs: the extra arguments that ``update`` reads, from ``riemann_optax.phi.EXTRA_ARGUMENTS``.

    Raises:
      ValueError: for a need that is not in the vocabulary.

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
        listener = _initialised.get()
        if listener is not None:
            listener.append(declaration)
        return init(*args, **kwargs)

    return reporting


def _reporting_update(update: Callable[..., Any], declaration: Declaration) -> Callable[..., Any]:
    @functools.wraps(update)
    def reporting(*args: Any, **kwargs: Any) -> Any:
        listener = _evaluated.get()
        if listener is None:
            return update(*args, **kwargs)
        result, _ = _listened(_evaluated, lambda: update(*args, **kwargs))  # what it is made of stays inside
        listener.append(declaration.name)
        return result

    reporting.declaration = declaration  # type: ignore[attr-defined]
    return reporting


def _listened(variable: ContextVar[Any], call: Callable[[], T]) -> tuple[T, list[Any]]:
    heard: list[Any] = []
    token = variable.set(heard)
    try:
        return call(), heard
    finally:
        variable.reset(token)


def names_of(call: Callable[[], T]) -> tuple[T, list[str]]:
    """Return the result of ``call`` and the names of the phis that it has evaluated, the outermost ones."""
    return _listened(_evaluated, call)


def needs_of(tx: optax.GradientTransformation, params: optax.Params) -> tuple[str, ...]:
    """Return the extra arguments that anything within ``tx`` reads, in the order of the vocabulary.

    Makes the state of ``tx`` in the abstract, and so computes nothing.
    """
    _, declarations = _listened(_initialised, lambda: jax.eval_shape(tx.init, params))
    needed = {need for declaration in declarations for need in declaration.needs}
    return tuple(name for name in EXTRA_ARGUMENTS if name in needed)


def name_of(tx: optax.GradientTransformation) -> str:
    """Return the declared name of ``tx``."""
    return tx.name if isinstance(tx, Declared) else "undeclared"


def phi_around(
    parts: Iterable[optax.GradientTransformation],
    init: Callable[..., Any],
    update: Callable[..., Any],
    name: str | None = None,
) -> Phi:
    """Return the phi that a wrapper makes of others: their names inside its own, and all of their needs.

    Without a ``name`` of the wrapper the phi keeps that of the one it wraps.
    """
    parts = list(parts)
    inside = ", ".join(map(name_of, parts))
    needs = dict.fromkeys(need for part in parts if isinstance(part, Declared) for need in part.needs)
    return Phi(init, update, name=inside if name is None else f"{name}({inside})", needs=needs)


def required(rule: str, name: str, value: T | None, instead: str = "") -> T:
    """Return an extra argument; where it is missing raise ``ValueError`` with the line that makes it."""
    if value is None:
        argument = EXTRA_ARGUMENTS[name]
        raise ValueError(
            f"{rule} needs the extra argument {name}, {argument.shape}: call tx.update(gradients, state, "
            f"params, {name}=...), made by {argument.made}{instead}."
        )
    return value


class StateFields(NamedTuple):
    """How the fields of one state class change with the coordinates of the weights.

    Attributes:
      linear: fields that are linear in gradients or weights.
      squared: second moments, variances, diagonals of a curvature, and any other value of each coordinate
        that mixes as a variance does.
      refused: fields that depend on the coordinates and cannot be carried from one basis to another.
      captured: those linear fields that ``init`` fills with the weights, before there is a basis.
    """

    linear: tuple[str, ...] = ()
    squared: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    captured: tuple[str, ...] = ()


def declare_fields(
    linear: tuple[str, ...] = (), squared: tuple[str, ...] = (), captured: tuple[str, ...] = ()
) -> Callable[[type[T]], type[T]]:
    """Declare, on a state class, how its fields change with the coordinates of the weights.

    Sets the class attributes ``linear_fields``, ``squared_fields`` and ``captured_fields``, which a class may
    as well have without this decorator.

    Args:
      linear: fields that are linear in gradients or weights, such as a momentum or a copy of the weights.
      squared: second moments, variances, diagonals of a curvature.
      captured: those linear fields that ``init`` fills with the weights; better leave that to the first
        update.

    Raises:
      ValueError: for a name that is no field of the class.
    """

    def declare(kind: type[T]) -> type[T]:
        for name in (*linear, *squared):
            if name not in getattr(kind, "_fields", ()):
                raise ValueError(f"{kind.__name__} has no field {name!r} to declare.")
        kind.linear_fields, kind.squared_fields = linear, squared  # type: ignore[attr-defined]
        kind.captured_fields = captured  # type: ignore[attr-defined]
        return kind

    return declare


# What Optax's own state classes hold, by their names: not all of them are public.
_OPTAX_STATES: dict[str, StateFields] = {
    "ApplyEvery": StateFields(linear=("grad_acc",)),
    "DAdaptAdamWState": StateFields(linear=("exp_avg", "grad_sum"), squared=("exp_avg_sq",)),
    "DoGState": StateFields(linear=("init_params",), captured=("init_params",)),
    "DoWGState": StateFields(linear=("init_params",), captured=("init_params",)),
    "EmaState": StateFields(linear=("ema",)),
    "FactoredState": StateFields(refused=("v_row", "v_col")),
    "MadgradState": StateFields(linear=("s", "x0"), squared=("grad_sum_sq",), captured=("x0",)),
    "MechanicState": StateFields(linear=("x0",), captured=("x0",)),
    "MomoAdamState": StateFields(linear=("exp_avg",), squared=("exp_avg_sq",)),
    "MomoState": StateFields(linear=("exp_avg",)),
    "MultiStepsState": StateFields(linear=("acc_grads",)),
    "MuonState": StateFields(linear=("mu",)),
    "ProdigyState": StateFields(
        linear=("exp_avg", "grad_sum", "params0"), squared=("exp_avg_sq",), captured=("params0",)
    ),
    "SAMState": StateFields(linear=("cache",), captured=("cache",)),
    "ScaleByAdaDeltaState": StateFields(squared=("e_g", "e_x")),
    "ScaleByAdamState": StateFields(linear=("mu",), squared=("nu",)),
    "ScaleByAdanState": StateFields(linear=("m", "v", "g"), squared=("n",)),
    "ScaleByAdemamixState": StateFields(linear=("m1", "m2"), squared=("nu",)),
    "ScaleByAmsgradState": StateFields(linear=("mu",), squared=("nu", "nu_max")),
    "ScaleByBacktrackingLinesearchState": StateFields(linear=("grad",)),
    "ScaleByBeliefState": StateFields(linear=("mu",), squared=("nu",)),
    "ScaleByDistanceOverGradientsState": StateFields(linear=("init_params",), captured=("init_params",)),
    "ScaleByLBFGSState": StateFields(
        linear=("params", "updates", "diff_params_memory", "diff_updates_memory"), captured=("params",)
    ),
    "ScaleByLionState": StateFields(linear=("mu",)),
    "ScaleByNovogradState": StateFields(linear=("mu",)),
    "ScaleByOptimisticGradientState": StateFields(linear=("previous_gradient",)),
    "ScaleByRStdDevState": StateFields(linear=("mu",), squared=("nu",)),
    "ScaleByRmsState": StateFields(squared=("nu",)),
    "ScaleByRmsWithCountState": StateFields(squared=("nu",)),
    "ScaleByRssState": StateFields(squared=("sum_of_squares",)),
    "ScaleBySimplifiedAdEMAMixState": StateFields(linear=("m",), squared=("n",)),
    "ScaleByZoomLinesearchState": StateFields(linear=("grad",)),
    "ScheduleFreeState": StateFields(linear=("z",), captured=("z",)),
    "SophiaState": StateFields(linear=("mu",), squared=("nu",)),
    "TraceState": StateFields(linear=("trace",)),
}


def state_fields(kind: type[Any]) -> StateFields:
    """Return what a state class declares by its class attributes ``linear_fields`` and ``squared_fields``.

    Optax declares nothing; its own classes are in a table here.
    """
    names = ("linear_fields", "squared_fields", "refused_fields", "captured_fields")
    own = StateFields(*(tuple(getattr(kind, name, ())) for name in names))
    if any(own) or kind.__module__.split(".")[0] != "optax":
        return own
    return _OPTAX_STATES.get(kind.__name__, own)
