"""Print every target beside its measured ratio, the whole table, and write record and picture."""

import argparse
import sys
from pathlib import Path

from benchmarks.shared.command import RESULTS, parse_with_folder, wide_console, without_folders
from benchmarks.shared.records import write_record
from benchmarks.step_cost.measure import COPY, Cost, measure
from benchmarks.step_cost.mesh import measure_in_a_program_of_its_own
from benchmarks.step_cost.methods import ALL, TOO_LARGE
from benchmarks.step_cost.problems import PROBLEMS
from benchmarks.step_cost.report import cost_table, draw, mesh_table, record, target_table


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_cost", description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--optimizers", nargs="+", choices=list(ALL), default=list(ALL))
    parser.add_argument("--rounds", type=int, default=9, help="turns of each optimiser, at least 4")
    parser.add_argument("--steps", type=int, default=5, help="updates in a turn")
    parser.add_argument("--no-mesh", action="store_true", help="leave out the eight devices")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of step_cost.json and step_cost.png"
    )
    options = parse_with_folder(parser, arguments, ["problems", "optimizers", "rounds", "steps", "no_mesh"])
    if options.rounds < 4 or options.steps < 1:
        parser.error("--rounds must be at least 4 and --steps at least 1")
    return options


def main(arguments: list[str]) -> None:
    """Run the benchmark; see ``--help``."""
    options = parse(arguments)
    console = wide_console()
    costs: dict[str, dict[str, Cost]] = {}
    for problem in options.problems:
        names = [name for name in options.optimizers if name not in TOO_LARGE.get(problem, ())]
        with console.status(problem) as status:
            costs[problem] = measure(
                problem,
                [COPY, *names],
                options.rounds,
                options.steps,
                lambda text, status=status, problem=problem: status.update(f"{problem}: {text}"),
            )
        console.print(cost_table(problem, costs[problem]))
    mesh = {} if options.no_mesh else measure_in_a_program_of_its_own(options.optimizers)
    if mesh:
        console.print(mesh_table(mesh))
    console.print(target_table(costs))
    result = record(costs, mesh, options.rounds, options.steps)
    write_record(
        options.out / "step_cost.json",
        ["python", "-m", "benchmarks.step_cost", *without_folders(arguments)],
        result,
    )
    draw(result["costs"], result["device"], options.out / "step_cost.png")
    console.print(f"written to {options.out}: step_cost.json, step_cost.png")


if __name__ == "__main__":
    main(sys.argv[1:])
