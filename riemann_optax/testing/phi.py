"""check_phi: whether a user's own phi keeps the contract, and a list of what is wrong."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax._check import check_transformation
from riemann_optax._declare import needs_of
from riemann_optax.testing._needs import made
from riemann_optax.testing._sharded import sharded_problems


class PhiReport(NamedTuple):
    """What :func:`check_phi` found out about a phi that keeps the contract.

    Attributes:
      nonnegative: whether phi was nowhere negative on the gradients tried, so that ``E >= 1``.
      state_per_weight: values of state per weight, counters left out.
      needs_params: whether ``update`` refuses to run without the parameters.
    """

    nonnegative: bool
    state_per_weight: float
    needs_params: bool


def check_phi(
    phi: optax.GradientTransformation,
    params: optax.Params | None = None,
    *,
    alpha: float = 1.0,
    steps: int = 20,
    seed: int = 0,
    **extra_args: Any,
) -> PhiReport:
    """Run the contract of a phi on a phi of one's own and list what is wrong.

    Tried: ``init`` on arrays, on abstract arrays and under ``optax.tree.map_params``; ``update`` on float32,
    bfloat16 and float16 leaves; structure, shapes, dtypes; a state whose structure, shapes and dtypes stay;
    ``jit`` against eager; ``vmap`` over two members of a population against each alone; a run that goes on
    from a state that was saved as NumPy arrays; weights spread over all devices that JAX has, on a mesh with
    Auto axes and on one with Explicit axes, beside one device, with the state beside the weights; unknown
    extra arguments, and those that phi declares to need (with a task boundary at the third update); copies
    instead of aliases of the parameters; and ``E = 1 + alpha * phi``, which must be positive and finite for
    ordinary, zero, tiny and huge gradients.

    A CPU counts as several devices after ``jax.config.update("jax_num_cpu_devices", 8)``, to be called before
    anything else of JAX.

    Args:
      phi: the transformation to check.
      params: the parameters to try it on; by default a small tree of a matrix, a vector and a scalar.
      alpha: the scaling factor at which ``E`` must be positive.
      steps: the number of updates with ordinary gradients.
      seed: of the gradients.
      **extra_args: extra arguments of ``update``. Those that phi declares in ``needs`` are made where they
        are not given: the loss is half the sum of the squares of the weights, layers see noise, and arrays
        are read by Flax's conventions.

    Returns:
      A :class:`PhiReport`.

    Raises:
      AssertionError: where the contract is broken; the message lists all that was found.
      TypeError: where ``phi`` is no gradient transformation.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> from riemann_optax.testing import check_phi
      >>> check_phi(ro.phi.activity())
      PhiReport(nonnegative=True, state_per_weight=1.0, needs_params=False)
      >>> wrong = optax.stateless(lambda gradients, params: jax.tree.map(jnp.sum, gradients))
      >>> check_phi(wrong)
      Traceback (most recent call last):
          ...
      AssertionError: this phi breaks its contract:
      - float32: the result of phi has shape () where leaf ['matrix'] of the gradients has shape (3, 2)...
    """
    check_transformation("phi", phi)
    extended = optax.with_extra_args_support(phi)
    if params is None:
        params = {
            "matrix": jnp.array([[-2.0, -1.0], [0.0, 0.25], [0.5, 1.0]]),  # of both signs, and 0
            "vector": jnp.array([-1.0, 0.0, 0.5, 2.0]),
            "scalar": jnp.asarray(0.5),
        }
    problems: list[str] = []
    nonnegative, per_weight = True, 0.0
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        trial = _Trial(extended, optax.tree.cast(params, dtype), alpha, extra_args, seed)
        found = trial.run(steps)
        problems += [f"{jnp.dtype(dtype).name}: {problem}" for problem in found]
        nonnegative = nonnegative and trial.nonnegative
        if dtype == jnp.float32:
            per_weight = trial.state_per_weight()
        if found:
            break  # the narrower dtypes would repeat it
        if dtype == jnp.float32:
            problems += trial.population_problems() + trial.restore_problems()
            problems += trial.sharding_problems()
    problems += _init_problems(extended, params)
    if problems:
        raise AssertionError("this phi breaks its contract:\n" + "\n".join(f"- {p}" for p in problems))
    return PhiReport(nonnegative, per_weight, _needs_params(extended, params, extra_args))


class _Trial:
    """A phi, parameters of one dtype and what has been seen of them."""

    def __init__(
        self,
        phi: optax.GradientTransformationExtraArgs,
        params: Any,
        alpha: float,
        extra_args: dict[str, Any],
        seed: int,
    ) -> None:
        self.phi, self.params, self.alpha, self.given = phi, params, alpha, extra_args

        def update(gradients: Any, state: Any, params: Any, boundary: Any) -> Any:
            extra = _made_or_given(self.needs, gradients, params, boundary, extra_args)
            return phi.update(gradients, state, params, an_argument_that_no_phi_knows=0, **extra)

        self.needs: set[str] = set()
        self.update, self.jitted_update = update, jax.jit(update)
        self.random = np.random.default_rng(seed)
        self.nonnegative = True
        self.state: Any = None
        self.last: tuple[Any, ...] = ()  # the arguments of the last ordinary update

    def run(self, steps: int) -> list[str]:
        try:
            self.state = self.phi.init(self.params)
            self.needs = set(needs_of(self.phi, self.params))
        except Exception as error:  # the point is to report whatever a user's code raises
            return [f"init raises {type(error).__name__}: {error}"]
        aliases = {id(leaf) for leaf in jax.tree.leaves(self.params)}
        problems = [
            "init returns a parameter itself as state, and donating both buffers would then fail: copy it at "
            "the first update instead"
            for leaf in jax.tree.leaves(self.state)
            if id(leaf) in aliases
        ][:1]
        sizes = {"ordinary": 1.0, "zero": 0.0, "tiny": 1e-6, "huge": 1e4}
        for kind, size in sizes.items():
            state, params = self.state, self.params
            for step in range(steps if kind == "ordinary" else 2):
                gradients = jax.tree.map(self._gradient(size), self.params)
                arguments = gradients, state, params, jnp.asarray(step == 2)
                params = jax.tree.map(self._moved, params)
                if kind == "ordinary":
                    self.last = arguments
                found, state = self._update(*arguments)
                problems += [f"{problem} (at {kind} gradients, update {step + 1})" for problem in found]
                if found:
                    return problems
        return problems

    def state_per_weight(self) -> float:
        weights = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))
        kept = sum(np.size(leaf) for leaf in jax.tree.leaves(self.state) if np.ndim(leaf))
        scalars = sum(1 for leaf in jax.tree.leaves(self.params) if not np.ndim(leaf))
        return round(kept / max(weights - scalars, 1), 4)

    def population_problems(self) -> list[str]:
        """Try two members at once: a hyper-parameter search or an ensemble under ``jax.vmap``."""
        members = [
            (
                jax.tree.map(self._gradient(1.0), self.params),
                jax.tree.map(lambda p, s=size: s * p, self.params),
            )
            for size in (1.0, 0.5)
        ]
        gradients, params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

        def values(gradients: Any, params: Any) -> Any:
            return self.update(gradients, self.phi.init(params), params, jnp.asarray(False))[0]

        try:
            together = jax.jit(jax.vmap(values, axis_size=len(members)))(gradients, params)
        except Exception as error:  # the point is to report whatever a user's code raises
            return [f"init and update do not survive jax.vmap: {type(error).__name__}: {error}"]
        return [
            f"phi under jax.vmap differs from phi without at {name}"
            for index, member in enumerate(members)
            for name in _differing(jax.tree.map(lambda x, i=index: x[i], together), values(*member))
        ][:1]

    def restore_problems(self) -> list[str]:
        """Repeat the last ordinary update from a state that was saved and restored."""
        gradients, state, params, boundary = self.last
        before = self.jitted_update(gradients, state, params, boundary)[0]
        try:
            leaves = [_saved(leaf) for leaf in jax.tree.leaves(state)]
            structure = jax.tree.structure(jax.eval_shape(lambda p: self.phi.init(p), params))
            restored = jax.tree.unflatten(structure, leaves)
            after = self.update(gradients, restored, params, boundary)[0]
        except Exception as error:  # the point is to report whatever a user's code raises
            return [f"update does not survive a restored state: {type(error).__name__}: {error}"]
        return [
            f"phi from a restored state differs at {name}: something that it remembers is not in its state"
            for name in _differing(after, before)
        ][:1]

    def sharding_problems(self) -> list[str]:
        """Spread the weights over all devices, if there are several."""
        return sharded_problems(
            self.phi.init, self.phi.update, self.needs, self.params, self._gradient(1.0), _close, self.given
        )

    def _gradient(self, size: float) -> Callable[[jax.Array], jax.Array]:
        return lambda leaf: jnp.asarray(size * self.random.normal(size=leaf.shape), leaf.dtype)

    def _moved(self, leaf: jax.Array) -> jax.Array:
        """Return weights after a small step, which keeps their signs: a phi may need them."""
        return (leaf * (1 + 0.05 * self.random.normal(size=leaf.shape))).astype(leaf.dtype)

    def _update(self, gradients: Any, state: Any, params: Any, boundary: Any) -> tuple[list[str], Any]:
        try:
            values, new_state = self.update(gradients, state, params, boundary)
            jitted_values, _ = self.jitted_update(gradients, state, params, boundary)
        except Exception as error:  # the point is to report whatever a user's code raises
            return [f"update raises {type(error).__name__}: {error}"], state
        try:
            _check.check_same_structure(
                values, gradients, "the result of phi", "the gradients", "phi must return a value per weight."
            )
        except ValueError as error:
            return [str(error)], state
        problems = []
        if jax.tree.map(jax.typeof, new_state) != jax.tree.map(jax.typeof, state):
            problems.append("the state changes its structure, shapes or dtypes, which breaks lax.scan")
        for (path, value), jitted in zip(
            jax.tree_util.tree_leaves_with_path(values), jax.tree.leaves(jitted_values), strict=True
        ):
            name = _tree.leaf_name(path)
            if not jnp.issubdtype(value.dtype, jnp.floating) or value.dtype.itemsize < 4:
                problems.append(
                    f"phi has dtype {value.dtype} at {name}: it must be float32 or wider, since 1 + alpha * "
                    "phi rounds to 1 in narrower dtypes"
                )
                continue
            metric = 1 + self.alpha * np.asarray(value, np.float64)
            if not (np.isfinite(metric).all() and (metric > 0).all()):
                problems.append(
                    f"E = 1 + {self.alpha:g} * phi is not positive and finite at {name}: phi reaches from "
                    f"{np.min(value):g} to {np.max(value):g}; for other weights give params="
                )
            elif not _close(value, jitted):
                problems.append(
                    f"phi under jit differs from phi without at {name}: under jit nothing is rounded between "
                    "two operations, so widen narrow gradients first"
                )
            self.nonnegative = self.nonnegative and bool((np.asarray(value) >= 0).all())
        return problems, new_state


def _made_or_given(
    needs: set[str], gradients: Any, params: Any, boundary: Any, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the extra arguments that a user gives, and those that phi declares to need besides."""
    return made(needs - given.keys(), gradients, params, boundary) | given


