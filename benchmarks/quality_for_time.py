"""What equal time buys: held-out loss of masked words against minutes, Headway beside Hugging Face's Trainer.

    python benchmarks/quality_for_time.py                 # two times 4 minutes on 2 cores, and the scoring
    python benchmarks/quality_for_time.py --minutes 0.2 --model tiny

Both train the same model from the same weights on the same paragraphs, as many sequences a step, with AdamW
at the same constant learning rate after the same warm-up, dropout as BERT has it, in bf16 (float32 where the
processor has no instructions for it). Weights are set aside every so often and scored afterwards on the same
masked held-out paragraphs, so scoring costs neither of them time. Writes a picture beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lib.paragraphs import Paragraphs, load_paragraphs
from lib.training_speed.setup import headway_batches, new_model
from lib.training_speed.sizes import SIZES
from torch import Tensor

from headway.config.pretrain import PretrainConfig
from headway.config.training import OptimizerConfig, ScheduleConfig
from headway.data.corpus.store import TokenStore
from headway.engine.hardware.device import has_fast_bf16
from headway.engine.training.evaluation import mean_losses
from headway.engine.training.meter import Meter
from headway.engine.training.objectives import PretrainingObjective
from headway.engine.training.trainer import Trainer

LEARNING_RATE = 5e-4
WARMUP_STEPS = 20
SNAPSHOTS = 8
HELD_OUT = 800
CPU = torch.device("cpu")
MOST_STEPS = 100_000

Weights = dict[str, Tensor]


class Timer:
    """Sets weights aside at equal shares of the time; the time that takes does not count."""

    def __init__(self, minutes: float) -> None:
        self.budget = 60 * minutes
        self.snapshots: list[tuple[float, Weights]] = []
        self.spent = 0.0
        self.resumed = time.perf_counter()

    def step_ended(self, model: torch.nn.Module) -> bool:
        """Note a step's end; True once the time is over."""
        spent = self.spent + time.perf_counter() - self.resumed
        if spent >= self.budget * (len(self.snapshots) + 1) / SNAPSHOTS:
            self.snapshots.append((spent, {k: v.detach().clone() for k, v in model.state_dict().items()}))
            self.spent, self.resumed = spent, time.perf_counter()
        return len(self.snapshots) == SNAPSHOTS


def split(paragraphs: Paragraphs) -> tuple[Paragraphs, Paragraphs]:
    """Paragraphs to train on, and the last ones, held out."""
    store = paragraphs.store
    cut = store.num_documents - HELD_OUT
    sentences = store.sentences[: cut + 1], store.sentences[cut:] - store.sentences[cut]
    tokens = store.tokens[: store.sentences[cut]], store.tokens[store.sentences[cut] :]
    documents = store.documents[: cut + 1], store.documents[cut:] - store.documents[cut]
    sides = [TokenStore(*parts) for parts in zip(tokens, sentences, documents, strict=True)]
    return paragraphs._replace(store=sides[0]), paragraphs._replace(store=sides[1])


def run_headway(preset: str, paragraphs: Paragraphs, timer: Timer) -> None:
    config = PretrainConfig(
        corpus="in memory",
        objective=["mlm"],
        steps=MOST_STEPS,
        batch_size=SIZES[preset].sequences["cpu"],
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
        schedule=ScheduleConfig(name="constant", warmup=WARMUP_STEPS / MOST_STEPS),
        precision="auto",
    )
    batches = headway_batches(paragraphs, config.batch_size)
    objective = PretrainingObjective(new_model(SIZES[preset], paragraphs, CPU, ours=True), pairs=None)
    trainer = Trainer(objective, batches, config)
    for step in range(MOST_STEPS):
        trainer.train_step(step, batches.micro_batches(step, 0, 1, 1), Meter())
        if timer.step_ended(objective.model):
            return


