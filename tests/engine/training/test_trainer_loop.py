"""The loop around the optimizer steps: what it resumes, times, evaluates and saves, on a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_stand_in import allow_fused_optimizers
from tiny_states import model_and_optimizer
from tiny_training import same, tiny_batches, tiny_config, tiny_objective

from headway.config.finetune import FinetuneConfig
from headway.engine.checkpoint.checkpoints import CheckpointError, Checkpoints
from headway.engine.checkpoint.saved_states import saved_steps
from headway.engine.checkpoint.storage import Folder
from headway.engine.hardware.device import use_tf32
from headway.engine.parallel.worker import Worker
from headway.engine.training import trainer as trainer_module
from headway.engine.training.health import TrainingError
from headway.engine.training.hooks import StepInfo
from headway.engine.training.meter import Meter
from headway.engine.training.trainer import Stopped, Trainer

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {"steps": 6, "log_every": 2, "evaluate_every": 3, "checkpoint_every": 100}


def trainer(folder: Path | None = None, **settings: Any) -> Trainer:
    worker = Worker(device=CPU)
    checkpoints = Checkpoints(Folder(folder), worker, keep=9) if folder is not None else None
    config = tiny_config(**(SETTINGS | settings))
    return Trainer(tiny_objective(), tiny_batches(), config, worker=worker, checkpoints=checkpoints)


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in run.objective.named_parameters()}


def metric_of(folder: Path) -> float | None:
    return Checkpoints(Folder(folder), Worker(device=CPU)).restore(*model_and_optimizer(0.0)).metric


def run_until(run: Trainer, last: int, stop: bool = True) -> list[StepInfo]:
    """Run, and stop after a step; everything that hooks were told."""
    seen: list[StepInfo] = []

    def look(info: StepInfo) -> None:
        seen.append(info)
        info.stop = stop and info.step == last

    run.add_hook(look)
    if stop:
        with pytest.raises(Stopped):
            run.run()
    else:
        run.run()
    return seen


def test_a_trainer_says_what_it_is_about_to_do() -> None:
    run = trainer(gradient_accumulation=3)
    assert (run.start_step, run.total_steps, run.parts) == (0, 6, 3)
    assert run.optimizer is run.state.optimizer
    assert run.restored.step == 0 and run.restored.metric is None
    assert Trainer(tiny_objective(), tiny_batches(), tiny_config()).worker == replace(Worker())


def test_a_model_is_trained_on_the_workers_device(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_fused_optimizers(monkeypatch)
    run = Trainer(tiny_objective(), tiny_batches(), tiny_config(), worker=Worker(device=torch.device("meta")))
    assert {weight.device.type for weight in run.objective.parameters()} == {"meta"}


def test_epochs_are_counted_in_the_steps_of_the_batches() -> None:
    """40 rows make three batches and a third of 12 rows each, so two epochs are seven steps."""
    settings = {"model": "m", "task": {"source": "s"}, "epochs": 2, "batch_size": 12, "precision": "fp32"}
    config = FinetuneConfig.model_validate(settings)
    assert Trainer(tiny_objective(), tiny_batches(), config, worker=Worker(device=CPU)).total_steps == 7


def test_a_run_goes_on_after_its_saved_state_without_measuring_its_start_again(tmp_path: Path) -> None:
    whole = trainer()
    whole.add_evaluation(lambda module: {"validation_loss": 1.0})
    expected = run_until(whole, 6, stop=False)
    first = trainer(tmp_path)
    first.add_evaluation(lambda module: {"validation_loss": 1.0})
    run_until(first, 3)
    second = trainer(tmp_path)
    second.add_evaluation(lambda module: {"validation_loss": 1.0})
    seen = run_until(second, 6, stop=False)
    assert second.start_step == 3
    assert [info.step for info in seen] == [4, 5, 6]
    assert {info.total_steps for info in seen} == {6}
    assert same(weights(second), weights(whole))
    losses = [info.metrics.get("classification_loss") for info in expected]
    assert [info.metrics.get("classification_loss") for info in seen] == losses[4:]
    assert losses[4] is not None, "measured over step 3, which the state remembers, and step 4"


@pytest.mark.parametrize("evaluations", [{2: 0.7}, {2: 0.7, 4: 0.9}, {}])
def test_a_state_is_as_good_as_the_last_evaluation_before_it(
    tmp_path: Path, evaluations: dict[int, float]
) -> None:
    steps = tuple(evaluations)
    run = trainer(tmp_path, evaluate_every=None, evaluate_at=steps or (6,), steps=6)
    losses = iter(evaluations.values())
    run.add_evaluation(lambda module: {"validation_loss": next(losses)}, at_start=False)
    run_until(run, 5)
    assert metric_of(tmp_path) == (list(evaluations.values())[-1] if evaluations else None)
    # What was known of the model before is still so after a restart.
    again = trainer(tmp_path, evaluate_every=None, evaluate_at=(6,), checkpoint_every=6)
    run_until(again, 6)
    assert metric_of(tmp_path) == (list(evaluations.values())[-1] if evaluations else None)


def test_throughput_counts_the_time_of_steps_and_not_that_of_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which a step takes 2 s, a hook or an evaluation 100, and all else nothing."""
    now, tokens = 50.0, 0
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=lambda: now))
    run = trainer(steps=4)
    take = run.train_step

    def timed(step: int, micro_batches: Any, meter: Meter, *rest: Any) -> None:
        nonlocal now, tokens
        now += 2.0
        tokens += sum(int(batch.lengths.sum()) for batch in micro_batches)
        take(step, micro_batches, meter, *rest)

    def evaluate(module: Any) -> dict[str, float]:
        nonlocal now
        now += 100.0
        return {"validation_loss": 1.0}

    speeds: dict[int, tuple[float, int]] = {}

    def look(info: StepInfo) -> None:
        nonlocal now, tokens
        now += 100.0
        if "tokens_per_second" in info.metrics:
            speeds[info.step] = info.metrics["tokens_per_second"], tokens
            tokens = 0

    monkeypatch.setattr(run, "train_step", timed)
    run.add_evaluation(evaluate)
    run.add_hook(look)
    run.run()
    assert sorted(speeds) == [1, 2, 4]
    for step, steps in ((1, 1), (2, 1), (4, 2)):
        speed, seen = speeds[step]
        assert speed == pytest.approx(seen / (2.0 * steps))


