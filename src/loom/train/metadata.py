"""A checkpoint from elsewhere must not run code when it is opened.

torch's distributed format keeps its table of contents, `.metadata`, as a pickle, and unpickles it. Here
it is read first by an unpickler that knows the classes such a table is made of and no others.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from loom.errors import LoomError

_METADATA = (
    "Metadata TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata StorageMeta TensorProperties "
    "MetadataIndex _MEM_FORMAT_ENCODING"
)
_TORCH = "Size float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
ALLOWED = {
    "torch.distributed.checkpoint.metadata": frozenset(_METADATA.split()),
    "torch.distributed._shard.sharded_tensor.metadata": frozenset(
        {"TensorProperties", "MEM_FORMAT_ENCODING"}
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch": frozenset(_TORCH.split()),
    "pathlib": frozenset({"PosixPath", "WindowsPath"}),
    "pathlib._local": frozenset({"PosixPath", "WindowsPath"}),  # Python 3.13's name for them
    "collections": frozenset({"OrderedDict"}),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def check_metadata(folder: Path) -> None:
    """Raise `LoomError` unless the checkpoint's `.metadata` is a plain table of contents."""
    file = folder / ".metadata"
    try:
        with open(file, "rb") as stream:
            _Unpickler(stream).load()
    except FileNotFoundError:
        raise LoomError(f"{file} is missing: this checkpoint is damaged; use the one before it.") from None
    except Exception as error:
        raise LoomError(
            f"{file} is not what a checkpoint holds ({error}), so it is not opened: it could run code of its "
            f"maker's."
        ) from None
