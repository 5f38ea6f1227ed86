"""Which rows are trained on and which are not: whole groups, chosen by hash, every class on every side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from headway.config.base import ConfigError
from headway.data.sampling import random_generator
from headway.data.sources.splitting import text_key, unit_hash
from headway.tasks.item import Item

TRAIN = "train"
_ANY = ""
"""The class that every row has: so no side stays empty if that can be helped."""


class Side(NamedTuple):
    """What is kept from training.

    Attributes:
        name: of the side.
        share: of the rows that the sides before it leave.
        salt: of the hash that chooses them.
    """

    name: str
    share: float
    salt: str


@dataclass
class _Group:
    """Rows that stay together.

    Attributes:
        rows: their indices.
        key: the same for the same rows, whatever their order.
        classes: of all of them.
        side: where they are.
    """

    rows: list[int]
    key: bytes
    classes: set[str]
    side: str = TRAIN


def groups_of(items: Sequence[Item]) -> list[int]:
    """The number of each row's group: rows are in one if they share a key, or each shares one with a third.

    Four rows with the keys `a b`, `c`, `b d` and `d` are in the groups 0, 1, 0 and 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys: dict[bytes, int] = {}
    edges = [
        (row, len(items) + keys.setdefault(text_key(key), len(keys)))
        for row, item in enumerate(items)
        for key in item.keys
    ]
    size = len(items) + len(keys)
    rows, columns = np.asarray(edges, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges), np.int8), (rows, columns)), shape=(size, size))
    _, found = connected_components(graph, directed=False)
    return [int(number) for number in found[: len(items)]]


def split_rows(items: Sequence[Item], sides: Sequence[Side]) -> dict[str, list[Item]]:
    """Rows of each side, and of `train`: the rest.

    The hash of a group's key says on which side it is, whatever other rows there are; a group of more rows
    than a side should have is trained on. Only if a class has no row on a side do groups that hold it change
    theirs: those with the lowest hashes, until the class has its share there, and as long as no class loses
    its last row where they were. A class of one row is trained on; one of two has the other on one of the
    sides.
    """
    groups = _groups(items)
    for group in groups:
        group.side = _side_of(group, sides, len(items))
    _complete(groups, sides, len(items))
    side_of_row = {row: group.side for group in groups for row in group.rows}
    return {
        name: [item for row, item in enumerate(items) if side_of_row[row] == name]
        for name in (TRAIN, *(side.name for side in sides))
    }


def _groups(items: Sequence[Item]) -> list[_Group]:
    found: dict[int, _Group] = {}
    for row, (number, item) in enumerate(zip(groups_of(items), items, strict=True)):
        key, classes = text_key(item.keys[0]), {_ANY, *item.classes}
        group = found.setdefault(number, _Group([], key, set()))
        group.rows.append(row)
        group.key = min(group.key, key)
        group.classes |= classes
    return list(found.values())


def _side_of(group: _Group, sides: Sequence[Side], rows: int) -> str:
    for side in sides:
        if len(group.rows) <= math.ceil(side.share * rows) and unit_hash(group.key, side.salt) < side.share:
            return side.name
    return TRAIN


def _complete(groups: list[_Group], sides: Sequence[Side], rows: int) -> None:
    """Give each class its share on the sides that have none of it."""
    present = Counter((group.side, name) for group in groups for name in group.classes)
    by_class: dict[str, list[_Group]] = {}
    for group in groups:
        for name in group.classes:
            by_class.setdefault(name, []).append(group)
    for side, share in _shares(sides):
        for name in sorted(by_class):
            if present[side.name, name]:
                continue
            wanted = max(1, round(share * len(by_class[name])))
            taken = _candidates(by_class[name], side, rows)
            for group in taken:
                if all(present[group.side, held] > 1 for held in group.classes):
                    _move(group, side.name, present)
                if present[side.name, name] >= wanted:
                    break
            if side.name == TRAIN and not present[TRAIN, name]:
                # What is not trained on cannot be asked for: better nowhere else than not here.
                _move(taken[0], TRAIN, present)


def _move(group: _Group, side: str, present: Counter[tuple[str, str]]) -> None:
    present.subtract((group.side, name) for name in group.classes)
    present.update((side, name) for name in group.classes)
    group.side = side


def _shares(sides: Sequence[Side]) -> Iterator[tuple[Side, float]]:
    """Each side with its share of all rows; what is trained on comes first."""
    left, shares = 1.0, []
    for side in sides:
        shares.append((side, left * side.share))
        left -= left * side.share
    yield Side(TRAIN, left, TRAIN), left
    yield from shares


def _candidates(groups: list[_Group], side: Side, rows: int) -> list[_Group]:
    """Groups in the order in which they are taken: small enough ones first, then by hash."""
    most = math.ceil(side.share * rows)
    return sorted(groups, key=lambda group: (len(group.rows) > most, unit_hash(group.key, side.salt)))


def deal_groups(groups: Sequence[int], strata: Sequence[str], parts: int, seed: int) -> np.ndarray:
    """Deal rows into parts of like size, groups whole, each stratum evenly.

    Args:
        groups: of each row.
        strata: what each row is of: its class, or whatever is to be spread evenly.
        parts: how many.
        seed: of the order in which groups of like size are dealt.

    Returns:
        The part of each row, int64, shape (rows,).

    Raises:
        ConfigError: there are fewer groups than parts.
    """
    rows_of: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    if len(rows_of) < parts:
        raise ConfigError(
            f"folds: {parts}, but rows that share a text stay together, and there are only "
            f"{len(rows_of)} groups of them"
        )
    shuffled = [list(rows_of.values())[i] for i in random_generator(seed, parts).permutation(len(rows_of))]
    stratum_of = {rows[0]: "\n".join(sorted({strata[row] for row in rows})) for rows in shuffled}
    shuffled.sort(key=lambda rows: (stratum_of[rows[0]], -len(rows)))
    result = np.empty(len(groups), np.int64)
    sizes, of_stratum, last = np.zeros(parts), np.zeros(parts), None
    for rows in shuffled:
        if stratum_of[rows[0]] != last:
            last, of_stratum = stratum_of[rows[0]], np.zeros(parts)
        part = int(np.lexsort((sizes, of_stratum))[0])
        result[rows] = part
        sizes[part] += len(rows)
        of_stratum[part] += len(rows)
    return result