def test_evaluations_see_the_weights_that_would_be_the_result_and_do_not_disturb_training() -> None:
    """Schedule-free AdamW trains at one point and has its result at another."""
    settings: dict[str, Any] = {"optimizer": {"name": "schedule_free_adamw", "learning_rate": 1e-2}}
    seen: dict[int, dict[str, torch.Tensor]] = {}
    modes: list[bool] = []
    runs = [trainer(**settings, evaluate_every=every) for every in (1, 6)]

    def evaluate(module: Any) -> dict[str, float]:
        modes.append(module.training)
        seen[len(seen)] = weights(runs[0])
        return {"validation_loss": 1.0}

    runs[0].add_evaluation(evaluate)
    training: dict[int, dict[str, torch.Tensor]] = {}
    runs[0].add_hook(lambda info: training.update({info.step: weights(runs[0])}))
    for run in runs:
        run.run()
    assert len(seen) == 7 and not any(modes)
    # To turn from one point to the other and back is not exact in the last bits.
    near = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    near(weights(runs[0]), weights(runs[1]))
    with pytest.raises(AssertionError):  # hooks before the end see the weights of training
        near(seen[3], training[3])
    near(seen[6], training[6])


def distance(half: torch.nn.Module, whole: torch.nn.Module) -> float:
    """How far weights in half precision are from others at most, rounded alike."""
    pairs = zip(half.parameters(), whole.parameters(), strict=True)
    return max(float((one.detach() - other.detach().to(one.dtype)).abs().max()) for one, other in pairs)


def test_an_evaluation_in_half_precision_computes_with_the_weights_of_the_moment() -> None:
    run = trainer(precision="bf16", optimizer={"name": "schedule_free_adamw", "learning_rate": 1e-2})
    differences: list[float] = []

    def evaluate(module: Any) -> dict[str, float]:
        differences.append(distance(module, run.objective))
        return {"validation_loss": 1.0}

    run.add_evaluation(evaluate)
    follows: list[float] = []

    def look(info: StepInfo) -> None:
        follows.append(distance(run.optimizer_step.compute.module, run.objective))

    run.add_hook(look, every=3)
    run.run()
    assert differences == [0.0] * 3
    assert follows[0] == 0.0


def test_a_run_may_save_as_often_as_there_are_steps(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=3, checkpoint_every=None, evaluate_every=None)
    run.add_evaluation(lambda module: {"validation_loss": 1.0})
    run.run()
    assert saved_steps(Folder(tmp_path)) == [1, 2, 3]


def test_a_run_whose_steps_do_not_divide_saves_every_so_many_whole_steps(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=13, checkpoint_every=None)
    run.run()
    assert saved_steps(Folder(tmp_path)) == [2, 4, 6, 8, 10, 12, 13]


def test_utilisation_is_that_of_the_precision_that_is_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def rate(dtype: torch.dtype, device: torch.device) -> float:
        asked.append(dtype)
        return 1e12

    monkeypatch.setattr("headway.engine.training.meter.matrix_product_rate", rate)
    trainer(precision="bf16", steps=1).run()
    assert asked == [torch.bfloat16]


