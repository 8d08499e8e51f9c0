"""What the target accuracy costs in energy: the chapter, from records alone."""

from benchmarks.energy.protocols import PROTOCOLS
from benchmarks.energy.table import LEGEND, cells_of, rows
from benchmarks.shared.markdown import table
from benchmarks.shared.records import Records


def chapter(records: Records) -> str:
    """Return the chapter, empty without records."""
    parts = []
    for name, protocol in PROTOCOLS.items():
        for data, target in protocol.target.items():
            found = rows(records, name, data, protocol.hidden)
            if found:
                sizes = "-".join(map(str, protocol.hidden))
                parts += [
                    f"### {protocol.title}; hidden {sizes}; {data}, to {target:.0%}",
                    table(*cells_of(found)),
                ]
    if not parts:
        return ""
    return "\n\n".join(["## Energy", LEGEND, *parts]) + "\n"
