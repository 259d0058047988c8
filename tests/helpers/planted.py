"""Pickles that leave a trace if anything loads them without care."""

import json
import os
import pickle
import zipfile

import torch

from hf_lpwd.checkpoints.corruption import as_saved
from hf_lpwd.files import SAVED_FILES


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def plant(path, trace, kind):
    """Writes a payload in the place of a file: as `torch.save`, as a bare pickle, or beside what is there."""
    if kind == "zip":
        torch.save({"state": {}, "payload": Payload(trace)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        kept = torch.load(path, weights_only=False) if zipfile.is_zipfile(path) else {}
        torch.save({**(kept if isinstance(kept, dict) else {}), "payload": Payload(trace)}, path)


def as_if_saved(checkpoint, name):
    """Whoever can write into a checkpoint can write into the list of its files too."""
    path = checkpoint / SAVED_FILES
    if name != SAVED_FILES and path.is_file():
        saved = json.loads(path.read_text())
        path.write_text(json.dumps({**saved, name: as_saved(checkpoint / name)}))
