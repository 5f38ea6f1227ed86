"""How many rows of each class a step learns from and is judged on: shown, logged, and gaps told."""

from __future__ import annotations

from collections.abc import Mapping

from headway.runs.context import Context
from headway.tasks.rows import Rows
from headway.tracking import Run

_MOST_IN_A_LINE = 8


def tell_class_counts(splits: Mapping[str, Rows], context: Context, run: Run) -> None:
    """Show and log the counts of all classes; a class that a split has no row of is named.

    Args:
        splits: the rows of each, by its name.
        context: of the step, whose screen is written to.
        run: gets the counts as `classes.json`.
    """
    counts = {name: rows.class_counts for name, rows in splits.items()}
    classes = sorted({name for found in counts.values() for name in found})
    if not classes:
        return
    run.log_dict(
        {split: {name: found.get(name, 0) for name in classes} for split, found in counts.items()},
        "classes.json",
    )
    table = [(name, *(found.get(name, 0) for found in counts.values())) for name in classes]
    title = f"rows of each class ({' / '.join(counts)})"
    if len(classes) <= _MOST_IN_A_LINE:
        said = ", ".join(f"{name} {' / '.join(map(str, numbers))}" for name, *numbers in table)
        context.display.step(context.step, f"{title}: {said}")
    else:
        context.display.table(title, ["", *counts], table)
    for split, found in counts.items():
        missing = [name for name in classes if name not in found]
        if missing:
            said = ", ".join(map(repr, missing))
            context.display.step(context.step, f"no row in the {split} split, so nothing is known of: {said}")
