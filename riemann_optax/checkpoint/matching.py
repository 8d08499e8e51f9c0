"""Matching the states of two chains, by class and order."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Path = tuple[Any, ...]


class Station(NamedTuple):
    """A state with arrays of its own: a named tuple, or the tree outside of all named tuples.

    Attributes:
      path: its path in the tree.
      kind: its class.
      labels: the keys of dictionaries along its path, such as the labels of ``optax.partition``.
      arrays: its arrays by their path from here, without the arrays of named tuples within it.
    """

    path: Path
    kind: type[Any]
    labels: tuple[str, ...]
    arrays: dict[Path, Any]

    @property
    def name(self) -> str:
        """The name for messages."""
        place = jax.tree_util.keystr(self.path)
        return f"{place or 'the state'} ({self.kind.__name__})"


def containers_of(params: Any) -> frozenset[type[Any]]:
    """Return the classes of named tuples that parameters are in: within a state these are no states."""
    found = set()

    def visit(node: Any) -> bool:
        if hasattr(node, "_fields"):
            found.add(type(node))
        return False

    jax.tree.leaves(params, is_leaf=visit)
    return frozenset(found)


def stations(tree: Any, containers: frozenset[type[Any]] = frozenset(), path: Path = ()) -> Iterator[Station]:
    """Yield every state in a tree that has arrays of its own, outer states first.

    ``containers`` are the classes of named tuples that are no states.
    """

    def is_inner(node: Any) -> bool:
        return node is not tree and hasattr(node, "_fields") and type(node) not in containers

    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_inner)
    own = {place: node for place, node in nodes if not is_inner(node)}
    if own:
        labels = tuple(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
        yield Station(path, type(tree), labels, own)
    for place, node in nodes:
        if is_inner(node):
            yield from stations(node, containers, path + place)


def align(
    old: list[Station], new: list[Station], places: Mapping[str, str], anew: Collection[int] = ()
) -> dict[int, int]:
    """Return a dictionary from the index of each matched new station to the index of its old one.

    Those with an index in ``anew`` are matched with none.

    The match pairs as many stations of equal class and labels as possible, in the same order. It must be
    unique. What is left, labelled on one side only, is then paired by class alone: a chain that has come into
    ``optax.partition``, in one part of it or in several, or out of it, from one part.

    Raises:
      ValueError: if the match is not unique, or ``places`` names a missing path.
    """
    matched = dict.fromkeys(anew, -1) | _placed(old, new, places)
    pairs, unique = _in_order(old, new, matched, _key)
    if not unique:
        rest_old, rest_new = _rest(old, new, matched)
        unclear = _unclear([old[i] for i in rest_old], [new[j] for j in rest_new])
        raise ValueError(
            f"transplant: {unclear}: match them with places={{path here: path in the old state}}."
        )
    matched |= pairs
    rest_old, rest_new = _rest(old, new, matched)
    before, here = (any(found[i].labels for i in rest) for found, rest in ((old, rest_old), (new, rest_new)))
    if before != here:
        pairs, unique = _in_order(old, new, matched, _kind)
        if not unique and before:
            by_label: dict[tuple[str, ...], list[Path]] = {}
            for i in rest_old:
                by_label.setdefault(old[i].labels, []).append(old[i].path)
            parts = [_common(paths) for labels, paths in by_label.items() if labels]
            here_path = _common([new[j].path for j in rest_new])
            raise ValueError(
                f"transplant: {listed(parts, 6)} are parts of optax.partition, and here one state has them "
                f"all: match one of them, such as places={{{here_path!r}: {parts[0]!r}}}; the weights of the "
                "others begin anew."
            )
        matched |= pairs if unique else _split(old, new, matched)
    return {j: i for j, i in matched.items() if i >= 0}


def _common(paths: list[Path]) -> str:
    """Return where all of some paths begin."""
    same = itertools.takewhile(lambda entries: len(set(entries)) == 1, zip(*paths, strict=False))
    return jax.tree_util.keystr(tuple(entries[0] for entries in same))


def _split(old: list[Station], new: list[Station], matched: Mapping[int, int]) -> dict[int, int]:
    """Return the match of states that have come into ``optax.partition``, each part of it by itself.

    A state of all parameters is then that of several parts, each of which has the arrays of its own leaves.
    """
    pairs: dict[int, int] = {}
    _, rest_new = _rest(old, new, matched)
    for labels in dict.fromkeys(new[j].labels for j in rest_new):
        others = {j: -1 for j in range(len(new)) if j not in rest_new or new[j].labels != labels}
        found, unique = _in_order(old, new, others | dict(matched), _kind)
        if not unique:
            inside = " and ".join(new[j].name for j in rest_new if new[j].labels == labels)
            raise ValueError(
                f"transplant: {inside}: states of these classes are in another number or order in the old "
                "state: match them with places={path here: path in the old state}."
            )
        pairs |= found
    return pairs


def _rest(old: list[Station], new: list[Station], matched: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """Return the indices of stations that have no match."""
    taken = set(matched.values())
    return [i for i in range(len(old)) if i not in taken], [j for j in range(len(new)) if j not in matched]


def _in_order(
    old: list[Station], new: list[Station], matched: Mapping[int, int], key: Callable[[Station], Any]
) -> tuple[dict[int, int], bool]:
    """Return the most pairs of stations without a match that have one key, in order; and if no others are."""
    rest_old, rest_new = _rest(old, new, matched)
    same = [[key(old[i]) == key(new[j]) for j in rest_new] for i in rest_old]
    longest, ways = _longest(same, len(rest_old), len(rest_new))
    pairs = {}
    i = j = 0
    while i < len(rest_old) and j < len(rest_new):
        if same[i][j] and longest[i][j] == 1 + longest[i + 1][j + 1]:
            pairs[rest_new[j]] = rest_old[i]
            i, j = i + 1, j + 1
        elif longest[i + 1][j] == longest[i][j]:
            i += 1
        else:
            j += 1
    return pairs, ways[0][0] == 1


def _kind(station: Station) -> str:
    return station.kind.__name__


def _key(station: Station) -> tuple[str, tuple[str, ...]]:
    return station.kind.__name__, station.labels


def _placed(old: list[Station], new: list[Station], places: Mapping[str, str]) -> dict[int, int]:
    """Return the matches that the caller has given; the states within a state that is placed go with it."""
    matched = {}
    for here, there in places.items():
        within_new, within_old = _within(new, here), _within(old, there)
        for path, within, known, where in (
            (here, within_new, new, "here"),
            (there, within_old, old, "in the old state"),
        ):
            if not within:
                paths = ", ".join(repr(jax.tree_util.keystr(station.path)) for station in known)
                raise ValueError(
                    f"transplant: places names {path!r}, and {where} no state with arrays has this path or "
                    f"lies in it: give one of {paths}."
                )
        for suffix in within_new.keys() & within_old.keys():
            target, source = new[within_new[suffix]], old[within_old[suffix]]
            if target.kind.__name__ == source.kind.__name__:
                matched[within_new[suffix]] = within_old[suffix]
            elif not suffix:
                raise ValueError(
                    f"transplant: places gives {target.name} the place of {source.name} in the old state: "
                    "give states of one class."
                )
    return matched


def _within(found: list[Station], place: str) -> dict[str, int]:
    """Return the indices of the state at a place and of those within it, by the rest of their paths."""
    keystr = jax.tree_util.keystr
    return {
        keystr(station.path[length:]): index
        for index, station in enumerate(found)
        for length in range(len(station.path) + 1)
        if keystr(station.path[:length]) == place
    }


def _longest(same: list[list[bool]], rows: int, columns: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return, from each pair on, the length of the longest alignment and the number of such alignments."""
    longest = [[0] * (columns + 1) for _ in range(rows + 1)]
    ways = [[1] * (columns + 1) for _ in range(rows + 1)]
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            both = longest[i + 1][j + 1] + 1 if same[i][j] else 0
            best = max(both, longest[i + 1][j], longest[i][j + 1])
            # Alignments without i or without j; subtract those without both, which are counted twice.
            count = ways[i + 1][j] * (longest[i + 1][j] == best) + ways[i][j + 1] * (
                longest[i][j + 1] == best
            )
            count -= ways[i + 1][j + 1] * (longest[i + 1][j + 1] == best)
            longest[i][j], ways[i][j] = best, count + ways[i + 1][j + 1] * (both == best and same[i][j])
    return longest, ways


