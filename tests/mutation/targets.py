"""What is mutated, and the tests that must notice it: those of the module itself that need no cluster."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """A module and its tests.

    Attributes:
        name: what `make mutate MODULES=…` calls it.
        files: what is mutated, under `platform/headway/`.
        tests: what runs for each mutant, files or single tests under `tests/`; a few seconds in all.
        without: words in the names of tests that are left out, since they take long.
    """

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    without: tuple[str, ...] = ()


_ALL = (
    Target("sampling", ("data/sampling.py",), ("data/test_sampling.py",)),
    Target("ledger", ("sweeps/ledger.py",), ("sweeps/test_ledger.py",)),
    Target("digest", ("pipeline/digest.py",), ("pipeline/test_digest.py",)),
    Target("masking", ("data/pretraining/masking.py",), ("data/pretraining/test_masking.py",)),
    Target(
        "batches",
        ("data/batches.py",),
        (
            "data/test_labelled_batches.py",
            "data/test_batches.py::test_collating_moves_places_with_their_sequence",
        ),
    ),
    Target("queue", ("serving/scheduling/queue.py",), ("serving/scheduling/test_queue.py",)),
    Target(
        "dispatch",
        ("serving/scheduling/dispatch.py",),
        ("serving/scheduling/test_dispatch.py",),
        without=("leaves_together", "smaller_packs"),
    ),
    Target(
        "checkpoints",
        (
            "engine/checkpoint/checkpoints.py",
            "engine/checkpoint/saved_states.py",
            "engine/checkpoint/storage.py",
        ),
        (
            "engine/checkpoint/test_checkpoints.py",
            "engine/checkpoint/test_saved_states.py",
            "engine/checkpoint/test_storage.py",
            "engine/checkpoint/test_two_workers.py",
            "engine/checkpoint/test_unpickling.py",
        ),
        without=("s3", "bit_identical", "same_dropout", "number_of_workers"),
    ),
    Target(
        "trainer",
        ("engine/training/trainer.py",),
        ("engine/training/test_hooks.py", "engine/training/test_trainer_loop.py"),
    ),
    Target(
        "search",
        ("sweeps/search/domain.py", "sweeps/search/sampler.py", "sweeps/search/space.py"),
        (
            "sweeps/search/test_domain.py",
            "sweeps/search/test_optuna.py",
            "sweeps/search/test_sampler.py",
            "sweeps/search/test_space.py",
        ),
    ),
)
TARGETS = {target.name: target for target in _ALL}
