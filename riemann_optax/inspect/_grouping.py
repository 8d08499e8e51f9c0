"""Equal lines of numbered layers as one line: a Transformer has a hundred arrays, and some ten kinds."""

import re
from collections.abc import Sequence

# 01 is a word, which would not come back from its number, and so is the 2 of conv2d.
NUMBER = re.compile(r"(?<!\d)(?:0|[1-9]\d*)(?![\dA-Za-z])")
Box = tuple[tuple[int, ...], ...]  # for each number in a name, the values that it takes


def grouped(entries: Sequence[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...], int]]:
    """Join entries that are equal but for the numbers in their names.

    Args:
      entries: a name and what is said of it.

    Returns:
      Names, with ``0..5`` for all numbers from 0 to 5; what is said of each; and of how many. Entries of
      one kind stand together, where the first of them stood.

    Examples:
      >>> grouped([("['h'][0]['w']", ("2",)), ("['out']", ("3",)), ("['h'][1]['w']", ("2",))])
      [("['h'][0..1]['w']", ('2',), 2), ("['out']", ('3',), 1)]
    """
    kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], list[tuple[int, ...]]] = {}
    for name, said in entries:
        words = tuple(NUMBER.split(name))
        kinds.setdefault((words, said), []).append(tuple(map(int, NUMBER.findall(name))))
    lines = []
    for (words, said), numbers in kinds.items():
        for box in boxes(numbers):
            count = 1
            name = words[0]
            for values, word in zip(box, words[1:], strict=True):
                count *= len(values)
                name += written(values) + word
            lines.append((name, said, count))
    return lines


def boxes(numbers: Sequence[tuple[int, ...]]) -> list[Box]:
    """Return products of sets that hold the given tuples of numbers, each once, and no others.

    Examples:
      >>> boxes([(0, 1), (0, 2), (1, 1), (1, 2), (3, 1)])
      [((0, 1, 3), (1,)), ((0, 1), (2,))]
    """
    found: list[Box] = [tuple((number,) for number in one) for one in numbers]
    for place in range(len(numbers[0])):
        joined: dict[tuple[Box, Box], tuple[int, ...]] = {}
        for box in found:
            rest = box[:place], box[place + 1 :]
            joined[rest] = joined.get(rest, ()) + box[place]
        found = [(*before, tuple(sorted(values)), *after) for (before, after), values in joined.items()]
    return found


def written(values: tuple[int, ...]) -> str:
    """Return how numbers are written: ``3``, ``0..5`` or ``0,2,5``.

    Examples:
      >>> written((3,)), written((0, 1, 2)), written((0, 2, 5))
      ('3', '0..2', '0,2,5')
    """
    first, last = values[0], values[-1]
    if first == last:
        return str(first)
    if last - first == len(values) - 1:
        return f"{first}..{last}"
    return ",".join(map(str, values))
