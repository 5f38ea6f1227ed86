"""Pretraining speed: Headway's engine beside what its users would pick instead, and the machine's limit.

    python benchmarks/train_speed.py                      # about 10 minutes on 2 cores
    python benchmarks/train_speed.py --models tiny --steps 3
    python benchmarks/train_speed.py --device cuda        # needs torch and transformers only

Every contestant trains the same model on the same paragraphs, as many sequences a step, in bf16 (float32
where the processor has no instructions for it), masked language modelling at 15 %, AdamW; each runs in a
process of its own, so that its peak memory is its own.
Tokens are real ones: padding does not count. Utilisation is useful FLOP/s over the machine's own rate for a
large matrix product, measured before and after; useful FLOPs leave padding and unmasked positions out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from lib.paragraphs import MAX_LENGTH, Paragraphs, load_paragraphs
from transformers import BertForMaskedLM, DataCollatorForLanguageModeling, PreTrainedModel

from headway.config.steps import MaskingConfig, ModelConfig, PretrainConfig
from headway.config.training import OptimizerConfig
from headway.data.pretraining_batches import PretrainingBatches
from headway.data.sampling import BatchSizes
from headway.engine.hardware.device import compute_dtype, has_fast_bf16, precision_context
from headway.engine.hardware.peak_rate import matrix_product_rate, peak_memory_bytes, synchronise
from headway.engine.model.encoder import bert_config, new_pretraining_model
from headway.engine.training.flops import TrainingFlops
from headway.engine.training.meter import Meter
from headway.engine.training.objectives import PretrainingObjective
from headway.engine.training.trainer import Trainer

WARMUP_STEPS = 2
CONTESTANTS = ("headway", "trainer", "trainer_grouped", "trainer_packed", "loop")
SEQUENCES = {"cpu": {"base": 32, "mini": 64, "tiny": 64}, "cuda": {"base": 512, "mini": 1024, "tiny": 1024}}


class Speed(NamedTuple):
    """What one contestant reached.

    Attributes:
        tokens_per_second: real ones.
        utilisation: useful FLOP/s over the machine's matrix-product rate.
        bytes_per_token: peak memory of the process over the tokens of a step.
        seconds_per_step: mean.
    """

    tokens_per_second: float
    utilisation: float
    bytes_per_token: float
    seconds_per_step: float


class Clock:
    """Times the steps after warm-up and counts their real tokens."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps = device, steps
        self.done = 0
        self.tokens: list[int] = []
        self.started = 0.0
        self.seconds = 0.0

    def step_ended(self) -> None:
        """A step is over."""
        self.done += 1
        synchronise(self.device)
        if self.done == WARMUP_STEPS:
            self.started = time.perf_counter()
        elif self.done == WARMUP_STEPS + self.steps:
            self.seconds = time.perf_counter() - self.started

    def measured_tokens(self) -> int:
        """Real tokens of the timed steps."""
        return sum(self.tokens[WARMUP_STEPS : WARMUP_STEPS + self.steps])


def new_model(preset: str, paragraphs: Paragraphs, *, ours: bool) -> PreTrainedModel:
    tokenizer = paragraphs.tokenizer
    config = bert_config(
        ModelConfig(preset=f"bert-{preset}"), len(tokenizer), MAX_LENGTH, tokenizer.pad_token_id
    )
    if ours:
        return new_pretraining_model(config, next_sentence=False, seed=0)
    torch.manual_seed(0)
    return BertForMaskedLM(config)


def run_headway(preset: str, paragraphs: Paragraphs, sequences: int, clock: Clock) -> None:
    config = PretrainConfig(
        corpus="in memory",
        objective=["mlm"],
        steps=WARMUP_STEPS + clock.steps,
        batch_size=sequences,
        optimizer=OptimizerConfig(learning_rate=1e-4),
        precision="auto",
        log_every=10_000,
        compile=clock.device.type == "cuda",
    )
    batches = headway_batches(paragraphs, sequences)
    objective = PretrainingObjective(new_model(preset, paragraphs, ours=True), pairs=None)
    trainer = Trainer(objective, batches, config)
    for step in range(config.steps or 0):
        micro_batches = batches.micro_batches(step, 0, 1, 1)
        clock.tokens.append(sum(len(batch.input_ids) for batch in micro_batches))
        trainer.train_step(step, micro_batches, Meter())
        clock.step_ended()


