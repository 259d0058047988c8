"""Packs the records of contexts for git, with the shuffled schedules under their name in PROTOCOL.md.

    python scripts/replication/pack.py runs/C1 runs/C3    # writes C1.jsonl.gz and C3.jsonl.gz

The version that runs the study names them by their lists of layers, which differ with the number of layers.
Nothing else changes: `settings` has the list.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from hf_lpwd.study.records import pack_records

RECORDS = Path(__file__).parents[2] / "model_cards/replication"


def named(text: str) -> str:
    """Renames ``"wd 6,0,5,3,7,1,2,4 matched"`` to ``"wd shuffled matched"`` in the JSON of a record."""
    return re.sub(r'"(\w+) \d+(,\d+)+ matched"', r'"\1 shuffled matched"', text)


def main() -> None:
    """Reads the command line and packs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="records of a context, such as runs/C1")
    parser.add_argument("--out", type=Path, default=RECORDS)
    args = parser.parse_args()
    for folder in args.folders:
        with tempfile.TemporaryDirectory() as temporary:
            for path in folder.glob("*.json"):
                Path(temporary, path.name).write_text(named(path.read_text()))
            file = args.out / f"{folder.name}.jsonl.gz"
            print(f"{pack_records([temporary], str(file))} records in {file}")


if __name__ == "__main__":
    main()
