"""From `fit()` to the first training step, two workers: Headway beside plain Ray Train.

    python benchmarks/startup.py                 # about 4 minutes on 2 cores

Three ways, each in a process of its own on a Ray of its own, in turn:

- empty: `TorchTrainer.fit()` of a loop that does nothing, until the loop begins on the first worker
- plain: the same with a loop as one writes it: load transformers, build BERT-tiny, take one step
- headway: `pretrain` with the same model, until its first step is done ("call to first step" in its output)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("empty", "plain", "headway")
TEXTS = [f"Sentence {number} is here. Another one follows it. They end with a third." for number in range(64)]


def empty(config: dict[str, str]) -> None:
    """A loop of no steps."""
    _note(config)


def plain(config: dict[str, str]) -> None:
    """One step of BERT-tiny on random words."""
    import torch
    from ray.train.torch import prepare_model
    from transformers import BertConfig, BertForMaskedLM

    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    model = prepare_model(BertForMaskedLM(BertConfig(vocab_size=1000, **shape)))
    optimizer = torch.optim.AdamW(model.parameters())
    words = torch.randint(1000, (8, 32))
    model(input_ids=words, labels=words).loss.backward()
    optimizer.step()
    _note(config)


def _note(config: dict[str, str]) -> None:
    import ray.train

    if ray.train.get_context().get_world_rank() == 0:
        Path(config["file"]).write_text(str(time.time()))


def measure(way: str) -> float:
    """Seconds from the call of `fit()` to the first step."""
    with tempfile.TemporaryDirectory(prefix="headway-benchmark-") as folder:
        return _headway(folder) if way == "headway" else _ray_train(way, folder)


def _ray_train(way: str, folder: str) -> float:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    trainer = TorchTrainer(
        {"empty": empty, "plain": plain}[way],
        train_loop_config={"file": f"{folder}/first_step"},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=folder),
    )
    started = time.time()
    trainer.fit()
    return float(Path(folder, "first_step").read_text()) - started


def _headway(folder: str) -> float:
    import headway

    result = headway.pretrain(
        TEXTS,
        model={"preset": "bert-tiny"},
        objective=["mlm"],
        steps=2,
        batch_size=8,
        workers=2,
        vocab_size=300,
        max_length=32,
        runs=Path(folder),
        quiet=True,
    )
    return float(result.metrics["startup_seconds"])


def in_a_process(way: str) -> float:
    """`measure` in a fresh interpreter."""
    environment = os.environ | {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2})}
    command = [sys.executable, __file__, "--way", way]
    output = subprocess.run(command, env=environment, capture_output=True, text=True)
    if output.returncode:
        raise SystemExit(f"{way} failed:\n{output.stderr[-3000:]}")
    return float(output.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="run one and print its seconds")
    options = parser.parse_args()
    if options.way:
        print(measure(options.way))
        return
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            seconds[way].append(in_a_process(way))
    print(f"{'':<10}{'median s':>10}  rounds")
    for way, values in seconds.items():
        print(f"{way:<10}{statistics.median(values):>10.1f}  {', '.join(f'{v:.1f}' for v in values)}")
    medians = {f"seconds_{way}": round(statistics.median(values), 2) for way, values in seconds.items()}
    ratio = medians["seconds_headway"] / medians["seconds_plain"]
    print(json.dumps({"benchmark": "startup", **medians, "ratio_headway_to_plain": round(ratio, 3)}))


if __name__ == "__main__":
    main()
