"""Change the source a line at a time and see which changes no test notices: `make mutate`.

mutmut writes all mutants of a module into one copy of it, which chooses between them at each call, so a
process with all imports done forks once for each. It knows no source root but `src/`, so each module gets a
workspace under `build/mutation/` with the package at `src/headway`, and only the tests that `targets.py` has.
This process has imported the libraries before, but nothing of Headway, which each module's process imports
mutated.

Every survivor must be listed in docs/mutants.md with the reason why it may live.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path

import click
from listed import Mutant, listed_mutants
from targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
WORKSPACES = ROOT / "build" / "mutation"
MIN_KILLED = 0.85
"""Share of the mutants of all modules that are run."""

# Messages are for people: no test holds their wording. What decides that one is raised or logged is mutated.
MESSAGES = [r"^\s*(raise \w|_?log(ger)?\.)"]

# Without what writes into the workspace, and what costs time or starts threads before the fork.
PYTEST = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:schemathesis", "-p", "fastest_first"]

LIBRARIES = ["pytest", "numpy", "torch", "transformers", "mlflow", "optuna"]
"""Imported once for all modules."""


@dataclass
class Outcome:
    """What became of the mutants of one module."""

    target: Target
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    survivors: list[Mutant] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All mutants."""
        return sum(self.statuses.values())

    @property
    def killed(self) -> int:
        """Those that a test noticed; one that ends the tests' process or never comes back is noticed too."""
        return sum(self.statuses[status] for status in ("killed", "timeout", "segfault", "suspicious"))


@click.command()
@click.argument("names", nargs=-1)
@click.option("--again", is_flag=True, help="Keep the kills of the last run, and try the survivors only.")
@click.option("--jobs", default=os.cpu_count(), show_default=True, help="Mutants tried at a time.")
def main(names: tuple[str, ...], again: bool, jobs: int) -> None:
    """Mutate the modules NAMES, by default all, and compare the survivors with docs/mutants.md."""
    if unknown := set(names) - TARGETS.keys():
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: allowed are {', '.join(TARGETS)}")
    os.environ["OMP_NUM_THREADS"] = "1"  # a second thread would not be there after a fork
    for library in LIBRARIES:
        importlib.import_module(library)
    outcomes = [run(TARGETS[name], again, jobs) for name in names or TARGETS]
    click.echo(table(outcomes))
    sys.exit(complaints(outcomes))


def run(target: Target, again: bool, jobs: int) -> Outcome:
    """Try all mutants of a module."""
    workspace = WORKSPACES / target.name
    if not again:
        shutil.rmtree(workspace, ignore_errors=True)
    prepare(workspace, target)
    started = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=run_mutmut, args=(workspace, jobs))
    process.start()
    process.join()
    if process.exitcode:
        raise click.ClickException(
            f"mutmut failed on {target.name}; its output is in {workspace / 'log.txt'}"
        )
    with chdir(workspace):
        outcome = read_outcome(target)
    outcome.seconds = time.monotonic() - started
    click.echo(f"{target.name}: {outcome.killed} of {outcome.total} killed in {outcome.seconds:.0f} s")
    return outcome


def run_mutmut(workspace: Path, jobs: int) -> None:
    """Run mutmut in this process, which was forked for that."""
    os.chdir(workspace)  # mutmut looks for its settings where it is imported
    with Path("log.txt").open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    from mutmut.__main__ import cli

    # Processes that tests start find the mutants too.
    own = str(workspace / "mutants" / "src")
    os.environ["PYTHONPATH"] = os.pathsep.join([own, os.environ.get("PYTHONPATH", "")])
    forget_survivors()
    cli.main(["run", "--max-children", str(jobs)], standalone_mode=False)


