"""Checkpoints without pickle: exact state encoding, an atomic and checksummed store, retention.

```python
store = CheckpointStore(work_dir / "checkpoints", work_dir / "last_checkpoint")
store.clean()                                                  # once, at start-up
path = save_checkpoint(store, "epoch_5", checkpoint, epoch=5, iter=500)
for name in Retention(max_keep=2).superseded(store.list(), protected={"epoch_5"}):
    store.remove(name)
checkpoint = load_checkpoint(path)                             # every byte is verified first
```
"""

from __future__ import annotations

__all__ = (
    "CheckpointInfo",
    "CheckpointStore",
    "EncodedState",
    "FileRecord",
    "Files",
    "Retention",
    "decode_state",
    "encode_state",
    "load_checkpoint",
    "read_tensors",
    "save_checkpoint",
    "tensor_chunks",
    "verify_checkpoint",
)

from hookbus.checkpoint.decode import decode_state
from hookbus.checkpoint.encode import EncodedState, encode_state
from hookbus.checkpoint.files import Files
from hookbus.checkpoint.manifest import CheckpointInfo, FileRecord
from hookbus.checkpoint.retention import Retention
from hookbus.checkpoint.snapshot import load_checkpoint, save_checkpoint, verify_checkpoint
from hookbus.checkpoint.store import CheckpointStore
from hookbus.checkpoint.tensor_file import tensor_chunks
from hookbus.checkpoint.tensor_reading import read_tensors
