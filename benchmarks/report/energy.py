"""What the target accuracy costs in energy: the chapter and a short table, from records alone."""

from collections import Counter

import numpy as np

from benchmarks.energy.methods import methods
from benchmarks.energy.protocols import PROTOCOLS
from benchmarks.energy.table import LEGEND, Row, cells_of, rows
from benchmarks.report.claims import Claim
from benchmarks.shared.markdown import table, two_digits
from benchmarks.shared.records import Records


def recorded(records: Records) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of every protocol on every data set that has any."""
    found = {
        (name, data): rows(records, name, data, protocol.hidden)
        for name, protocol in PROTOCOLS.items()
        for data in protocol.target
    }
    return {key: lines for key, lines in found.items() if lines}


def chapter(records: Records) -> str:
    """Return the chapter, empty without records."""
    parts = []
    for (name, data), lines in recorded(records).items():
        protocol = PROTOCOLS[name]
        sizes = "-".join(map(str, protocol.hidden))
        parts.append(f"### {protocol.title}; hidden {sizes}; {data}, to {protocol.target[data]:.0%}")
        parts.append(table(*cells_of(lines)))
    if not parts:
        return ""
    return "\n\n".join(["## Energy", LEGEND, *parts]) + "\n"


def claims(records: Records) -> list[Claim]:
    """Return what was to be shown: on each data set at most the energy of the best published rule.

    Of ours the cheapest that misses no seed. A published rule is compared on the seeds on which it arrives,
    at least half of them: its misses do not make it dearer.
    """
    result = []
    for (name, data), lines in recorded(records).items():
        role = {row.method: methods(name)[row.method].role for row in lines}
        # They are in the order of their energy.
        ours = next((row for row in lines if role[row.method] == "ours" and not row.missed), None)
        peers = [row for row in lines if role[row.method] == "peer" and 2 * row.missed <= len(row.energies)]
        if ours is not None and peers:
            value, peer = max(((_over(ours, row), row) for row in peers), key=lambda pair: pair[0])
            count = len(ours.energies)
            seeds = f"{count - peer.missed} of {count}" if peer.missed else str(count)
            note = f"means of {seeds} fresh seeds" + (", the other misses the rest" if peer.missed else "")
            text = f"energy, {name.replace('_', ' ')}, {data}: {ours.method} over {peer.method}"
            result.append(Claim(text, value, 1.0, note))
    return result


def _over(ours: Row, peer: Row) -> float:
    """Return the ratio of mean energies on the seeds on which both arrive."""
    both = np.isfinite(ours.energies) & np.isfinite(peer.energies)
    return float(ours.energies[both].mean() / peer.energies[both].mean())


def short_table(records: Records) -> str:
    """Lay out the energy of every rule, a column for each protocol, the cheapest of the first one first."""
    found = recorded(records)
    rules = dict.fromkeys(row.method for lines in found.values() for row in lines)
    by_rule = [{row.method: row for row in lines} for lines in found.values()]
    headings = [f"{name.replace('_', ' ')}, {data}" for name, data in found]
    cells = [[rule, *(_energy(lines.get(rule)) for lines in by_rule)] for rule in rules]
    return table(["rule", *headings], cells)


def widths_table(records: Records) -> str:
    """Lay out the energy of the rules that ran at several widths of the hidden layer, a column for each."""
    protocol = {"protocol": "van_rossum_pache", "data": "digits"}
    keys = [entry["key"] for entry in records]
    widths = sorted({key["hidden"][0] for key in keys if protocol.items() <= key.items()})
    by_rule = [{row.method: row for row in rows(records, **protocol, hidden=[width])} for width in widths]
    counts = Counter(rule for lines in by_rule for rule in lines)
    rules = [rule for rule, count in counts.items() if count > 1]
    cells = [[rule, *(_energy(lines.get(rule)) for lines in by_rule)] for rule in rules]
    return table(["rule", *(f"{width:,} hidden units" for width in widths)], cells)


def _energy(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row.missed} missed" if row.missed else f"{row.energy:,.0f} ± {two_digits(row.error)}"
