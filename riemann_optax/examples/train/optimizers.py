"""The optimisers the trainer compares: a Riemannian metric, and a baseline by its Optax name."""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import riemann_optax as ro
from riemann_optax._tree import find_states
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.schedule import warmup_constant, warmup_cosine
from riemann_optax.examples.train.phis import find
from riemann_optax.optimizers.eigenbasis import GRADIENT_SHARE

OPTIMIZERS = ("riemannian_adamw", "riemannian_eigenbasis", "riemannian_sgd", "riemannian_schedule_free")
_SCHEDULE_FREE = "riemannian_schedule_free"
# What the aliases measure by themselves.
_OWN_PHI = {
    "riemannian_adamw": "factored_activity",
    "riemannian_eigenbasis": "activity",
    "riemannian_sgd": "activity",
    "riemannian_schedule_free": "factored_activity",
}


class MetricOptions(NamedTuple):
    """What the command line says about the metric.

    None stands for the alias's own default. A run in which nothing is said is the alias as it is.

    Attributes:
      optimizer: one of :data:`OPTIMIZERS`.
      phi: a name that :func:`riemann_optax.examples.train.phis.find` knows.
      alpha: the weight of phi in ``E``.
      role: ``"metric"`` divides by E (the paper's equations), ``"inverse_metric"`` multiplies (its text).
      conformal: the group over which E is rescaled to the mean of phi, or ``"none"``.
      momentum: ``momentum`` of ``riemannian_sgd``, Nesterov's (0 for none); ``b1`` of the others.
      weight_decay: strength of decoupled weight decay, times the learning rate.
      eigenbasis: steps between two refreshes of the eigenbases it all runs in; 0 for none.
    """

    optimizer: str = "riemannian_adamw"
    phi: str | None = None
    alpha: float | None = None
    role: Literal["metric", "inverse_metric"] = "metric"
    conformal: Literal["none", "tree", "leaf", "neuron"] | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    eigenbasis: int = 0


def own_default(optimizer: str, argument: str) -> Any:
    """Return the default of an argument of one of :data:`OPTIMIZERS`.

    Examples:
      >>> own_default("riemannian_adamw", "alpha")
      10000.0
    """
    return inspect.signature(getattr(ro, optimizer)).parameters[argument].default


# What --resume --steps MORE makes of the schedule of a run that has finished.
EXTENDED = (
    "the rate warms up again over 5% of the added steps and decays to 0 over the rest; "
    "that of a schedule-free optimiser stays as it is"
)


def schedule_for(
    optimizer: str, rate: jax.typing.ArrayLike, steps: int, extended_at: Sequence[int] = ()
) -> optax.Schedule:
    """Return the schedule of an optimiser: none but a warm-up where averaging takes its place, else a cosine.

    Args:
      optimizer: one of :data:`OPTIMIZERS`, or a baseline's name.
      rate: the highest rate; may be traced.
      steps: number of steps of the whole run.
      extended_at: the lengths that the run had before each extension; see :data:`EXTENDED`.

    Returns:
      A schedule.

    Examples:
      >>> schedule = schedule_for("adamw", 1.0, 200, extended_at=[100])
      >>> [round(float(schedule(count)), 2) for count in (4, 99, 100, 104, 199)]
      [1.0, 0.0, 0.2, 1.0, 0.0]
    """
    if "schedule_free" in optimizer:
        return warmup_constant(rate, own_default(_SCHEDULE_FREE, "warmup_steps"))
    ends = [0, *extended_at, steps]
    rounds = [warmup_cosine(rate, end - begin) for begin, end in itertools.pairwise(ends)]
    return rounds[0] if len(rounds) == 1 else optax.join_schedules(rounds, ends[1:-1])


