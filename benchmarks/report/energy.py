"""What the target accuracy costs in energy: the chapter and a short table, from records alone."""

from benchmarks.energy.laboratory import FULL
from benchmarks.energy.methods import methods
from benchmarks.energy.protocols import PROTOCOLS
from benchmarks.energy.table import LEGEND, Row, cells_of, rows
from benchmarks.report.claims import Claim
from benchmarks.shared.markdown import table
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
    """Return what was to be shown: on each data set at most the energy of the best published rule."""
    by = f"means of {len(FULL.seeds)} fresh seeds"
    return [
        Claim(
            f"energy, {name.replace('_', ' ')}, {data}: {ours.method} over {peer.method}",
            ours.energy / peer.energy,
            1.0,
            by,
        )
        for (name, data), (ours, peer) in against_published(records).items()
    ]


def against_published(records: Records) -> dict[tuple[str, str], tuple[Row, Row]]:
    """Return by protocol and data the cheapest of ours and of the published rules, of those that arrive."""
    result = {}
    for (name, data), lines in recorded(records).items():
        spent = [_least(name, lines, role) for role in ("ours", "peer")]
        if all(spent):
            result[name, data] = (spent[0][0], spent[1][0])
    return result


def _least(protocol: str, lines: list[Row], role: str) -> list[Row]:
    """Return the rule of a role that spends least, none where none arrives on all seeds."""
    own = [row for row in lines if methods(protocol)[row.method].role == role and not row.missed]
    return own[:1]  # they are in the order of their energy


def short_table(records: Records) -> str:
    """Lay out the energy of every rule, a column for each protocol, the cheapest of the first one first."""
    found = recorded(records)
    rules = dict.fromkeys(row.method for lines in found.values() for row in lines)
    by_rule = [{row.method: row for row in lines} for lines in found.values()]
    headings = [f"{name.replace('_', ' ')}, {data}" for name, data in found]
    cells = [[rule, *(_energy(lines.get(rule)) for lines in by_rule)] for rule in rules]
    return table(["rule", *headings], cells)


def _energy(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row.missed} missed" if row.missed else f"{row.energy:,.0f} ± {row.error:.2g}"