def headway_batches(paragraphs: Paragraphs, sequences: int) -> PretrainingBatches:
    return PretrainingBatches(
        paragraphs.store,
        paragraphs.tokenizer,
        max_length=MAX_LENGTH,
        masking=MaskingConfig(),
        pairs=None,
        batch_sizes=BatchSizes(sequences),
        seed=0,
    )


def run_trainer(
    preset: str, paragraphs: Paragraphs, sequences: int, clock: Clock, *, grouped: bool, packed: bool
) -> None:
    """Hugging Face's Trainer with dynamic padding, optionally grouped by length, or on packed rows."""
    from transformers import Trainer as HuggingFaceTrainer
    from transformers import TrainerCallback, TrainingArguments

    class StepEnds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.step_ended()

    arguments = TrainingArguments(
        output_dir="/tmp/headway-benchmark",
        per_device_train_batch_size=sequences,
        max_steps=WARMUP_STEPS + clock.steps,
        bf16=has_fast_bf16(clock.device),
        optim="adamw_torch_fused",
        learning_rate=1e-4,
        train_sampling_strategy="group_by_length" if grouped else "random",
        use_cpu=clock.device.type == "cpu",
        dataloader_num_workers=4 if clock.device.type == "cuda" else 0,
        dataloader_prefetch_factor=2 if clock.device.type == "cuda" else None,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    rows = _packed(paragraphs.rows()) if packed else paragraphs.rows()
    # A list would do, but grouping by length looks for a column.
    import datasets

    HuggingFaceTrainer(
        model=new_model(preset, paragraphs, ours=False),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"input_ids": rows}),
        data_collator=_counting_collator(paragraphs, clock),
        callbacks=[StepEnds()],
    ).train()


def _packed(rows: list[list[int]]) -> list[list[int]]:
    """All paragraphs end to end, cut into rows of `MAX_LENGTH`."""
    flat = [token for row in rows for token in row]
    return [flat[start : start + MAX_LENGTH] for start in range(0, len(flat) - MAX_LENGTH, MAX_LENGTH)]


def _counting_collator(paragraphs: Paragraphs, clock: Clock) -> Callable[[Any], Any]:
    collate_masked = DataCollatorForLanguageModeling(paragraphs.tokenizer, mlm_probability=0.15)

    def collator(rows: Any) -> Any:
        clock.tokens.append(sum(len(row["input_ids"]) for row in rows))
        return collate_masked([{"input_ids": row["input_ids"]} for row in rows])

    return collator


