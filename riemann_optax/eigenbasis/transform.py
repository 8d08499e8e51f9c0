"""in_eigenbasis: any transformation, in the eigenbasis of each matrix's own correlations."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax import _observe as observe
from riemann_optax._axes import Axes
from riemann_optax._check import check_transformation
from riemann_optax._state_fields import declare_fields
from riemann_optax._varying import varying_like
from riemann_optax.eigenbasis.account import account
from riemann_optax.eigenbasis.coordinates import Coordinates, coordinate_arrays, fields_of
from riemann_optax.eigenbasis.frame import (
    Frame,
    check_made_for,
    decompose_first,
    differences_of,
    first_square,
    identity,
    without_noise,
    zeros,
)
from riemann_optax.eigenbasis.layout import SIDES, ChooseSide, LayoutRules, Side
from riemann_optax.eigenbasis.orthonormal import METHODS, Method
from riemann_optax.eigenbasis.refresh import Refresh, refresh_group, saturated_sum
from riemann_optax.eigenbasis.schedule import alike_groups, fits_one_step, schedule
from riemann_optax.eigenbasis.stack import RefreshRules
from riemann_optax.eigenbasis.task_boundary import consolidated_if, enclosed, enclosed_like, opened
from riemann_optax.eigenbasis.whitening import averaged_factors, bounded

Correlate = Literal["gradients", "tempered_gradients", "whitened_gradients", "gradient_differences"]
CORRELATED: tuple[str, ...] = get_args(Correlate)
MATRICES = ("left_factors", "right_factors", "left_bases", "right_bases")


@declare_fields(refused=("left_factors", "right_factors"))  # so an eigenbasis cannot be inside of another
class InEigenbasisState(NamedTuple):
    """State of :func:`in_eigenbasis`.

    Factors and bases have the structure of the parameters; a leaf is ``[*stack, blocks, size, size]``, or
    ``optax.MaskedNode()`` where that side of the parameter is left alone.

    Attributes:
      count: int32 scalar, the number of updates so far.
      left_factors: running mean of ``G G^T``.
      right_factors: running mean of ``G^T G``.
      left_bases: orthogonal matrices with the eigenvectors as columns.
      right_bases: the same for the other side.
      previous_gradients: the gradients of the last update, if ``correlate="gradient_differences"``.
      kept_bases: int32 scalar, how often a basis was due, but no finite orthonormal one was found, and the
        old one was kept. :func:`describe` shows it.
      inner: the state of the inner transformation, in the coordinates of these bases; inside a
        :class:`BoundaryInEigenbasisState` if something in it consolidates.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    left_factors: Any
    right_factors: Any
    left_bases: Any
    right_bases: Any
    previous_gradients: Any
    kept_bases: jax.Array
    inner: optax.OptState