def build_metric(
    options: MetricOptions, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """Build the metric optimiser, with the recorder of E and of the energy spent.

    Args:
      options: what differs from the alias's own defaults.
      learning_rate: the rate or schedule; a schedule has the warm-up in it.

    Returns:
      The optimiser.

    Raises:
      InputError: where the alias refuses an argument; for a schedule-free optimiser in an eigenbasis, or
        one that is in it already.
    """
    said: dict[str, Any] = {
        "phi": None if options.phi is None else find(options.phi).factory(),
        "alpha": options.alpha,
        "weight_decay": options.weight_decay,
    }
    if options.optimizer == "riemannian_sgd":
        said |= {"momentum": options.momentum or None, "nesterov": True if options.momentum else None}
    else:
        said["b1"] = options.momentum
    said = {name: value for name, value in said.items() if value is not None}
    if options.conformal is not None:
        said["conformal"] = None if options.conformal == "none" else options.conformal
    if options.optimizer == _SCHEDULE_FREE and callable(learning_rate):
        said["warmup_steps"] = 0
    try:
        optimizer = getattr(ro, options.optimizer)(learning_rate, role=options.role, record=True, **said)
    except ValueError as error:
        raise InputError(f"--optimizer {options.optimizer} cannot be built: {error}") from error
    if options.eigenbasis and options.optimizer == "riemannian_eigenbasis":
        raise InputError("--eigenbasis is what --optimizer riemannian_eigenbasis is in already: leave it out")
    if options.eigenbasis:
        if options.optimizer == _SCHEDULE_FREE:
            raise InputError(
                f"--eigenbasis turns the weights that {_SCHEDULE_FREE} averages: leave it out, or use "
                "--optimizer riemannian_adamw"
            )
        optimizer = ro.in_eigenbasis(optimizer, update_every=options.eigenbasis)
    return optax.chain(optimizer, ro.track_energy())


def explain(options: MetricOptions) -> str:
    """Say what E is, in words and the numbers of a run.

    Examples:
      >>> print(explain(MetricOptions("riemannian_sgd", "maintenance_energy", alpha=3.0)))
      Each gradient is divided by E = 1 + 3 phi: where E is large, weights move little.
      phi: what a synapse costs to keep and to use: its strength
      >>> print(explain(MetricOptions("riemannian_eigenbasis")).splitlines()[-1])
      phi: root of the running mean of 0.3 gradient**2 + 0.7 momentum**2
    """
    alpha = own_default(options.optimizer, "alpha") if options.alpha is None else options.alpha
    group = own_default(options.optimizer, "conformal") if options.conformal is None else options.conformal
    scale = f"1 + {alpha:g} phi"
    if group not in (None, "none"):
        mean = f"the mean of phi over the {'whole model' if group == 'tree' else group}"
        scale = f"(m + {alpha:g} phi) / {1 + alpha:g}, m {mean}"
    how = "divided by E" if options.role == "metric" else "multiplied by 1/E"
    if options.eigenbasis or options.optimizer == "riemannian_eigenbasis":
        says = (
            f"In the eigenbasis of a matrix its gradient is {how} = {scale}: along an eigenvector whose E is "
            "large, weights move little."
        )
    else:
        says = f"Each gradient is {how} = {scale}: where E is large, weights move little."
    summary = find(_OWN_PHI[options.optimizer] if options.phi is None else options.phi).summary
    if options.optimizer == "riemannian_eigenbasis" and options.phi is None:
        parts = f"{GRADIENT_SHARE:g} gradient**2 + {1 - GRADIENT_SHARE:g} momentum**2"
        summary = f"Root of the running mean of {parts}"
    return f"{says}\nphi: {summary[0].lower()}{summary[1:]}"


def _with_rate(
    factory: Callable[..., Any], argument: str, rate: optax.ScalarOrSchedule, peak: float | None
) -> Any:
    """Build an optimiser; see :func:`build_baseline` for one that takes a number and no schedule."""

    def failing(rate: optax.ScalarOrSchedule) -> str | None:
        return _failing_call(functools.partial(factory, **{argument: rate}))

    call = failing(rate) if callable(rate) else None
    if call is None or failing(1.0) is not None:
        return factory(**{argument: rate})
    if call == "init" and peak is not None:
        return factory(**{argument: peak})
    # All but the rate stays as it is, also a number that decides what is compiled.
    fixed = inspect.signature(factory).parameters.keys() - {argument}
    return optax.inject_hyperparams(factory, static_args=fixed)(**{argument: rate})


def _failing_call(build: Callable[[], Any]) -> str | None:
    """Return which call of an optimiser fails, ``"build"``, ``"init"`` or ``"update"``; computes nothing."""
    weights = {"kernel": jnp.ones([2, 2]), "bias": jnp.ones([2])}

    def loss(weights: Any) -> Any:
        return weights["kernel"].sum() + weights["bias"].sum()

    def update(state: optax.OptState) -> Any:
        given = {"value": loss(weights), "grad": weights, "value_fn": loss, "obj_fn": loss}
        return optax.with_extra_args_support(optimizer).update(weights, state, weights, **given)

    call = "build"
    try:
        optimizer = build()
        if not isinstance(optimizer, optax.GradientTransformation):
            return None
        call = "init"
        state = jax.eval_shape(optimizer.init, weights)
        call = "update"
        jax.eval_shape(update, state)
    except (TypeError, ValueError):
        return call
    return None


def _not_known(name: str) -> InputError:
    return InputError(
        f"--baseline {name} is not an Optax optimiser with a learning rate: give a name such as adamw or sgd"
    )


def baseline_factory(name: str) -> tuple[Callable[..., Any], str]:
    """Return Optax's function of a name, and what it calls its learning rate."""
    factory: Any = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    # Some are another one with arguments filled in: nadamw is adamw.
    if not inspect.isfunction(factory.func if isinstance(factory, functools.partial) else factory):
        raise _not_known(name)
    rates = [one for one in inspect.signature(factory).parameters if one.endswith("learning_rate")]
    if not rates:
        raise _not_known(name)
    return factory, rates[0]


def build_baseline(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    options: Mapping[str, Any],
    *,
    peak: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Build an optimiser from its name in ``optax`` or ``optax.contrib``, with the recorder of energy.

    Args:
      name: such as ``"adamw"``, ``"sgd"`` or ``"muon"``.
      learning_rate: the rate or schedule. One that takes a number alone gets that of each step.
      options: further keyword arguments, such as ``{"momentum": 0.9}``.
      peak: what an optimiser begins with whose first state holds its rate and changes it from there, such as
        ``"rprop"``; by default the first rate of the schedule.

    Returns:
      The optimiser.

    Raises:
      InputError: if there is no such optimiser, or it does not take these arguments.

    Examples:
      >>> tx = build_baseline("sgd", 0.1, {"momentum": 0.9})
      >>> isinstance(tx, optax.GradientTransformation)
      True
    """
    factory, rate_argument = baseline_factory(name)
    arguments = inspect.signature(factory).parameters
    for option in options:
        if option == rate_argument:
            raise InputError(f"--baseline-option {option}: give the rate as --baseline-learning-rate")
        if option not in arguments:
            raise InputError(
                f"--baseline-option {option} is not an argument of {name}: it takes {', '.join(arguments)}"
            )
    try:
        optimizer = _with_rate(functools.partial(factory, **options), rate_argument, learning_rate, peak)
    except (TypeError, ValueError) as error:
        raise InputError(f"--baseline {name} cannot be built ({error}): see --baseline-option") from error
    if not isinstance(optimizer, optax.GradientTransformation):
        raise _not_known(name)
    return optax.chain(optimizer, ro.track_energy())


def recorded_metric(optimizer_state: optax.OptState) -> ro.RecordMetricState | None:
    """Return the state of :func:`riemann_optax.record_metric` in a chain's state, None if there is none."""
    return next(iter(find_states(optimizer_state, ro.RecordMetricState)), None)


def energy_spent(optimizer_state: optax.OptState) -> float:
    """Return the sum of ``|dw|`` over all weights and steps so far."""
    (energy,) = find_states(optimizer_state, ro.TrackEnergyState)
    return float(energy.modification)


def state_bytes(optimizer_state: optax.OptState) -> int:
    """Return the bytes that an optimiser's state holds beside the weights, its recorders included."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer_state))
