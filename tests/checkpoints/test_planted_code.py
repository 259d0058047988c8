"""No file of a checkpoint runs code when a run is resumed: what could is refused in one line."""

import contextlib
import pickle
import shutil
import sys
import types

import pytest
import torch
import torch.distributed.checkpoint as dcp
from planted import Payload, as_if_saved, plant
from small_trainers import CheckpointingTrainer, make_trainer

from hf_lpwd.checkpoints.corruption import why_corrupt
from hf_lpwd.messages import BadInputError

KINDS = ["zip", "pickle", "beside"]
FLAGS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "cls": CheckpointingTrainer}
LOSS_SCALER = "deepspeed.runtime.fp16.loss_scaler"
#: What is not there by itself, but would be loaded if it were.
MORE = ["pytorch_model.bin", "optimizer.bin", "scaler.pt", "adapter_model.bin", "custom_checkpoint_0.pkl"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_trainer(folder, **FLAGS).train()
    return folder


def names(folder):
    return sorted(path.name for path in (folder / "checkpoint-2").iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_the_payload_runs_where_nothing_prevents_it(tmp_path, kind):
    plant(tmp_path / "x.pt", tmp_path / "ran", kind)
    with contextlib.suppress(RuntimeError):  # a bare pickle has run by the time torch refuses it
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_a_trainers_checkpoint_runs_code(finished, tmp_path, kind):
    refused = {}
    for name in [*names(finished), *MORE]:
        folder = tmp_path / name / "run"
        shutil.copytree(finished, folder)
        checkpoint, trace = folder / "checkpoint-2", tmp_path / name / "ran"
        plant(checkpoint / name, trace, kind)
        as_if_saved(checkpoint, name)
        if name == "pytorch_model.bin":
            (checkpoint / "model.safetensors").unlink()
        trainer = make_trainer(tmp_path / name / "resumed", **FLAGS)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint))
        except BadInputError as error:
            refused[name] = str(error)
        assert not trace.exists(), name
    # Nobody loads the arguments of the Trainer.
    assert not any("\n" in line for line in refused.values())
    assert refused.keys() == {*names(finished), *MORE} - {"training_args.bin"}


def test_what_is_said_of_it(finished, tmp_path):
    shutil.copytree(finished / "checkpoint-2", tmp_path / "checkpoint-2")
    plant(tmp_path / "checkpoint-2" / "optimizer.pt", tmp_path / "ran", "beside")
    as_if_saved(tmp_path / "checkpoint-2", "optimizer.pt")
    assert why_corrupt(str(tmp_path / "checkpoint-2")) == (
        "optimizer.pt cannot be read (it holds posix.mkdir, which may run code when it is loaded)"
    )


@pytest.mark.parametrize("name", ["zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"])
def test_deepspeeds_states_may_hold_its_own_classes_and_no_others(finished, tmp_path, monkeypatch, name):
    """DeepSpeed unpickles them without a guard."""
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(finished / "checkpoint-2", checkpoint)
    (checkpoint / "global_step2").mkdir()
    for module in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.fp16", LOSS_SCALER):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    scaler = sys.modules[LOSS_SCALER]
    scaler.LossScaler = type("LossScaler", (), {"__module__": LOSS_SCALER})
    torch.save({"loss_scaler": scaler.LossScaler()}, checkpoint / "global_step2" / name)
    assert why_corrupt(checkpoint) is None
    plant(checkpoint / "global_step2" / name, tmp_path / "ran", "beside")
    assert "it holds posix.mkdir, which may run code" in why_corrupt(checkpoint)


def save_shards(folder, **more):
    """As FSDP saves an optimizer: tensors, and values that torch pickles."""
    state = {"exp_avg": torch.ones(3, dtype=torch.bfloat16), "lr": 0.1, "betas": (0.9, 0.99), "name": "x"}
    dcp.save({**state, **more}, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)


def load_shards(folder):
    state = {"exp_avg": torch.zeros(3), "lr": 0.0}
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("where", [".metadata", "__0_0.distcp"])
def test_no_sharded_checkpoint_of_fsdp_runs_code(finished, tmp_path, where):
    """torch unpickles the list of the shards, and the values in them, without a guard."""
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(finished / "checkpoint-2", checkpoint)
    shards = checkpoint / "optimizer_0"
    save_shards(shards)
    assert why_corrupt(checkpoint) is None
    if where == ".metadata":
        (shards / where).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
        named = "it holds posix.mkdir, which may run code when it is loaded"
    else:
        shutil.rmtree(shards)
        save_shards(shards, lr=Payload(tmp_path / "ran"))
        named = "Weights only load failed"
    assert why_corrupt(checkpoint).startswith(f"optimizer_0/.metadata cannot be read ({named}")
    assert not (tmp_path / "ran").exists()
    with contextlib.suppress(
        dcp.CheckpointException
    ):  # a list that is none has run by the time torch refuses it
        load_shards(shards)
    assert (tmp_path / "ran").exists()
