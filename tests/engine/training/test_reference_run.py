"""Three hundred steps beside a plain transformers loop on the same batches: the same losses."""

import torch
from transformers import BertForPreTraining

from headway.config.pretrain import PretrainConfig
from headway.data.pretraining.batches import PretrainingBatches
from headway.engine.training.objectives import PretrainingObjective
from headway.engine.training.trainer import Trainer
from headway.runs.pretraining import PretrainingJob

STEPS = 300


def padded(batch, pad_token_id):
    """The batch as transformers takes it: padded rows, with labels of -100 for tokens that are not hidden."""
    lengths = batch.lengths.tolist()
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.masked_positions] = batch.masked_labels
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(batch.input_ids.split(lengths), True, pad_token_id),
        "token_type_ids": pad(batch.token_type_ids.split(lengths), True, 0),
        "attention_mask": pad([torch.ones(n, dtype=torch.long) for n in lengths], True, 0),
        "labels": pad(labels.split(lengths), True, -100),
        "next_sentence_label": batch.labels,
    }


def test_300_steps_have_the_losses_of_a_plain_transformers_loop(corpus, tiny_shape):
    shape = tiny_shape | {"dropout": 0.0, "attention_dropout": 0.0}
    optimizer = {"learning_rate": 1e-4, "weight_decay": 0.01}
    config = PretrainConfig.model_validate(
        {"corpus": str(corpus.folder), "model": shape, "steps": STEPS, "batch_size": 8, "log_every": 1}
        | {"precision": "fp32", "optimizer": optimizer, "schedule": {"name": "constant", "warmup": 0.0}}
    )
    job = PretrainingJob(config, corpus.folder, None)
    objective, (batches, _) = job.objective(), job.batches()
    assert isinstance(batches, PretrainingBatches) and isinstance(objective, PretrainingObjective)
    reference = BertForPreTraining(objective.model.config)
    reference.load_state_dict(objective.model.state_dict())
    reference.set_attn_implementation("eager")

    ours: list[float] = []
    trainer = Trainer(objective, batches, config)
    trainer.add_hook(lambda info: ours.append(info.metrics["mlm_loss"] + info.metrics["nsp_loss"]))
    trainer.run()

    weights = [p for p in reference.parameters() if p.dim() >= 2]
    vectors = [p for p in reference.parameters() if p.dim() < 2]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.999), eps=1e-6)
    theirs: list[float] = []
    for step in range(STEPS):
        [batch] = batches.micro_batches(step, 0, 1, 1)
        loss = reference(**padded(batch, 0)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        theirs.append(float(loss.detach()))
    assert len(ours) == STEPS
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3