def prepare(workspace: Path, target: Target) -> None:
    """Lay the repository out as mutmut expects it."""
    (workspace / "src").mkdir(parents=True, exist_ok=True)
    (workspace / "mutants").mkdir(exist_ok=True)
    for link, original in (("src/headway", "platform/headway"), ("tests", "tests")):
        if not (workspace / link).is_symlink():
            (workspace / link).symlink_to(ROOT / original)
    selected = ["-k", f"not ({' or '.join(target.without)})"] if target.without else []
    settings = {
        "source_paths": ["src/headway"],
        "only_mutate": [f"src/headway/{file}" for file in target.files],
        "do_not_mutate_patterns": MESSAGES,
        "pytest_add_cli_args": PYTEST,
        "pytest_add_cli_args_test_selection": [*selected, *(f"tests/{test}" for test in target.tests)],
        # Tests fill caches and start threads; here no process that forks has run one.
        "process_isolation": "forkserver",
        # Seconds are (those of the tests + 4) x 8: a busy machine must not be taken for an endless loop.
        "timeout_constant": 4.0,
        "timeout_multiplier": 8.0,
        "use_git_change_detection": False,
    }
    lines = [f"{name} = {_toml(value)}\n" for name, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (workspace / "pyproject.toml").write_text(
        project + "\n[tool.mutmut]\n" + "".join(lines), encoding="utf-8"
    )


def _toml(value: object) -> str:
    """A list, string, number or truth value as TOML."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return f"'{value}'"
    return str(value).lower()


def forget_survivors() -> None:
    """Let mutmut try again, with all tests as they are now, what the last run here did not kill."""
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.stats import status_by_exit_code

    Path("mutants/mutmut-stats.json").unlink(missing_ok=True)
    for meta in Path("mutants").rglob("*.py.meta"):
        data = SourceFileMutationData(path=meta.relative_to("mutants").with_suffix(""))
        data.load()
        for name, code in data.exit_code_by_key.items():
            if status_by_exit_code[code] != "killed":
                data.exit_code_by_key[name] = None
        data.save()


def read_outcome(target: Target) -> Outcome:
    """What mutmut has written down about a module's mutants."""
    from mutmut.configuration import reset_config
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code

    reset_config()
    outcome = Outcome(target)
    for file in target.files:
        path = Path("src/headway", file)
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            outcome.statuses[status] += 1
            if status in ("survived", "no tests", "not checked"):
                diff = get_diff_for_mutant(name, path=path)
                outcome.survivors.append(Mutant.of_diff(file, function_of(name), diff))
    return outcome


def function_of(name: str) -> str:
    """The function that a mutant's name speaks of: `a.b.xǁRow Logǁreadǁ__mutmut_3` is in `Row Log.read`."""
    mangled = name.rpartition(".")[2].partition("__mutmut_")[0]
    return mangled.removeprefix("xǁ").replace("ǁ", ".") if "ǁ" in mangled else mangled.removeprefix("x_")


def table(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as a Markdown table, with a line for all of them together."""
    rows = ["| module | mutants | killed | survived | killed, % | seconds |", "|---|--:|--:|--:|--:|--:|"]
    whole = Outcome(Target("all", (), ()))
    for outcome in outcomes:
        rows.append(_row(outcome))
        whole.statuses += outcome.statuses
        whole.seconds += outcome.seconds
    return "\n".join([*rows, _row(whole)])


def _row(outcome: Outcome) -> str:
    share = outcome.killed / max(outcome.total, 1)
    survived = outcome.total - outcome.killed
    return (
        f"| {outcome.target.name} | {outcome.total} | {outcome.killed} | {survived} | {share:.1%} "
        f"| {outcome.seconds:.0f} |"
    ).replace("%", "")


def complaints(outcomes: list[Outcome]) -> str | None:
    """Why these outcomes are not good enough; nothing if they are."""
    files = {file for outcome in outcomes for file in outcome.target.files}
    listed = {mutant for mutant in listed_mutants() if mutant.file in files}
    survivors = {mutant: None for outcome in outcomes for mutant in outcome.survivors}
    found = []
    if unlisted := [mutant for mutant in survivors if mutant not in listed]:
        found.append("Survivors that docs/mutants.md does not list:\n\n" + "\n".join(map(str, unlisted)))
    if dead := sorted(map(str, listed - survivors.keys())):
        found.append("Listed in docs/mutants.md, but no survivors:\n\n" + "\n".join(dead))
    killed, total = sum(o.killed for o in outcomes), sum(o.total for o in outcomes)
    if killed < MIN_KILLED * total:
        found.append(f"{killed} of {total} mutants killed, which is less than {MIN_KILLED:.0%}.")
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(found)) or None


if __name__ == "__main__":
    main()