def test_a_gradient_that_is_not_finite_ends_the_run_with_the_state_from_before(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    steps: list[int] = []
    run.add_hook(lambda info: steps.append(info.step))
    weight = next(run.objective.parameters())
    weight.register_hook(lambda gradient: gradient * (math.nan if len(steps) == 4 else 1.0))
    with pytest.raises(TrainingError, match="step 5 is not finite"):
        run.run()
    assert saved_steps(Folder(tmp_path)) == [4]
    assert metric_of(tmp_path) is None
    whole = trainer()
    whole.run()
    again = trainer(tmp_path)
    again.run()
    assert again.start_step == 4 and same(weights(again), weights(whole))


def test_a_gradient_seen_late_ends_the_run_at_the_next_look(tmp_path: Path) -> None:
    """As on a GPU, which is asked only now and then."""
    run = trainer(tmp_path)
    run.optimizer_step.health.look = lambda: 0  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="step 1 is not finite"):
        run.check_health()
    assert saved_steps(Folder(tmp_path)) == [0]


@pytest.mark.parametrize("wanted", [False, True])
def test_float32_products_are_in_tf32_only_if_the_configuration_says_so(wanted: bool) -> None:
    use_tf32(not wanted)
    trainer(tf32=wanted)
    assert torch.backends.cuda.matmul.allow_tf32 == wanted
    use_tf32(False)


class Unsaved(Checkpoints):
    """Never gets a state written."""

    def wait(self) -> bool:
        super().wait()
        return False


def test_a_run_that_stops_says_so_if_its_state_could_not_be_saved(tmp_path: Path) -> None:
    worker = Worker(device=CPU)
    run = Trainer(
        tiny_objective(),
        tiny_batches(),
        tiny_config(**SETTINGS),
        worker=worker,
        checkpoints=Unsaved(Folder(tmp_path), worker),
    )
    run.add_hook(lambda info: setattr(info, "stop", info.step == 2))
    assert not run.finish_saving()
    with pytest.raises(CheckpointError, match="stopped after step 2, whose state could not be saved"):
        run.run()


def test_without_a_folder_for_states_nothing_is_waited_for() -> None:
    assert trainer().finish_saving()


def test_a_gpu_is_looked_at_after_every_tenth_step_and_whenever_something_is_due() -> None:
    run = trainer(steps=40, log_every=100, evaluate_every=100, checkpoint_every=16)
    run.add_hook(lambda info: None, every=13)
    assert all(run._looks_after(step) for step in range(1, 41))
    run.worker = Worker(device=torch.device("meta"))
    looked = [step for step in range(1, 41) if run._looks_after(step)]
    assert looked == [1, 10, 13, 16, 20, 26, 30, 32, 39, 40]


def test_a_runs_batches_are_those_of_its_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(gradient_accumulation=2)
    rows: list[list[int]] = []
    take = run.train_step

    def look(step: int, micro_batches: Any, *rest: Any) -> None:
        rows.append([row for batch in micro_batches for row in batch.row_ids.tolist()])
        assert len(micro_batches) == 2
        take(step, micro_batches, *rest)

    monkeypatch.setattr(run, "train_step", look)
    run.run()
    expected = [
        [row for batch in tiny_batches().micro_batches(step, 0, 1, 2) for row in batch.row_ids.tolist()]
        for step in range(6)
    ]
    assert rows == expected


def test_steps_between_two_looks_are_trained_and_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    run, expected = trainer(log_every=6), trainer(log_every=6)
    monkeypatch.setattr(run, "_looks_after", lambda step: step in (1, 4, 6))
    seen, wanted = (run_until(one, 6, stop=False) for one in (run, expected))
    assert [info.step for info in seen] == [1, 4, 6]
    assert same(weights(run), weights(expected))
    name = "classification_loss"
    assert [seen[0].metrics[name], seen[2].metrics[name]] == [
        wanted[0].metrics[name],
        wanted[5].metrics[name],
    ]


def test_batches_are_made_in_as_many_processes_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    servers: list[None] = []
    loader = trainer_module.Loader

    def counted(*args: Any, processes: int, **settings: Any) -> Any:
        asked.append(processes)
        return loader(*args, processes=0, **settings)

    monkeypatch.setattr(trainer_module, "Loader", counted)
    monkeypatch.setattr(trainer_module, "start_fork_server", lambda: servers.append(None))
    trainer(loader_processes=0, steps=1).run()
    assert servers == []
    trainer(loader_processes=2, steps=1).run()
    assert servers == [None]
    assert asked == [0, 2]


def test_what_the_loader_has_copied_to_the_device_is_not_copied_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = trainer(steps=2)
    made: list[Any] = []
    step = run.optimizer_step.run

    def look(index: int, micro_batches: Any, meter: Meter, on_device: Any) -> int | None:
        made.append(on_device)
        return step(index, micro_batches, meter, on_device)

    monkeypatch.setattr(run.optimizer_step, "run", look)
    run.run()
    assert [len(batches) for batches in made] == [1, 1]


def test_float16_reports_its_loss_scale_and_float32_none() -> None:
    for precision, expected in (("fp16", 65536.0), ("fp32", None)):
        seen = run_until(trainer(precision=precision, steps=2), 2, stop=False)
        assert seen[-1].metrics.get("loss_scale") == expected
