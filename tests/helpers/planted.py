"""Pickles that leave a trace if anything loads them without care."""

import os
import pickle
import zipfile

import torch


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
