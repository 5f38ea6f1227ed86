"""Read a state of torch.distributed.checkpoint without running what a pickle may hold.

A state's `.metadata` is a pickle, and so is each entry that is no tensor, such as a learning rate. A checksum
is no signature: whoever can write the files can write the checksums. So neither may name anything but what
torch's own states are made of.
"""

from __future__ import annotations

import io
import pickle
from typing import IO, Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, Metadata, filesystem, metadata
from torch.distributed.checkpoint.planner import ReadItem

_CLASSES = (
    metadata.BytesStorageMetadata,
    metadata.ChunkStorageMetadata,
    metadata.Metadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata.TensorProperties,
    metadata.TensorStorageMetadata,
    metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo,
)
_KNOWN: dict[tuple[str, str], Any] = {
    **{(known.__module__, known.__name__): known for known in _CLASSES},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """See `pickle.Unpickler`."""
        if (module_name, global_name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which no state is made of")
        return _KNOWN[module_name, global_name]


def read_metadata(stream: IO[bytes]) -> Metadata:
    """A state's metadata.

    Raises:
        ValueError: it is not metadata, or would run something else.
    """
    try:
        found = _MetadataUnpickler(stream).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f".metadata: {str(error) or type(error).__name__}") from error
    if not isinstance(found, Metadata):
        raise ValueError(f".metadata: it holds {type(found).__name__}, not a state's metadata")
    return found


class PlainLoadPlanner(DefaultLoadPlanner):
    """Plans as torch does; entries that are no tensors may be numbers, text, lists and mappings."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """See `DefaultLoadPlanner`, which loads any pickle."""
        harmless = io.BytesIO()
        # Only the parent knows where an entry belongs, so it is given what was read as a new pickle.
        torch.save(torch.load(value, weights_only=True), harmless)
        harmless.seek(0)
        super().load_bytes(read_item, harmless)
