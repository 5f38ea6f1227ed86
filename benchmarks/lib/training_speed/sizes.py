"""The models that are trained, on how much at a time, and who trains each when nobody is named."""

from __future__ import annotations

from dataclasses import dataclass

from headway.config.pretrain import ModelConfig

CONTESTANTS = (
    "headway",
    "trainer",
    "trainer_grouped",
    "trainer_packed",
    "trainer_compiled",
    "trainer_packed_compiled",
    "loop",
    "loop_compiled",
)
_NOT_COMPILED = ("headway", "trainer", "trainer_grouped", "trainer_packed", "loop")
_TWO = ("headway", "trainer_packed")


@dataclass(frozen=True)
class Size:
    """A model and its batches.

    Attributes:
        model: its shape.
        sequences: in a step, on a CPU and on a GPU.
        max_length: tokens of a sequence at most.
        masking: fraction of the tokens that are hidden.
        cpu_steps: timed steps on a CPU: enough that a draw of long or short paragraphs does not decide.
        cpu: contestants on a CPU, most telling first.
        cuda: contestants on a GPU, likewise; compiling a peer costs half a minute there.
    """

    model: ModelConfig
    sequences: dict[str, int]
    max_length: int = 128
    masking: float = 0.15
    cpu_steps: int = 8
    cpu: tuple[str, ...] = _TWO
    cuda: tuple[str, ...] = _TWO

    def contestants(self, device: str) -> tuple[str, ...]:
        """Who runs on a device, by default."""
        return self.cuda if device == "cuda" else self.cpu


_TINY_MODERNBERT = ModelConfig(
    preset="modernbert-base", num_hidden_layers=4, hidden_size=128, num_attention_heads=2
)

SIZES = {
    "tiny": Size(
        ModelConfig(preset="bert-tiny"),
        {"cpu": 64, "cuda": 1024},
        cpu_steps=20,
        cpu=CONTESTANTS,
        cuda=CONTESTANTS,
    ),
    "modernbert-tiny": Size(
        _TINY_MODERNBERT, {"cpu": 8, "cuda": 256}, max_length=256, masking=0.3, cpu=CONTESTANTS
    ),
    "base": Size(
        ModelConfig(preset="bert-base"),
        {"cpu": 32, "cuda": 512},
        cpu=_NOT_COMPILED,
        cuda=(
            *("headway", "trainer", "trainer_packed", "trainer_compiled", "trainer_packed_compiled"),
            *("loop_compiled", "trainer_grouped", "loop"),
        ),
    ),
    "mini": Size(
        ModelConfig(preset="bert-mini"),
        {"cpu": 64, "cuda": 1024},
        cpu_steps=16,
        cpu=_NOT_COMPILED,
        cuda=("headway", "trainer", "trainer_packed", "trainer_packed_compiled", "trainer_grouped"),
    ),
    "large": Size(ModelConfig(preset="bert-large"), {"cpu": 8, "cuda": 256}),
    "base-512": Size(ModelConfig(preset="bert-base"), {"cpu": 4, "cuda": 128}, max_length=512),
    "modernbert-1024": Size(
        ModelConfig(preset="modernbert-base"), {"cpu": 2, "cuda": 64}, max_length=1024, masking=0.3
    ),
    "modernbert-8192": Size(
        ModelConfig(preset="modernbert-base"), {"cpu": 1, "cuda": 8}, max_length=8192, masking=0.3
    ),
}
DEFAULT_SIZES = {
    "cpu": ("mini", "base"),
    "cuda": ("base", "mini", "large", "base-512", "modernbert-1024", "modernbert-8192"),
}
