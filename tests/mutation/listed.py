"""The mutants that may live, as docs/mutants.md lists them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "mutants.md"


class Mutant(NamedTuple):
    """One change of one function, known by its text, since numbers move whenever a function is edited.

    Attributes:
        file: path under `platform/headway/`.
        function: its name, with its class for a method.
        was: the lines before, stripped.
        now: the lines after, stripped.
    """

    file: str
    function: str
    was: tuple[str, ...]
    now: tuple[str, ...]

    @classmethod
    def of_diff(cls, file: str, function: str, diff: str) -> Mutant:
        """That of a unified diff."""
        lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
        was = tuple(line[1:].strip() for line in lines if line.startswith("-"))
        now = tuple(line[1:].strip() for line in lines if line.startswith("+"))
        return cls(file, function, was, now)

    def __str__(self) -> str:
        """As docs/mutants.md lists it."""
        head = f"@@ {self.file} {self.function}"
        return "\n".join([head, *(f"- {line}" for line in self.was), *(f"+ {line}" for line in self.now)])


def listed_mutants(page: str | None = None) -> list[Mutant]:
    """All mutants in the blocks marked `diff` of the page, in its order."""
    text = PAGE.read_text(encoding="utf-8") if page is None else page
    blocks = re.findall(r"^```diff\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    parts = [part for block in blocks for part in re.split(r"^@@ ", block, flags=re.MULTILINE)[1:]]
    split = [part.partition("\n") for part in parts]
    return [Mutant.of_diff(*_file_and_function(head), diff) for head, _, diff in split]


def _file_and_function(head: str) -> tuple[str, str]:
    file, _, function = head.partition(" ")
    return file, function
