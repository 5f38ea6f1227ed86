"""Tiny encoders of every kind that runs unpadded, and a batch for them."""

import copy

import torch
import transformers
from transformers import (
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from headway.engine.model import heads

LENGTHS = [5, 23, 1, 12, 23, 8]
_SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "bert": BertConfig(**_SIZES, intermediate_size=48, max_position_embeddings=32),
    "roberta": RobertaConfig(
        **_SIZES, intermediate_size=48, max_position_embeddings=40, pad_token_id=1, type_vocab_size=1
    ),
    "distilbert": DistilBertConfig(
        vocab_size=61, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=32
    ),
    "electra": ElectraConfig(**_SIZES, embedding_size=16, intermediate_size=48, max_position_embeddings=32),
    "modernbert": ModernBertConfig(
        **_SIZES,
        intermediate_size=48,
        local_attention=8,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
    ),
}
MODELS = {
    "MaskedLM": lambda model, hidden, layout: heads.vocabulary_logits(model, hidden),
    "SequenceClassification": heads.sequence_logits,
    "TokenClassification": lambda model, hidden, layout: heads.token_logits(model, hidden),
    "QuestionAnswering": lambda model, hidden, layout: heads.answer_logits(model, hidden),
}


def build(kind: str, head: str):
    torch.manual_seed(0)
    auto_class = getattr(transformers, f"AutoModelFor{head}")
    # transformers writes the dtype into the configuration that it is given.
    config = copy.deepcopy(CONFIGS[kind])
    return auto_class.from_config(config, dtype=torch.float64).double().eval()


def random_batch(kind: str):
    """The same sequences unpadded (ids, types) and padded (ids, types, mask)."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor(LENGTHS)
    ids = torch.randint(5, 61, (int(lengths.sum()),), generator=generator)
    types = torch.cat([(torch.arange(n) >= n // 2).long() for n in LENGTHS])
    mask = torch.arange(max(LENGTHS)) < lengths[:, None]
    padded = torch.full(mask.shape, CONFIGS[kind].pad_token_id)
    padded[mask] = ids
    padded_types = torch.zeros(mask.shape, dtype=torch.long)
    padded_types[mask] = types
    return ids, types, padded, padded_types, mask
