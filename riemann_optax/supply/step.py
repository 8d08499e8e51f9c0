"""value_and_grad: from one loss function to the value, the gradient and whatever else an optimiser reads."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import optax

from riemann_optax import _check
from riemann_optax._declare import needs_of
from riemann_optax._vocabulary import EXTRA_ARGUMENTS
from riemann_optax.boundary import is_nnx_optimizer
from riemann_optax.supply import making
from riemann_optax.supply.arguments import of_the_loss
from riemann_optax.supply.calls import Statistics
from riemann_optax.supply.checking import check_accumulation, check_loss_function
from riemann_optax.supply.functional import companions_in, functional, is_module
from riemann_optax.supply.making import Evaluation, Options

NO_BATCH = making.NoBatch()
Needs: TypeAlias = optax.GradientTransformation | str | Sequence[Any]


def value_and_grad(
    loss_fn: Callable[..., Any],
    needs: Needs = (),
    *,
    has_aux: bool = False,
    wrt: Any = None,
    chunk_size: int | None = None,
    samples: int = 10,
    num_terms: Callable[[Any], int] | int | None = None,
    statistics: Statistics = "refuse",
) -> Callable[..., tuple[Any, Any, dict[str, Any]]]:
    """Return a function that makes the value, the gradient and all extra arguments that an optimiser reads.

    In the place of ``jax.value_and_grad``, ``nnx.value_and_grad`` or ``eqx.filter_value_and_grad``::

      step = ro.value_and_grad(loss_fn, needs=tx)

      value, gradients, extra = step(model, batch, state=optimizer)              # Flax NNX
      optimizer.update(model, gradients, **extra)

      value, gradients, extra = step(params, batch, state=opt_state)             # all others
      updates, opt_state = tx.update(gradients, opt_state, params, **extra)

    ``extra`` holds what the phis in ``needs`` declare, and nothing else; with another phi the loop stays as
    it is. A pure function for trees (under ``jit``, ``lax.scan``, on any mesh); the variables of an NNX
    module (statistics, random numbers) are brought up to date in place, under ``nnx.jit`` as without, and so
    are those of further modules that the loss is given, such as a generator's critic. Compile it together
    with ``tx.update``: some extra arguments are functions, which cannot leave a compiled one.

    All evaluations of one step take the same random numbers: those of ``key``, or those in the NNX module. So
    a gradient at other weights (``secant_curvature``, the variational phis), or a product with the Hessian,
    sees the dropout masks of the gradient. A single example (``per_example_gradients``) has a mask of its
    own, and so it has from a random key among the further arguments of the loss.

    ``inputs`` and ``activities`` are those of the calls through which a gradient flows. A target network in
    the loss, or a target behind ``stop_gradient``, adds nothing, also where its layers have the same names.

    Cost beside the gradient: for ``obj_fn`` what is done with it; for ``gradients_at_previous_params`` a
    gradient; for ``perturbed_gradients`` ``samples`` of them, in the place of the gradient; for ``inputs``
    and ``activities`` a forward pass that XLA shares with the gradient's; for ``per_example_gradients`` the
    time of about a gradient and the memory of ``chunk_size`` copies of the parameters at work, and of one
    copy for each example in the result.

    Args:
      loss_fn: ``loss_fn(model, batch, *arguments)``, a mean over the examples, which lie along the first axis
        of each array of the batch; ``loss_fn(model)`` if nothing reads single examples; with a random key,
        ``loss_fn(model, batch, *arguments, key=key)``. The model is a Flax NNX module, or any tree: the
        parameters of Linen or Haiku, an Equinox model. Of a tree the floating-point and complex arrays are
        differentiated, and the gradient of all else is None.
      needs: the optimiser whose declared needs are met, also as an ``nnx.Optimizer`` or ``TrainState``; or
        names of ``riemann_optax.phi.EXTRA_ARGUMENTS``; or a sequence of both, such as ``(tx, "value")`` for
        ``optax.polyak_sgd``, whose state does not tell.
      has_aux: whether the loss returns ``(value, aux)``.
      wrt: which variables of an NNX module are trained; None means those of the ``nnx.Optimizer`` that the
        step is given as ``state``, or that ``needs`` is, and else ``nnx.Param``.
      chunk_size: how many examples, or perturbed copies of the weights, are differentiated at once. None
        means all examples, and one copy.
      samples: how many perturbed copies, of the variational phis.
      num_terms: of how many terms the loss is the mean, for the variational phis, which take their sum: a
        number, or a function of the batch. None means the number of examples; under ``shard_map`` and
        ``pmap`` that of one device's part, so give the whole number there.
      statistics: what BatchNorm does in gradients of single examples, which it would mix: ``"refuse"``, or
        ``"running"`` to take its running statistics in them. Other code of yours that mixes examples is not
        seen: :func:`riemann_optax.testing.check_examples` finds it.

    Returns:
      ``step(model, batch, *arguments, state=None, key=None, **passed_on)``, which returns ``(value,
      gradients, extra)``, or ``((value, aux), gradients, extra)``. ``state`` is the optimiser's (an
      ``nnx.Optimizer``, a ``TrainState``, or the state itself), for those phis that are differentiated at
      places of their own. ``passed_on`` are arguments by name: those that ``loss_fn`` has go to it,
      such as ``train=True``, or with a ``**kwargs`` all that no phi reads; and all others to the optimiser,
      such as ``task_boundary``; what is given by name is not made. Gradients of complex weights are
      conjugated, as Optax takes them.

    Raises:
      ValueError: for a need that is not in the vocabulary; at the step, where one cannot be met, where an
        argument by name is one of both the loss and the optimiser, or where ``optax.MultiSteps`` would put it
        beside gradients of other batches. The message says why, and what to do.
      TypeError: where ``loss_fn`` does not take what the step was given, or does not return one number.

    Warns:
      UserWarning: where units that :func:`riemann_optax.reset_units` resets go elsewhere in the loss than to
        the layers that it takes to read them, or are read in a sum with something else.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> def loss(w, batch):
      ...     return 0.5 * jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> batch = {"x": jnp.array([[1.0, 0.0], [0.0, 4.0]]), "y": jnp.array([1.0, 2.0])}
      >>> w = jnp.zeros(2)
      >>> for phi in (ro.phi.hutchinson_curvature(), ro.phi.secant_curvature()):
      ...     tx = ro.riemannian_sgd(0.1, phi=phi)
      ...     step = ro.value_and_grad(loss, needs=tx)
      ...     value, gradients, extra = step(w, batch, state=tx.init(w))
      ...     print(value, gradients, sorted(extra))
      1.25 [-0.5 -4. ] ['obj_fn']
      1.25 [-0.5 -4. ] ['gradients_at_previous_params']

      A need that cannot be met is an error, and the message names the remedy:

      >>> step = ro.value_and_grad(loss, needs=ro.riemannian_sgd(1.0, phi=ro.phi.idbd()))
      >>> step(w, batch)
      Traceback (most recent call last):
          ...
      ValueError: inputs: the layers of the only leaf cannot be observed: they are no layers that
      riemann_optax.supply knows, were not called, or were called with arrays that are computed from these
      parameters. Tell it where they are used in the loss function, riemann_optax.supply.observe(parameter,
      inputs=...), keep it from this phi with optax.partition, or choose a phi that does not read inputs.
      >>> def told(w, batch):
      ...     ro.supply.observe(w, inputs=batch["x"])
      ...     return loss(w, batch)
      >>> print(ro.value_and_grad(told, needs="inputs")(w, batch)[2]["inputs"])
      [[1. 0.]
       [0. 4.]]
    """
    check_loss_function(loss_fn)
    if chunk_size is not None:
        _check.check_count("chunk_size", chunk_size)
    _check.check_count("samples", samples)
    _check.check_choice("statistics", statistics, ("refuse", "running"))
    each = _each(needs)
    transformations, names = _read_needs(each)
    options = Options(has_aux, chunk_size, samples, num_terms, statistics)

    def step(
        model: Any,
        batch: Any = NO_BATCH,
        *arguments: Any,
        state: Any = None,
        key: Any = None,
        **passed_on: Any,
    ) -> tuple[Any, Any, dict[str, Any]]:
        given = 1 + len(arguments) + (batch is not NO_BATCH)
        own, passed_on = of_the_loss(loss_fn, given, state, passed_on)
        parts = functional(model, _trained(wrt, state, each if is_module(model) else ()))
        beside = companions_in((batch, arguments, own), model)
        evaluation = Evaluation(
            loss_fn, parts, batch, arguments, key, state, options, tuple(transformations), own, beside
        )
        wanted = list(names)
        for transformation in transformations:
            with _check.quiet():
                own_needs = needs_of(transformation, parts.params)
            check_accumulation(transformation, parts.params, set(own_needs) - passed_on.keys())
            wanted += own_needs
        (value, aux), gradients, (rest, changed), extra = _evaluate(evaluation, wanted, passed_on)
        parts.write_back(rest)
        if beside is not None:
            beside.write_back(changed)
        return ((value, aux) if has_aux else value), parts.gradients(gradients), extra

    return step


def _evaluate(
    evaluation: Evaluation, wanted: Iterable[str], passed_on: dict[str, Any]
) -> tuple[tuple[Any, Any], Any, Any, dict[str, Any]]:
    params = evaluation.model.params
    made = dict(passed_on)
    asked = set(wanted) - passed_on.keys()  # a maker may make more than one of them
    own_gradient: Any = None
    for maker in dict.fromkeys(
        making.MAKERS[name] for name in wanted if name in making.MAKERS and name not in made
    ):
        results = maker(evaluation)
        own_gradient = results.pop("grad", own_gradient)
        made |= {name: result for name, result in results.items() if name in asked}
    if own_gradient is None:
        differentiated = jax.value_and_grad(evaluation.loss_and_rest, has_aux=True)
        (value, (aux, rest)), gradients = differentiated(params)
        gradients = making.as_optax(gradients)
    else:
        value, (aux, rest) = evaluation.loss_and_rest(params)
        gradients = own_gradient
    given = {"value": value, "grad": gradients}
    made |= {name: result for name, result in given.items() if name in asked}
    return (value, aux), gradients, rest, made


def _trained(wrt: Any, state: Any, needs: Iterable[Any]) -> Any:
    """Return the filter of what is trained: an ``nnx.Optimizer`` knows it too."""
    if wrt is not None:
        return wrt
    if is_nnx_optimizer(state):
        return state.wrt
    filters = [one.wrt for one in needs if is_nnx_optimizer(one)]
    if len(filters) < 2:
        return filters[0] if filters else None
    from flax import nnx

    return nnx.Any(*filters)


def _each(needs: Any) -> tuple[Any, ...]:
    """Return what is needed one by one: a transformation is a tuple too, and one need."""
    several = isinstance(needs, Iterable) and not isinstance(needs, str) and not _is_optimizer(needs)
    return tuple(needs) if several else (needs,)


def _read_needs(needs: Iterable[Any]) -> tuple[list[Any], list[str]]:
    transformations, names = [], []
    for need in needs:
        found = getattr(need, "tx", need)  # of an nnx.Optimizer or a TrainState
        if isinstance(found, str) and found in EXTRA_ARGUMENTS:
            names.append(found)
        elif _is_optimizer(found):
            transformations.append(found)
        elif isinstance(found, str):
            raise ValueError(
                f"needs must be an optimiser or names of extra arguments, got {need!r}: use "
                f"{', '.join(EXTRA_ARGUMENTS)}."
            )
        else:
            raise TypeError(
                "needs must be an optimiser, names of extra arguments, or a tuple of both, got a "
                f"{type(need).__name__}: give the transformation itself, not its state; a function that "
                "makes one has to be called."
            )
    return transformations, names


def _is_optimizer(value: Any) -> bool:
    """Whether this is a transformation, or wraps one, as optax.MultiSteps does."""
    return all(callable(getattr(value, method, None)) for method in ("init", "update"))
