"""Records as a sweep leaves them, of made-up runs with a planted difference."""

import json

import numpy as np

from hf_lpwd.study.record import Record, record_id

TIMINGS = ("l2", "wd", "rwd", "pwd")


def made_record(timing="wd", schedule="uniform", decay=0.1, rate=1e-3, seed=0, gain=0.0, **settings):
    """A completed run; its accuracy has the luck of the seed, a little noise, and an optimum at decay 0.1."""
    chance = np.random.default_rng([seed, TIMINGS.index(timing), len(schedule), round(1e6 * decay)])
    luck = np.random.default_rng(seed).normal(0.0, 0.01)
    accuracy = 0.7 + luck + gain - 0.01 * abs(np.log10(decay) + 1) + chance.normal(0.0, 0.001)
    settings = {
        "decay_timing": timing,
        "layer_schedule": schedule,
        "weight_decay": decay,
        "learning_rate": rate,
        "seed": seed,
        **settings,
    }
    layers = [
        {
            "layer": f"layer_{i}",
            "modules": ["block"],
            "rate": decay * (i / 3 if schedule == "linear" else 1.0),
            "parameters": 100,
            "decayed": 80,
        }
        for i in range(4)
    ]
    steps = [10, 20, 30]
    measured = {"steps": steps, "rates": {k: [0.01, 0.02, 0.01] for k in ("all", "layer_1")}}
    return {
        "format": 1,
        "id": record_id(settings),
        "settings": settings,
        "method": f"{timing} {schedule}",
        "versions": {"python": "3.11.7", "torch": "2.8"},
        "status": "completed",
        "metrics": {
            "validation": {"loss": 1.0, "accuracy": float(accuracy - 0.002)},
            "test": {"loss": 1.0, "accuracy": float(accuracy)},
        },
        "epochs": [
            {"epoch": float(i + 1), "step": step, "loss": 1.0, "accuracy": float(accuracy) - 0.1 * (2 - i)}
            for i, step in enumerate(steps)
        ],
        "training": [
            {"epoch": float(i + 1), "step": step, "loss": 2.0 / (i + 1)} for i, step in enumerate(steps)
        ],
        "weight_norms": {
            "steps": steps,
            "norms": {f"layer_{i}": [5.0, 4.5, 4.0 + i] for i in range(4)},
        },
        "layers": layers,
        "opposing_penalty": measured if timing == "wd" else {"steps": [], "rates": {}},
        "pairing": {"initial_weights": f"weights {seed}", "validation_rows": f"rows {seed}"},
        "times": {"started": "2026-01-01T00:00:00Z", "train_seconds": 5.0, "seconds": 6.0},
    }


def made_study(num_seeds=5, rates=(1e-3,), gain=0.02):
    """4 timings x 2 schedules x 3 decays, where pwd x linear is better by `gain`."""
    return [
        made_record(timing, schedule, decay, rate, seed, gain * (timing == "pwd" and schedule == "linear"))
        for timing in TIMINGS
        for schedule in ("uniform", "linear")
        for decay in (0.01, 0.1, 1.0)
        for rate in rates
        for seed in range(num_seeds)
    ]


def failed_record(message="out of memory", **changes):
    """A run that failed."""
    record = made_record(**changes)
    kept = {key: record[key] for key in ("format", "settings", "method", "versions", "times")}
    error = {"type": "RuntimeError", "message": message}
    return {**kept, "id": record["id"], "status": "failed", "error": error}


def write_records(records, folder):
    """Writes records as a sweep does."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(records):
        (folder / f"{number:03}.json").write_text(json.dumps(record))
    return folder


def run_of(method, seed, test, validation=None, **changes):
    """A record of given accuracies as the reader returns it; `method` is "timing schedule" or a peer's name.

    `changes` are settings; `record` among them replaces parts of the record itself.
    """
    parts = changes.pop("record", {})
    settings = {"seed": seed, "weight_decay": 0.1, "learning_rate": 1e-3}
    if len(words := method.split()) > 1 and words[0] in TIMINGS:
        settings |= {"decay_timing": words[0], "layer_schedule": words[1]}
        settings |= {"match_decay_budget": True} if "matched" in words else {}
    else:
        settings |= {"decay_timing": "wd", "layer_schedule": "uniform", "peer": method.replace(" ", "_")}
    settings |= changes
    validation = test if validation is None else validation
    record = made_record(seed=seed) | {
        "id": record_id(settings),
        "settings": settings,
        "method": method,
        "metrics": {
            "validation": {"loss": 1.0, "accuracy": float(validation)},
            "test": {"loss": 1.0, "accuracy": float(test)},
        },
    }
    return Record.model_validate({**record, **parts})
