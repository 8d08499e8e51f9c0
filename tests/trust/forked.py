"""Tests run in forked processes of one that has imported JAX already: what importing costs is paid once."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Recorder:
    """A pytest plugin that notes the time of each test and the first that failed."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest for setup, call and teardown of each test."""
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """Called by pytest for each file it has imported."""
        if report.failed:
            self.failed.append(report.nodeid)


@contextlib.contextmanager
def changed(path: Path, text: str) -> Iterator[None]:
    """Let a file hold another text for a while."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


def in_child(work: Callable[[], dict[str, Any]], timeout: float) -> dict[str, Any]:
    """Return the result of ``work`` done in a forked process, or say that it took too long or died."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        with contextlib.suppress(BaseException):
            os.write(send, json.dumps(work()).encode())
        os._exit(0)
    os.close(send)
    ready, _, _ = select.select([receive], [], [], timeout)
    answer = os.read(receive, 1 << 16) if ready else b""
    os.close(receive)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if answer:
        return json.loads(answer)
    return {"outcome": "died" if ready else "timeout", "by": ""}


def judge(tests: list[str]) -> dict[str, Any]:
    """Run tests until one fails."""
    import pytest

    recorder = Recorder()
    # The parent has imported what pytest would like to rewrite.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = int(pytest.main([*options, *tests], plugins=[recorder]))
    if code == 0:
        return {"outcome": "survived", "by": ""}
    # Without a failed test pytest itself could not go on: that says nothing about the mutant.
    return {
        "outcome": "killed" if recorder.failed else "error",
        "by": (recorder.failed or [f"exit {code}"])[0],
    }


def compile_sources(tree: Path) -> None:
    """Compile all sources once, checked by their contents: a child then compiles only the changed one."""
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", str(tree)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    sys.dont_write_bytecode = True


def import_once() -> None:
    """Import what every child needs, without starting JAX's backend, which would not survive a fork."""
    import warnings

    warnings.filterwarnings("ignore", message=".*os.fork.*")
    import chex  # noqa: F401
    import flax.nnx  # noqa: F401
    import hypothesis  # noqa: F401
    import optax  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