def in_eigenbasis(
    inner: optax.GradientTransformation,
    *,
    decay: float = 0.95,
    update_every: int = 10,
    settling_steps: int = 0,
    sides: Side | ChooseSide = "both",
    max_size: int | None = None,
    block_size: int | None = None,
    max_state: float = 16.0,
    max_operations: float = 1e5,
    axes: Axes = "flax",
    state_dtype: Any = None,
    correlate: Correlate = "gradients",
    second_moments: Literal["mix", "keep"] = "mix",
    linear_fields: Sequence[str] = (),
    squared_fields: Sequence[str] = (),
    tau: float = 0.0,
    refresh_together: int | None = 1,
    refresh_budget: float | None = None,
    orthonormalisation: Method = "auto",
    precision: jax.lax.PrecisionLike = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Run ``inner`` in the eigenbasis of each matrix's input and output correlations.

    .. math::
      U = Q_L\,\mathrm{inner}(Q_L^\top G\,Q_R)\,Q_R^\top, \qquad
      L = \overline{G G^\top} \approx Q_L \Lambda_L Q_L^\top, \quad
      R = \overline{G^\top G} \approx Q_R \Lambda_R Q_R^\top

    with a bar for a running mean. A diagonal metric inside is then :math:`g = (Q_L \otimes
    Q_R)\,\mathrm{diag}(E)\,(Q_L \otimes Q_R)^\top`: synapses that share a neuron interact. With
    ``optax.scale_by_adam`` inside this is SOAP. The first bases are the eigenvectors of the first gradient's
    correlations, so no update is skipped, and rotating the problem rotates the trajectory. Later, one power
    iteration and a QR decomposition refresh each side of a matrix every ``update_every`` steps, after the
    update. The sides take turns, so that each step has a similar share of the work. On a GPU or TPU the
    decomposition consists of matrix products. If it finds no orthonormal basis the old one is kept, and
    ``kept_bases`` in the state counts it.

    **What inner sees.** Gradients, 2**50 at most (2**400 in float64), *and parameters* in the coordinates of
    the bases, in the shape of the leaf and in float32 or wider. So inside, a phi of the weights, an anchor
    and weight decay see the rotated weights, and the ``E`` that :func:`metric_at` and :func:`record_metric`
    show belongs to eigenvectors. Means over a leaf or the tree mean the same; "neuron" is an output
    eigenvector. Among the extra arguments the functions ``obj_fn``, ``value_fn`` and ``outputs_fn`` and
    gradients of examples or samples are rotated too; ``inputs``, ``activities`` and ``task_importance``
    belong to single weights and raise an error. Both stages must be inside, or both outside.

    **What inner remembers.** When a basis changes, every array in the state of ``inner`` that has the shape
    of the leaf changes coordinates with it. Arrays linear in gradients or weights change exactly, by
    ``Q_new^T Q_old``; SOAP gets the same by keeping momentum in the original coordinates. Second moments and
    diagonals of a curvature are mixed by the *squares* of that matrix: this is exact for variances of
    coordinates that were independent in the old basis. SOAP does not mix them (``second_moments="keep"``
    only reorders them along with the eigenvectors). Each state class declares its fields by the class
    attributes ``linear_fields`` and ``squared_fields``; a table declares those of Optax.
    Momentum after ``in_eigenbasis`` equals momentum inside, if the metric comes before it.

    **Tempered gradients.** A few large columns, and gradients of the past that were larger, drown the others
    in :math:`\overline{G G^\top}`. With ``correlate="tempered_gradients"`` each column is first divided by
    the root of its Euclidean length, so that it counts by its size and not by its square (each row in
    :math:`G^\top G`). With ``"whitened_gradients"`` the other side's eigenvalues divide,
    :math:`L = \overline{G R^{-1} G^\top}` and :math:`R = \overline{G^\top L^{-1} G}`, each up to a factor:
    the Kronecker product nearest to the covariance in the Kullback-Leibler divergence. A side alone is not
    whitened. It takes two more products per side and update, ``8 n**3`` for an ``n x n`` matrix. Neither
    takes more state.

    **Which arrays.** Axes are read as rows and columns by ``axes``, by default :func:`kernel_axes`: dense,
    convolutional, attention and stacked kernels. Vectors, and stacks of them, stay diagonal unless
    ``sides="vector"``. A side is left alone if it costs too much: if factor and basis hold more than
    ``max_state`` values per weight of the matrix (``2 n / m`` for the side n of ``n x m``, so 8192 of a
    vocabulary of 8192 x 512 is left alone and 2048 of 512 x 2048 is turned), if it takes more than
    ``max_operations`` per weight and update (``6 n + 14 n**2 / (m update_every)``), or if it is longer than
    ``max_size``. With ``block_size`` such a side is turned in equal blocks of at most that size, if a size
    of at least half of it divides the side. :func:`describe` lists which sides are turned, which are not and
    why, and the cost.

    **Cost.** State of a square matrix, factors and bases: 16 bytes per weight, 8 with
    ``state_dtype=jnp.bfloat16``, half of either for one side. For an ``n x n`` matrix an update takes ``12
    n**3`` operations, and the refresh of both sides ``20 n**3 / update_every`` (28 with products alone); a
    training step on ``T`` tokens takes ``6 n**2 T``: see ``python -m benchmarks.eigenbasis``. Under ``vmap``
    the members of a population that have made as many updates refresh at the same steps.

    **Sharding.** Factors and bases are spread over the same devices as their leaf, wherever sizes divide (as
    ``tx.init`` outside of ``jit``, an Explicit mesh or :func:`sharding.init` place them). The bases of
    stacked matrices, and of ``refresh_together`` sides of one size, are decomposed on different devices if
    the devices divide their number; on a CPU each device decomposes them all, one after the other.
    Collectives per update of a matrix, without the refresh and ``inner``:
    with rows over all devices 4 all-gathers and 1 all-reduce; with columns over one axis 3 all-gathers, 3
    all-reduces and 6 moves of shards; none for a stack spread over its matrices. On an Explicit mesh a
    matrix is never gathered for a basis of its shorter side, if that side alone is shared out: its shards
    move to the other side and back, in refreshes too.

    Args:
      inner: any Optax transformation or chain, such as :func:`compute_metric` up to
        :func:`scale_by_inverse_metric` with an edit or momentum.
      decay: decay of the running means of the correlations, in [0, 1). Default 0.95, as in SOAP.
      update_every: steps between two refreshes of a side.
      settling_steps: steps until that is so; before, the distance grows from 1 in proportion to the step.
        Bases turn fastest when training begins. Under a ``refresh_budget`` this is so only if all sides fit
        into one step; otherwise the distance is the same from the beginning.
      sides: ``"both"``, ``"smaller"`` (only the shorter side, rows if they are equal), ``"input"``,
        ``"output"``, ``"none"``, or ``"vector"`` (both sides, and 1-D arrays as well); or a function of a
        leaf's name (as ``jax.tree_util.keystr`` writes its path) and the leaf that returns one of them.
      max_size: the longest side with one basis, or None for any.
      block_size: the largest block of sides that are too large; None leaves them alone.
      max_state: the most values of factor and basis per weight, for one side of a matrix.
      max_operations: the most operations per weight and update, for one side of a matrix.
      axes: which axes are inputs and outputs: a preset of :func:`kernel_axes`, or a function of a leaf's name
        and the leaf that returns its :class:`MatrixAxes`, a preset, or None to leave it alone; or a
        dictionary of these by the names of modules.
      state_dtype: dtype of factors and bases; None means float32, or wider where the parameter is wider.
        Products are computed in float32 or wider.
      correlate: ``"gradients"``; ``"tempered_gradients"`` or ``"whitened_gradients"``, see above; or
        ``"gradient_differences"`` from one update to the next. Differences have the correlations of the
        Hessian's own factors: **for gradients without noise only**. The first update is then made in the
        original coordinates, and later each basis is refreshed before its use, not after; the state holds the
        last gradient as well.
      second_moments: ``"mix"`` or ``"keep"``, see above.
      linear_fields: names of further state fields that are linear in gradients or weights, for state classes
        that you cannot change.
      squared_fields: names of further fields that are second moments.
      tau: refresh a side only if it has turned: if more than this share of ``Q^T L Q``, in Frobenius norm, is
        off the diagonal; 0 refreshes always. A published range is 0.01 to 0.1; bfloat16 bases never get
        below 0.005.
      refresh_together: how many sides of the same size are refreshed at the same step; on a mesh, use its
        number of devices. None refreshes all sides at one step, as published, and that step is long.
      refresh_budget: the most operations that refreshes may take in one step; a side of size n takes ``14
        n**3``. If they do not fit into ``update_every`` steps, each side waits longer. One side, or
        ``refresh_together`` of them, is never divided.
      orthonormalisation: ``"householder"``, ``"cholesky"``, or ``"auto"``: Householder on a CPU, in narrow
        panels that start no further threads, and Cholesky elsewhere.
      precision: precision of the products that rotate gradients and updates and convert averages, as in
        ``jnp.matmul``. Products that determine a basis always use full precision.

    Returns:
      A gradient transformation with state :class:`InEigenbasisState`.

    Raises:
      ValueError: for an argument outside its range, axes that a leaf does not have, or at ``update`` an extra
        argument that cannot be rotated, or an undeclared field of a state.
      TypeError: where ``inner`` is no gradient transformation, or a matrix is complex.

    Warns:
      UserWarning: at ``init``, if neither name nor shape tells what the axes of a turned array are. Set
        ``axes``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> metric = ro.scale_by_metric(ro.phi.activity(decay=0.9), 100.0, conformal="tree")
      >>> tx = optax.chain(
      ...     ro.in_eigenbasis(metric),
      ...     optax.scale_by_learning_rate(1.0),
      ... )
      >>> gradient = jnp.array([[1.0, 0.8], [0.8, 1.0]])  # 1.8 along (1, 1), 0.2 along (1, -1)
      >>> updates, _ = tx.update(gradient, tx.init(gradient))
      >>> print(updates.round(2))  # steps of nearly one size along both: nearly the identity
      [[-1.   -0.01]
       [-0.01 -1.  ]]

    References:
      Vyas et al, `SOAP: Improving and Stabilizing Shampoo using Adam <https://arxiv.org/abs/2409.11321>`_,
      ICLR, 2025

      Eschenhagen et al, `Purifying Shampoo: Investigating Shampoo's Heuristics by Decomposing its
      Preconditioner <https://arxiv.org/abs/2506.03595>`_, arXiv, 2025: ``tau``

      Fukaya et al, `Shifted Cholesky QR for Computing the QR Factorization of Ill-Conditioned Matrices
      <https://doi.org/10.1137/18M1218212>`_, SIAM Journal on Scientific Computing, 2020

      Lin et al, `Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization
      <https://arxiv.org/abs/2509.03378>`_, ICLR, 2026: whitened gradients

      Raymaekers and Rousseeuw, `A Generalized Spatial Sign Covariance Matrix
      <https://arxiv.org/abs/1805.01417>`_, Journal of Multivariate Analysis, 2019: tempered gradients

      Gupta, Koren and Singer, `Shampoo: Preconditioned Stochastic Tensor Optimization
      <https://arxiv.org/abs/1802.09568>`_, ICML, 2018
    """
    check_transformation("inner", inner)
    _check.check_decay(decay)
    _check.check_count("update_every", update_every)
    _check.check_count("settling_steps", settling_steps, low=0)
    if settling_steps * update_every >= 2**31:  # their product is counted in int32
        raise ValueError("settling_steps must be below 2**31 / update_every.")
    for name, value in (("max_size", max_size), ("refresh_together", refresh_together)):
        if value is not None:
            _check.check_count(name, value)
    _check.check_number("tau", tau, low=0.0, high=1.0)
    if refresh_budget is not None:
        _check.check_fixed_number("refresh_budget", refresh_budget, low=0.0, low_open=True)
    _check.check_choice("orthonormalisation", orthonormalisation, METHODS)
    if block_size is not None:
        _check.check_count("block_size", block_size, low=2)
        if max_size is not None:
            _check.check_number("block_size", block_size, high=max_size)
    _check.check_fixed_number("max_state", max_state, low=0.0)
    _check.check_fixed_number("max_operations", max_operations, low=0.0)
    if not callable(sides):
        _check.check_choice("sides", sides, SIDES)
    _axes.check_axes(axes)
    _check.check_choice("correlate", correlate, CORRELATED)
    _check.check_choice("second_moments", second_moments, ("mix", "keep"))
    _check.check_state_dtype(state_dtype, squares=True)
    _check.check_mean_moves("decay", decay, "state_dtype", state_dtype)
    _check.check_names("linear_fields", linear_fields)
    _check.check_names("squared_fields", squared_fields)
    extra = fields_of(inner, linear_fields, squared_fields)
    inner = optax.with_extra_args_support(inner)
    differences, whitened = correlate == "gradient_differences", correlate == "whitened_gradients"
    rules = LayoutRules(sides, axes, max_size, block_size, max_state, max_operations, update_every, whitened)
    refresh_rules = RefreshRules(second_moments == "mix", tau, orthonormalisation, precision)

    def init(params: optax.Params) -> InEigenbasisState:
        _tree.check_inexact(params, "params")
        params = _tree.arrays(params)
        bare = _tree.bare(params)
        leaves, structure = jax.tree.flatten(bare)
        layouts = rules.layouts_with_warning(bare)
        inner_state = inner.init(_tree.widen(params))
        # Refuse undeclared fields here, not in the middle of a run.
        coordinate_arrays(inner_state, params, [layout is not None for layout in layouts], extra)

        def matrices(side: Literal["left", "right"], fill: Callable[..., jax.Array]) -> Any:
            made = [
                first_square(leaf, layout, side, fill, state_dtype)
                for leaf, layout in zip(leaves, layouts, strict=True)
            ]
            return jax.tree.unflatten(structure, made)

        return InEigenbasisState(
            count=jnp.zeros([], jnp.int32),
            left_factors=matrices("left", zeros),
            right_factors=matrices("right", zeros),
            left_bases=matrices("left", identity),
            right_bases=matrices("right", identity),
            previous_gradients=jax.tree.unflatten(
                structure,
                [
                    optax.MaskedNode()
                    if layout is None or not differences
                    else jnp.zeros_like(leaf, dtype=_tree.working_dtype(leaf))
                    for leaf, layout in zip(leaves, layouts, strict=True)
                ],
            ),
            kept_bases=varying_like(jnp.zeros([], jnp.int32), leaves),
            inner=enclosed(inner_state),
        )

    def update(
        updates: optax.Updates,
        state: InEigenbasisState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, InEigenbasisState]:
        _tree.check_inexact(updates, "gradients")
        updates, params = _tree.arrays((updates, _tree.trained(params, updates)))
        updates = jax.tree.map(bounded, updates)
        bare = _tree.bare(updates)
        gradients, structure = jax.tree.flatten(bare)
        layouts = rules.layouts(bare)
        check_made_for(bare, layouts, state.left_factors, state.right_factors)
        if params is not None:
            _check.check_gradients(bare, _tree.bare(params))
        matrices = {name: _leaves_up_to(structure, getattr(state, name)) for name in MATRICES}
        previous = _leaves_up_to(structure, state.previous_gradients)
        sources = differences_of(gradients, previous, state.count) if differences else gradients
        both = averaged_factors(correlate, sources, layouts, matrices, state.count, decay)
        matrices["left_factors"], matrices["right_factors"] = both
        dtypes = [_tree.working_dtype(gradient) for gradient in gradients]
        groups, period = schedule(layouts, dtypes, update_every, refresh_together, refresh_budget)
        observe.basis_used(lambda: account(bare, rules, state_dtype, period))
        shapes = [gradient.shape for gradient in gradients]

        def coordinates(inner_state: optax.OptState) -> list[list[Coordinates]]:
            turned = [layout is not None for layout in layouts]
            return coordinate_arrays(inner_state, updates, turned, extra)

        def refresh(inner_state: optax.OptState) -> tuple[optax.OptState, jax.Array]:
            found = coordinates(inner_state)
            settling = settling_steps if fits_one_step(groups, refresh_budget) else 0
            arrays, inner_structure = jax.tree.flatten(inner_state)
            kept = jnp.zeros([], jnp.int32)
            for alike in alike_groups(groups):
                work = Refresh(alike, layouts, shapes, found, period, settling, refresh_rules)
                kept = kept + refresh_group(work, state.count, matrices, arrays)
            return jax.tree.unflatten(inner_structure, arrays), kept

        inner_state, pending = opened(state.inner)
        if differences:
            inner_state, kept = refresh(inner_state)
        else:
            kept = decompose_first(groups, matrices, state.count)
        frame = Frame(layouts, matrices["left_bases"], matrices["right_bases"], precision)
        if not differences:
            inner_state = frame.enter_captured(inner_state, coordinates(inner_state), state.count)
        turned = frame.enter(updates)
        if not differences:
            turned = without_noise(
                turned, layouts, state.count, [gradient.dtype for gradient in gradients], state_dtype
            )
        turned_params = None if params is None else frame.enter(params)
        turned, inner_state = inner.update(
            turned,
            consolidated_if(pending, inner_state, turned_params),
            turned_params,
            **frame.arguments(extra_args, updates if params is None else params),
        )
        tangent = frame.leave(turned, updates)
        if not differences:
            inner_state, failed = refresh(inner_state)
            kept = kept + failed
        else:
            previous = [
                old if _tree.is_masked(old) else jnp.array(gradient, dtype=old.dtype, copy=True)
                for gradient, old in zip(gradients, previous, strict=True)
            ]
        return tangent, InEigenbasisState(
            count=optax.safe_increment(state.count),
            previous_gradients=jax.tree.unflatten(structure, previous),
            kept_bases=saturated_sum(state.kept_bases, kept),
            inner=enclosed_like(state.inner, inner_state),
            **{name: jax.tree.unflatten(structure, matrices[name]) for name in MATRICES},
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _leaves_up_to(structure: Any, tree: Any) -> list[Any]:
    leaves: list[Any] = structure.flatten_up_to(tree)
    return leaves
