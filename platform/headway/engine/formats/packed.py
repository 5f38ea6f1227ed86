"""Weights in 8 or 4 bits: a file in a model's folder instead of `model.safetensors`.

In 8 bits every row of a matrix has a scale; in 4 bits every 32 numbers of a row share one, as in GPTQ's and
llama.cpp's formats. Vectors and narrow matrices, such as most classifiers', stay as they are. Inference
computes with the packed weights; whoever trains or cuts a model unpacks it first.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from headway.config.base import ConfigError

FILE = "packed.safetensors"

_GROUP = 32
FEWEST = 32
"""Rows and columns from which a matrix is packed: a classifier's few rows would save nothing, and matter."""
_CODES, _SCALES = "|codes", "|scales"


class Packed(NamedTuple):
    """A matrix in few bits.

    Attributes:
        codes: integers from -127 to 127, int8 (rows, columns); or two from -7 to 7 in each byte, uint8
            (rows, columns / 2), columns filled up to a multiple of 32.
        scales: what 1 stands for, float16: (rows, 1), or (rows, groups).
        columns: of the matrix.
    """

    codes: Tensor
    scales: Tensor
    columns: int

    @property
    def bits(self) -> int:
        """Bits of a number, scales not counted."""
        return 8 if self.codes.dtype == torch.int8 else 4

    def rows(self, index: Tensor) -> Packed:
        """Some rows, in the order of an int64 index of one dimension."""
        return Packed(self.codes.index_select(0, index), self.scales.index_select(0, index), self.columns)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix in floats, (rows, columns)."""
        if self.bits == 8:
            return self.codes.to(dtype) * self.scales.to(dtype)
        halves = torch.stack([self.codes & 15, self.codes >> 4], dim=-1)  # (rows, columns / 2, 2)
        numbers = halves.to(torch.int8).flatten(1).to(dtype) - 8
        groups = numbers.unflatten(1, (-1, _GROUP)) * self.scales.to(dtype)[..., None]
        return groups.flatten(1)[:, : self.columns]


def pack(weight: Tensor, bits: int) -> Packed:
    """Round a matrix, (rows, columns), to 8 or 4 bits a number."""
    weight, columns = weight.detach().float(), weight.size(1)
    if bits == 8:
        scales = _scales(weight.abs().amax(dim=1, keepdim=True) / 127)
        codes = (weight / scales.float()).round().clamp(-127, 127).to(torch.int8)
        return Packed(codes, scales, columns)
    groups = F.pad(weight, (0, -columns % _GROUP)).unflatten(1, (-1, _GROUP))  # (rows, groups, 32)
    scales = _scales(groups.abs().amax(dim=2) / 7)
    numbers = (groups / scales.float()[..., None]).round().clamp(-7, 7).flatten(1) + 8
    low, high = numbers.to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
    return Packed(low | (high << 4), scales, columns)


def _scales(steps: Tensor) -> Tensor:
    """In float16, never 0, which would divide nothing, nor too large for it."""
    return steps.clamp(1e-6, 6e4).to(torch.float16)


def is_packed(folder: Path) -> bool:
    """Whether a model's weights are packed."""
    return (folder / FILE).is_file()


def pack_folder(folder: Path, bits: int) -> None:
    """Replace the weights of a model's folder by packed ones."""
    tensors: dict[str, Tensor] = {}
    columns: dict[str, int] = {}
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118, it is no mapping
                tensor = stored.get_tensor(name)
                if tensor.dim() != 2 or min(tensor.shape) < FEWEST or not tensor.is_floating_point():
                    tensors[name] = tensor
                    continue
                packed = pack(tensor, bits)
                tensors[name + _CODES], tensors[name + _SCALES] = packed.codes, packed.scales
                columns[name] = packed.columns
    save_file(tensors, folder / FILE, {"bits": str(bits), "columns": json.dumps(columns)})
    for path in [*files, *folder.glob("*.safetensors.index.json")]:
        path.unlink()


def packed_bits(folder: Path) -> int:
    """How many bits the packed weights of a folder have.

    Raises:
        ConfigError: the file is damaged.
    """
    return int(_metadata(folder)["bits"])


@contextmanager
def unpacked_folder(folder: Path) -> Iterator[Path]:
    """A folder that transformers opens: the same, or for this block one with its weights unpacked.

    Raises:
        ConfigError: the packed file is damaged.
    """
    if not is_packed(folder):
        yield folder
        return
    columns = json.loads(_metadata(folder)["columns"])
    tensors = {}
    with safe_open(folder / FILE, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118, it is no mapping
            whole, separator, part = name.rpartition("|")
            if not separator:
                tensors[name] = stored.get_tensor(name)
            elif separator + part == _CODES:
                parts = stored.get_tensor(name), stored.get_tensor(whole + _SCALES)
                tensors[whole] = Packed(*parts, columns[whole]).unpacked(torch.float32).contiguous()
    with tempfile.TemporaryDirectory() as plain:
        save_file(tensors, Path(plain) / "model.safetensors", {"format": "pt"})
        for path in folder.glob("*.json"):
            shutil.copyfile(path, Path(plain) / path.name)
        yield Path(plain)


def _metadata(folder: Path) -> dict[str, str]:
    try:
        with safe_open(folder / FILE, framework="pt") as stored:
            found: dict[str, str] = stored.metadata()
            return {name: found[name] for name in ("bits", "columns")}
    except Exception as error:  # safetensors has an error of its own, and metadata may be missing
        raise ConfigError(f"model: {str(folder / FILE)!r} does not hold packed weights") from error
