"""Prepare the corpus that a step's settings ask for, in this process or on the cluster."""

from __future__ import annotations

import shutil

from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.data.corpus.build import Progress, build_corpus, in_this_process
from headway.data.corpus.corpus import Corpus
from headway.data.sources.blocks import source_files
from headway.ray_data.pieces import do_on_cluster
from headway.runs.context import Context

LARGE_BYTES = 256_000_000
"""Size of the sources from which on `engine: auto` takes Ray; below, its start costs more than it saves."""


def prepared_corpus(config: CorpusConfig, context: Context, on_ray: bool | None = None) -> Corpus:
    """Prepare a corpus, or reuse one with the same content; shows the progress.

    Args:
        config: of the corpus.
        context: of the step.
        on_ray: what `uses_ray` says, if it was asked.

    Raises:
        ConfigError: see `build_corpus`; or the cluster cannot be joined. What this process did by itself
            is gone then; what the cluster did is kept, for the next try.
    """

    def tell(progress: Progress) -> None:
        context.display.preparing(context.step, *progress)

    work, stores = (context.folder / "corpus").resolve(), context.stores.resolve() / "corpora"
    if on_ray is None:
        on_ray = uses_ray(config)
    if on_ray:
        context.join_cluster(1)
    try:
        corpus = build_corpus(config, stores, work, do_on_cluster if on_ray else in_this_process, tell)
    except ConfigError:
        if not on_ray:
            shutil.rmtree(work, ignore_errors=True)
        raise
    context.display.settle()
    return corpus


def uses_ray(config: CorpusConfig) -> bool:
    """Whether a corpus is prepared by Ray Data.

    Raises:
        ConfigError: the source does not exist.
    """
    if config.engine == "auto":
        return sum(file.size for file in source_files(config)) >= LARGE_BYTES
    return config.engine == "ray"
