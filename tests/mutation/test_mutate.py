"""What `make mutate` says of the survivors, and that the list of them is about the source as it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from listed import Mutant, listed_mutants
from mutate import Outcome, complaints, function_of, table
from targets import TARGETS, Target

PACKAGE = Path(__file__).parents[2] / "platform" / "headway"
TESTS = Path(__file__).parents[1]
TARGET = Target("name", ("a.py",), ())
DIFF = "--- a.py\n+++ a.py\n@@ -1,3 +1,3 @@\n def f():\n-    return 1\n+    return 2"
MUTANT = Mutant("a.py", "f", ("return 1",), ("return 2",))


@pytest.mark.parametrize("mutant", listed_mutants(), ids=lambda mutant: f"{mutant.file} {mutant.function}")
def test_a_listed_mutant_changes_lines_that_are_there(mutant):
    lines = [line.strip() for line in (PACKAGE / mutant.file).read_text(encoding="utf-8").splitlines()]
    assert mutant.was and all(line in lines for line in mutant.was)
    assert any(mutant.file in target.files for target in TARGETS.values())


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_targets_name_files_that_are_there(target):
    assert all((PACKAGE / file).is_file() for file in target.files)
    assert all((TESTS / test.partition("::")[0]).is_file() for test in target.tests)


def test_a_mutant_is_known_by_its_text():
    assert Mutant.of_diff("a.py", "f", DIFF) == MUTANT
    assert (
        listed_mutants(f"Why:\n\n```diff\n{MUTANT}\n{MUTANT}\n```\n\n```python\n@@ a.py f\n```\n")
        == [MUTANT] * 2
    )


def test_a_mutants_name_says_which_function_it_changes():
    assert function_of("headway.a.x_find_all__mutmut_12") == "find_all"
    assert function_of("headway.a.xǁSavedStatesǁ_best__mutmut_3") == "SavedStates._best"


@pytest.fixture
def listing(monkeypatch):
    """A function that says what is listed."""

    def list_these(*mutants: Mutant) -> None:
        monkeypatch.setattr("mutate.listed_mutants", lambda: list(mutants))

    return list_these


def outcome(killed: int, *survivors: Mutant) -> Outcome:
    return Outcome(TARGET, 1.0, Counter(killed=killed, survived=len(survivors)), list(survivors))


def test_all_is_well_if_every_survivor_is_listed(listing):
    listing(MUTANT, Mutant("another.py", "f", (), ()))
    assert complaints([outcome(9, MUTANT)]) is None


def test_a_survivor_that_is_not_listed_is_told_as_it_would_be(listing):
    listing()
    told = complaints([outcome(9, MUTANT)])
    assert told is not None and "@@ a.py f\n- return 1\n+ return 2" in told


def test_what_is_listed_must_survive(listing):
    listing(MUTANT)
    told = complaints([outcome(9)])
    assert told is not None and told.startswith("Listed in docs/mutants.md, but no survivors:")


def test_too_few_kills_are_too_few_though_all_survivors_are_listed(listing):
    listing(MUTANT)
    assert complaints([outcome(5, MUTANT)]) == "5 of 6 mutants killed, which is less than 85%."


def test_the_table_sums_up_all_modules():
    said = table([outcome(3, MUTANT), Outcome(TARGET, 2.0, Counter(killed=5, timeout=1, survived=2))])
    assert said.splitlines()[-1] == "| all | 12 | 9 | 3 | 75.0 | 3 |"
