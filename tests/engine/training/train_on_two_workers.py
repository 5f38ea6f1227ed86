"""Train a saved job on one rank of a gloo group; `test_trainer.py` starts it once for each rank.

python train_on_two_workers.py job.pickle weights.pt   # with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
"""

from __future__ import annotations

import json
import pickle
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from headway.engine.parallel.worker import Worker
from headway.engine.training.evaluation import mean_losses
from headway.engine.training.trainer import Trainer


def main(job_path: Path, target: Path) -> None:
    dist.init_process_group("gloo")
    worker = Worker(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    job = pickle.loads(job_path.read_bytes())
    batches, validation = job.batches()
    reports: list[tuple[int, dict[str, float]]] = []
    trainer = Trainer(job.objective(), batches, job.config, worker=worker)
    size = job.config.batch_size
    trainer.add_evaluation(partial(mean_losses, validation=validation, worker=worker, batch_size=size))
    trainer.add_hook(lambda info: reports.append((info.step, info.metrics)) if info.metrics else None)
    trainer.run()
    torch.save(trainer.objective.state_dict(), f"{target}.{worker.rank}")
    Path(f"{target}.{worker.rank}.json").write_text(json.dumps(reports))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