def run_trainer(preset: str, paragraphs: Paragraphs, timer: Timer) -> None:
    """Trainer with dynamic padding and grouping by length: the faster of its two ways."""
    import datasets
    from transformers import DataCollatorForLanguageModeling, TrainerCallback, TrainingArguments
    from transformers import Trainer as HuggingFaceTrainer

    class StepEnds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = timer.step_ended(kwargs["model"])

    arguments = TrainingArguments(
        output_dir="/tmp/headway-benchmark",
        per_device_train_batch_size=SIZES[preset].sequences["cpu"],
        max_steps=MOST_STEPS,
        bf16=precision() == "bf16",
        optim="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        adam_epsilon=1e-6,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP_STEPS,
        train_sampling_strategy="group_by_length",
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    HuggingFaceTrainer(
        model=new_model(SIZES[preset], paragraphs, CPU, ours=False),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"input_ids": paragraphs.rows()}),
        data_collator=DataCollatorForLanguageModeling(paragraphs.tokenizer, mlm_probability=0.15),
        callbacks=[StepEnds()],
    ).train()


def precision() -> str:
    """What both multiply in on this machine."""
    return "bf16" if has_fast_bf16(CPU) else "fp32"


def held_out_loss(preset: str, paragraphs: Paragraphs, held_out: Paragraphs, weights: Weights) -> float:
    """Mean loss of the masked words of the held-out paragraphs, in float32."""
    model = new_model(SIZES[preset], paragraphs, CPU, ours=True)
    model.load_state_dict(weights)
    objective = PretrainingObjective(model, pairs=None)
    config = PretrainConfig(corpus="in memory", objective=["mlm"], steps=1, precision="fp32")
    batches = headway_batches(held_out, config.batch_size)
    trainer = Trainer(objective, batches, config)
    evaluator = partial(mean_losses, validation=batches, worker=trainer.worker, batch_size=config.batch_size)
    return trainer.evaluate(evaluator)["validation_loss"]


def measure(contestant: str, preset: str, minutes: float) -> list[tuple[float, float]]:
    """(seconds of training, held-out loss) of one contestant."""
    paragraphs, held_out = split(load_paragraphs())
    timer = Timer(minutes)
    run = run_headway if contestant == "headway" else run_trainer
    run(preset, paragraphs, timer)
    return [(s, held_out_loss(preset, paragraphs, held_out, weights)) for s, weights in timer.snapshots]


def draw(curves: dict[str, list[tuple[float, float]]], preset: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, curve in curves.items():
        minutes, losses = [s / 60 for s, _ in curve], [loss for _, loss in curve]
        axes.plot(minutes, losses, marker="o", label=name)
    axes.set(xlabel="minutes of training", ylabel="held-out loss of masked words")
    axes.set_title(f"BERT-{preset} on BBC paragraphs, 2 cores, {precision()}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, for each")
    parser.add_argument("--model", default="mini", choices=["tiny", "mini", "base"])
    parser.add_argument("--contestant", choices=["headway", "trainer"], help="run one and print its curve")
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(measure(options.contestant, options.model, options.minutes)))
        return
    curves = {name: _in_a_process(name, options) for name in ("headway", "trainer")}
    print(f"{'minutes':>8}{'headway':>10}{'trainer':>10}")
    for (seconds, ours), (_, theirs) in zip(curves["headway"], curves["trainer"], strict=True):
        print(f"{seconds / 60:>8.2f}{ours:>10.3f}{theirs:>10.3f}")
    picture = Path(__file__).with_suffix(".png")
    draw(curves, options.model, picture)
    ours, theirs = curves["headway"][-1][1], curves["trainer"][-1][1]
    figures = {"benchmark": "quality_for_time", "model": options.model, "minutes": options.minutes}
    figures["precision"] = precision()
    figures |= {"loss_headway": round(ours, 4), "loss_trainer": round(theirs, 4)}
    print(json.dumps(figures | {"margin": round(theirs - ours, 4)}))


def _in_a_process(contestant: str, options: argparse.Namespace) -> list[tuple[float, float]]:
    command = [sys.executable, __file__, "--contestant", contestant]
    command += ["--model", options.model, "--minutes", str(options.minutes)]
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode:
        raise SystemExit(f"{contestant} failed:\n{output.stderr[-3000:]}")
    curve: list[tuple[float, float]] = json.loads(output.stdout.strip().splitlines()[-1])
    return curve


if __name__ == "__main__":
    main()
