"""Prepare the corpus that a step's settings ask for, in this process or on the cluster."""

from __future__ import annotations

from headway.config.corpus import CorpusConfig
from headway.data.corpus.build import DoAll, Progress, build_corpus, in_this_process
from headway.data.corpus.corpus import Corpus
from headway.data.sources.blocks import source_files
from headway.ray_data.pieces import do_on_cluster
from headway.runs.context import Context

RAY_BYTES = 256_000_000
"""Size of the sources from which on `engine: auto` takes Ray; below, its start costs more than it saves."""


def prepared_corpus(config: CorpusConfig, context: Context) -> Corpus:
    """Prepare a corpus, or reuse one with the same content; shows the progress.

    Raises:
        ConfigError: see `build_corpus`; or the cluster cannot be joined.
    """

    def tell(progress: Progress) -> None:
        context.display.preparing(context.step, *progress)

    work = (context.folder / "corpus").resolve()
    corpus = build_corpus(config, context.stores.resolve() / "corpora", work, _engine(config, context), tell)
    context.display.settle()
    return corpus


def uses_ray(config: CorpusConfig) -> bool:
    """Whether a corpus is prepared by Ray Data.

    Raises:
        ConfigError: the source does not exist.
    """
    if config.engine == "auto":
        return sum(file.size for file in source_files(config)) >= RAY_BYTES
    return config.engine == "ray"


def _engine(config: CorpusConfig, context: Context) -> DoAll:
    if not uses_ray(config):
        return in_this_process
    context.join_cluster(1)
    return do_on_cluster
