"""Text of any size, made of real paragraphs by a seeded generator."""

from __future__ import annotations

import json
import random
from pathlib import Path

from lib.paragraphs import bbc_paragraphs

FILES = 8
COPIES = 0.05
_SWAPPED = 0.2


def write_text(folder: Path, size: int, seed: int = 0) -> int:
    """Write about so many bytes of JSONL into 8 files, unless they are there; the number of documents.

    A document is 3 to 12 paragraphs of BBC News in any order, in which every fifth word is replaced by
    another of its paragraph, so that few documents are near copies; one in 20 is an exact copy of another.
    """
    done = folder / "documents"
    if done.is_file():
        return int(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    paragraphs = [paragraph.split() for paragraph in bbc_paragraphs()]
    rng = random.Random(seed)
    recent: list[str] = []
    documents = 0
    for number in range(FILES):
        written = 0
        with (folder / f"{number:02}.jsonl").open("w", encoding="utf-8") as file:
            while written < size // FILES:
                if recent and rng.random() < COPIES:
                    line = rng.choice(recent)
                else:
                    line = json.dumps({"text": _document(paragraphs, rng)}, ensure_ascii=False) + "\n"
                    recent = [*recent[-999:], line]
                file.write(line)
                written += len(line.encode())
                documents += 1
    done.write_text(str(documents))
    return documents


def _document(paragraphs: list[list[str]], rng: random.Random) -> str:
    chosen = []
    for _ in range(rng.randint(3, 12)):
        words = list(rng.choice(paragraphs))
        for place in rng.sample(range(len(words)), int(len(words) * _SWAPPED)):
            words[place] = rng.choice(words)
        chosen.append(" ".join(words))
    return "\n\n".join(chosen)
