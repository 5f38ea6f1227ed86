"""Those who turn files of JSONL into tokens; each runs in a process of its own and prints a line of JSON.

    python -m lib.corpus_scale.contestants NAME SOURCE TOKENIZER OUTPUT

`SOURCE` is a folder of .jsonl files, `TOKENIZER` one of a tokenizer, and `OUTPUT` an empty one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]
_BATCH = 1000


def headway_ray(source: Path, tokenizer: Path, output: Path, near: float | None = None) -> Result:
    """Headway's corpus step on Ray Data: exact copies dropped, split, sentences, the whole store."""
    from headway.cluster import connect
    from headway.config.corpus import CorpusConfig
    from headway.display import Display
    from headway.ray_data.corpus import prepared_corpus
    from headway.runs.context import Context
    from headway.tracking import Tracking

    config = CorpusConfig(
        source=str(source), tokenizer=tokenizer, engine="ray", held_out=0.01, near_duplicates=near
    )
    root = output / "runs"
    (root / "step").mkdir(parents=True)
    context = Context("bench", "corpus", root, root / "step", Tracking.at(root), Display(quiet=True))
    context.join_cluster(1)
    began = time.monotonic()
    facts = prepared_corpus(config, context).facts
    seconds = time.monotonic() - began
    connect.shut_down()
    documents = facts["documents"]["train"] + facts["documents"]["validation"]
    return {"seconds": seconds, "documents": documents, "tokens": sum(facts["tokens"].values())}


def headway_ray_near(source: Path, tokenizer: Path, output: Path) -> Result:
    """The same with near copies dropped too."""
    return headway_ray(source, tokenizer, output, near=0.8)


def tokenizer_limit(source: Path, tokenizer: Path, output: Path) -> Result:
    """The `tokenizers` library in a loop, on all cores by its own threads: nothing is dropped or written."""
    import orjson
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    began = time.monotonic()
    documents = tokens = 0
    batch: list[str] = []

    def encode() -> int:
        found = backend.encode_batch_fast(batch, add_special_tokens=False)
        return sum(len(encoding) for encoding in found)

    for path in sorted(source.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                batch.append(orjson.loads(line)["text"])
                if len(batch) == _BATCH:
                    documents, tokens = documents + len(batch), tokens + encode()
                    batch.clear()
    documents, tokens = documents + len(batch), tokens + encode()
    return {"seconds": time.monotonic() - began, "documents": documents, "tokens": tokens}


def datasets_map(source: Path, tokenizer: Path, output: Path) -> Result:
    """`datasets`: load, drop exact copies by a set of hashes, tokenise by `map` with a process a core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import datasets
    import pyarrow.compute
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    fast = AutoTokenizer.from_pretrained(tokenizer)
    began = time.monotonic()
    files = [str(path) for path in sorted(source.glob("*.jsonl"))]
    data = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(output / "cache"))
    seen: set[bytes] = set()

    def is_new(texts: list[str]) -> list[bool]:
        news = []
        for text in texts:
            key = hashlib.blake2b(" ".join(text.split()).lower().encode(), digest_size=16).digest()
            news.append(key not in seen)
            seen.add(key)
        return news

    unique = data.filter(is_new, batched=True, input_columns="text")
    tokens = unique.map(
        lambda rows: {"ids": fast(rows["text"], add_special_tokens=False)["input_ids"]},
        batched=True,
        num_proc=len(os.sched_getaffinity(0)),
        remove_columns=unique.column_names,
    )
    seconds = time.monotonic() - began
    lengths = pyarrow.compute.list_value_length(tokens.data.column("ids"))
    return {"seconds": seconds, "documents": len(tokens), "tokens": pyarrow.compute.sum(lengths).as_py()}


CONTESTANTS: dict[str, Callable[[Path, Path, Path], Result]] = {
    "headway": headway_ray,
    "headway_near": headway_ray_near,
    "tokenizers": tokenizer_limit,
    "datasets": datasets_map,
}


if __name__ == "__main__":
    name, *folders = sys.argv[1:]
    print(json.dumps(CONTESTANTS[name](*map(Path, folders))), flush=True)