def run_loop(preset: str, paragraphs: Paragraphs, sequences: int, clock: Clock) -> None:
    """A loop as one writes it by hand: padding, autocast, fused AdamW, clipping."""
    model = new_model(preset, paragraphs, ours=False).to(clock.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    collator = _counting_collator(paragraphs, clock)
    for rows in _shuffled(paragraphs.rows(), sequences, WARMUP_STEPS + clock.steps):
        batch = {name: tensor.to(clock.device) for name, tensor in collator(rows).items()}
        with precision_context(compute_dtype("auto", clock.device), clock.device):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.step_ended()


def _shuffled(rows: list[list[int]], sequences: int, steps: int) -> Iterator[list[dict[str, Any]]]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    for step in range(steps):
        chosen = order[step * sequences : (step + 1) * sequences]
        yield [{"input_ids": rows[i]} for i in chosen]


def measure(contestant: str, preset: str, device: torch.device, steps: int) -> Speed:
    """Run one contestant in this process."""
    paragraphs = load_paragraphs()
    sequences = SEQUENCES[device.type][preset]
    dtype = compute_dtype("auto", device)
    before = matrix_product_rate(dtype, device)
    clock = Clock(device, steps)
    if contestant == "headway":
        run_headway(preset, paragraphs, sequences, clock)
    elif contestant == "loop":
        run_loop(preset, paragraphs, sequences, clock)
    else:
        grouped, packed = contestant.endswith("grouped"), contestant.endswith("packed")
        run_trainer(preset, paragraphs, sequences, clock, grouped=grouped, packed=packed)
    memory = peak_memory_bytes(device)
    matrix_product_rate.cache_clear()
    rate = max(before, matrix_product_rate(dtype, device))
    speed = clock.measured_tokens() / clock.seconds
    flops = _useful_flops_per_token(preset, paragraphs)
    step_tokens = clock.measured_tokens() / steps
    return Speed(speed, speed * flops / rate, memory / step_tokens, clock.seconds / steps)


def _useful_flops_per_token(preset: str, paragraphs: Paragraphs) -> float:
    """Of the paragraphs as they are; the same measure for every contestant."""
    objective = PretrainingObjective(new_model(preset, paragraphs, ours=True), pairs=None)
    [batch] = headway_batches(paragraphs, 512).micro_batches(0, 0, 1, 1)
    return TrainingFlops.of(objective).of_batch(batch) / len(batch.input_ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", nargs="+", default=["mini", "base"], choices=["tiny", "mini", "base"])
    parser.add_argument("--steps", type=int, help="timed steps; 16 for mini, 8 for base when not set")
    parser.add_argument("--contestant", choices=CONTESTANTS, help="run only this one and print its JSON")
    options = parser.parse_args()
    if options.contestant:
        speed = measure(
            options.contestant, options.models[0], torch.device(options.device), options.steps or 3
        )
        print(json.dumps(speed._asdict()))
        return
    results = {preset: compete(preset, options) for preset in options.models}
    print(json.dumps(summary(results, options.device)))


def compete(preset: str, options: argparse.Namespace) -> dict[str, Speed]:
    """Every contestant in turn, each in a process of its own, and the table of what came."""
    # Enough of them that a draw of long or short paragraphs does not decide.
    steps = options.steps or {"base": 8, "mini": 16, "tiny": 20}[preset]
    sequences = SEQUENCES[options.device][preset]
    precision = precision_name(options.device)
    print(
        f"\nBERT-{preset}, {sequences} sequences a step, {precision}, {options.device}, {steps} timed steps"
    )
    speed_columns = f"{'tokens/s':>12}{'headway x':>12}{'utilisation':>13}"
    print(f"{'':<18}{speed_columns}{'s/step':>9}{'tokens/step':>13}{'KiB/token':>11}", flush=True)
    speeds: dict[str, Speed] = {}
    for contestant in CONTESTANTS:
        command = [sys.executable, __file__, "--contestant", contestant, "--models", preset]
        command += ["--device", options.device, "--steps", str(steps)]
        output = subprocess.run(command, capture_output=True, text=True)
        if output.returncode:
            raise SystemExit(f"{contestant} failed:\n{output.stderr[-3000:]}")
        speed = speeds[contestant] = Speed(**json.loads(output.stdout.strip().splitlines()[-1]))
        ratio = speeds["headway"].tokens_per_second / speed.tokens_per_second
        print(
            f"{contestant:<18}{speed.tokens_per_second:>12,.0f}{ratio:>12.2f}{speed.utilisation:>13.2f}"
            f"{speed.seconds_per_step:>9.2f}{speed.tokens_per_second * speed.seconds_per_step:>13,.0f}"
            f"{speed.bytes_per_token / 1024:>11,.0f}",
            flush=True,
        )
    return speeds


def precision_name(device: str) -> str:
    """What every contestant multiplies in on this machine."""
    return "bf16" if has_fast_bf16(torch.device(device)) else "fp32"


def summary(results: dict[str, dict[str, Speed]], device: str) -> dict[str, Any]:
    """The figures of the claim, in one flat object."""
    figures: dict[str, Any] = {
        "benchmark": "train_speed",
        "device": device,
        "precision": precision_name(device),
    }
    for preset, speeds in results.items():
        ours = speeds["headway"]
        for name, speed in speeds.items():
            if name != "headway":
                ratio = ours.tokens_per_second / speed.tokens_per_second
                figures[f"ratio_vs_{name}_{preset}"] = round(ratio, 3)
        figures[f"tokens_per_second_{preset}"] = round(ours.tokens_per_second)
        figures[f"utilisation_{preset}"] = round(ours.utilisation, 3)
        memory = ours.bytes_per_token / speeds["trainer"].bytes_per_token
        figures[f"memory_ratio_vs_trainer_{preset}"] = round(memory, 3)
    return figures


if __name__ == "__main__":
    main()