def _close(value: Any, other: Any) -> bool:
    return bool(np.allclose(value, other, rtol=1e-4, atol=1e-6))


def _differing(values: Any, others: Any) -> list[str]:
    rows = zip(jax.tree_util.tree_leaves_with_path(values), jax.tree.leaves(others), strict=True)
    return [_tree.leaf_name(path) for (path, value), other in rows if not _close(value, other)]


def _saved(leaf: Any) -> Any:
    """Return a leaf as a checkpoint gives it back: an array of its own, without what else Python knows."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf))
    return jnp.asarray(np.asarray(leaf))


def _init_problems(phi: optax.GradientTransformationExtraArgs, params: Any) -> list[str]:
    problems = []
    abstract = jax.eval_shape(lambda: params)
    trials: dict[str, Callable[[], Any]] = {
        "jax.ShapeDtypeStruct leaves (build state with jnp.zeros_like)": lambda: phi.init(abstract),
        "optax.tree.map_params (use jax.tree.map, and do not index leaves)": lambda: optax.tree.map_params(
            phi, lambda leaf: leaf, phi.init(params)
        ),
    }
    for what, trial in trials.items():
        try:
            trial()
        except Exception as error:  # the point is to report whatever a user's code raises
            problems.append(f"init does not survive {what}: {type(error).__name__}: {error}")
    return problems


def _needs_params(
    phi: optax.GradientTransformationExtraArgs, params: Any, extra_args: dict[str, Any]
) -> bool:
    ones = jax.tree.map(jnp.ones_like, params)
    extra = _made_or_given(set(needs_of(phi, params)), ones, params, jnp.asarray(False), extra_args)
    try:
        values, _ = phi.update(ones, phi.init(params), **extra)
        _check.check_same_structure(values, ones, "the result of phi", "the gradients", "")
    except Exception:  # whatever a user's code raises, it cannot do without
        return True
    return False
