"""Settings of pretraining on several corpora at once."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from headway.config.base import INPUT, Config
from headway.config.corpus import CorpusConfig

Weight = Annotated[float, Field(ge=0.0)]


def _kind(value: Any) -> str:
    return "texts" if isinstance(value, dict | CorpusConfig) else "folder"


_Folder = Annotated[str, Tag("folder")]
_Texts = Annotated[CorpusConfig, Tag("texts")]


class MixtureSourceConfig(Config):
    """A corpus of a mixture, with its own filters, and how much of it there is."""

    corpus: Annotated[_Folder | _Texts, Discriminator(_kind)] = Field(
        description="the folder of a prepared corpus, or the settings to prepare one; without a `tokenizer` "
        "they get that of the first source",
        json_schema_extra=INPUT,
    )
    weight: Annotated[float, Field(gt=0.0)] = Field(
        description="rows of it, in proportion to the other sources' weights"
    )


class MixtureConfig(Config):
    """Several corpora, whose rows are mixed in every batch."""

    sources: dict[str, MixtureSourceConfig] = Field(
        min_length=1, description="a name of your choice → a corpus and its weight"
    )


def _kind_of_three(value: Any) -> str:
    is_mixture = isinstance(value, MixtureConfig) or (isinstance(value, dict) and "sources" in value)
    return "mixture" if is_mixture else _kind(value)


AnyCorpus = Annotated[
    _Folder | _Texts | Annotated[MixtureConfig, Tag("mixture")], Discriminator(_kind_of_three)
]
"""What pretraining reads."""