def _unclear(old: list[Station], new: list[Station]) -> str:
    """Say which states have more than one possible match."""
    for key in {_key(station): None for station in new}:
        before = [station.name for station in old if _key(station) == key]
        here = [station.name for station in new if _key(station) == key]
        if before and len(before) != len(here):
            return f"the old state has {' and '.join(before)}, and here there is {' and '.join(here)}"
    shared = {_key(s) for s in new} & {_key(s) for s in old}
    here, before = ([s.name for s in found if _key(s) in shared] for found in (new, old))
    return (
        f"the order of the states has changed: here {', '.join(here)}, in the old state {', '.join(before)}"
    )


def listed(items: Sequence[str], most: int) -> str:
    """Return some items with commas, and how many more there are."""
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def kind_of(leaf: Any) -> Any:
    """Return the kind of a dtype: boolean, integer, real, complex, or the implementation of a random key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype)
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    return next((kind for kind in kinds if jnp.issubdtype(leaf.dtype, kind)), leaf.dtype)


def same_leaves(station: Station, before: Station) -> bool:
    """Whether a record belongs to the same arrays of the model as before, with the same statistics."""
    if {p: np.shape(x) for p, x in station.arrays.items()} != {
        p: np.shape(x) for p, x in before.arrays.items()
    }:
        return False
    ids = (jax.tree_util.GetAttrKey("leaf_ids"),)
    return bool(np.array_equal(station.arrays[ids], before.arrays[ids]))


def is_below(name: str, path: str) -> bool:
    """Return whether a path is another one, or below it."""
    return name == path or (name.startswith(path) and name[len(path) :][:1] in (".", "["))
