"""Settings of tasks for well-known benchmarks, by name; the data sets are downloaded when they are used."""

from __future__ import annotations

from typing import Any

_GLUE: dict[str, dict[str, Any]] = {
    "cola": {"text_column": "sentence"},
    "sst2": {"text_column": "sentence"},
    "mrpc": {"text_column": "sentence1", "pair_column": "sentence2"},
    "qqp": {"text_column": "question1", "pair_column": "question2"},
    "mnli": {
        "text_column": "premise",
        "pair_column": "hypothesis",
        "test_split": "validation_matched",
    },
    "qnli": {"text_column": "question", "pair_column": "sentence"},
    "rte": {"text_column": "sentence1", "pair_column": "sentence2"},
    "wnli": {"text_column": "sentence1", "pair_column": "sentence2"},
    "stsb": {"kind": "regression", "text_column": "sentence1", "pair_column": "sentence2"},
}
_SUPER_GLUE: dict[str, dict[str, Any]] = {
    "boolq": {"text_column": "question", "pair_column": "passage", "max_length": 256},
    "cb": {"text_column": "premise", "pair_column": "hypothesis", "max_length": 256},
    "rte": {"text_column": "premise", "pair_column": "hypothesis", "max_length": 256},
}

# The labels of GLUE's test splits are not public: as in the literature, its validation splits are held out,
# and a fraction of the training rows is used for validation.
PRESETS: dict[str, dict[str, Any]] = {
    **{
        f"glue/{name}": {"source": "nyu-mll/glue", "subset": name, "test_split": "validation"} | settings
        for name, settings in _GLUE.items()
    },
    **{
        f"super-glue/{name}": {"source": "aps/super_glue", "subset": name, "test_split": "validation"}
        | settings
        for name, settings in _SUPER_GLUE.items()
    },
    "squad": {"kind": "question-answering", "source": "rajpurkar/squad", "test_split": "validation"},
    "squad-v2": {"kind": "question-answering", "source": "rajpurkar/squad_v2", "test_split": "validation"},
    "conll2003": {
        "kind": "tokens",
        "source": "eriktks/conll2003",
        "validation_split": "validation",
        "test_split": "test",
    },
    "stsb-embeddings": {
        "kind": "embeddings",
        "source": "nyu-mll/glue",
        "subset": "stsb",
        "text_column": "sentence1",
        "pair_column": "sentence2",
        "score_column": "label",
        "loss": "cosine",
        "test_split": "validation",
    },
}


def expand_preset(task: Any) -> Any:
    """Settings with those of their `preset` filled in; settings beside it take precedence."""
    if not isinstance(task, dict) or "preset" not in task:
        return task
    rest = {key: value for key, value in task.items() if key != "preset"}
    name = task["preset"]
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is not known; allowed: {', '.join(PRESETS)}")
    return PRESETS[name] | rest
