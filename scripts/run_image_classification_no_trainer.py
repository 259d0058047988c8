"""Fine-tunes an image classifier in a custom training loop with accelerate, without the Trainer.

The flags are those of transformers' script of the same name, and those of `LPWDArguments`. What layer-wise
weight decay adds to such a loop are the lines marked LPWD. Without a dataset and a model it trains a small
ViT on scikit-learn's digits. Checkpoints are complete or absent, as those of `hf-lpwd train`.

    accelerate launch scripts/run_image_classification_no_trainer.py --dataset_name beans --output_dir beans
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.utils import validate_repo_id
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm
from transformers import EvalPrediction, HfArgumentParser, get_scheduler
from transformers.hf_argparser import HfArg

from hf_lpwd import LPWDArguments, LPWDConfig, create_lpwd_optimizer  # LPWD
from hf_lpwd.checkpoints.custom_loop import load_checkpoint, save_checkpoint
from hf_lpwd.checkpoints.folders import remove_unfinished, written_aside
from hf_lpwd.checkpoints.run_folder import check_run, sole_use
from hf_lpwd.checkpoints.run_record import CHANGES, write_record
from hf_lpwd.cli import errors_in_one_line
from hf_lpwd.files import write_json
from hf_lpwd.lpwd_arguments import setting
from hf_lpwd.messages import BadInputError, OneLineParser, refuse
from hf_lpwd.vision.arguments import DIGITS_RUN
from hf_lpwd.vision.data.augmentation import make_mixer, training_loss
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.images import ImageDataset, collate, finishes_later
from hf_lpwd.vision.data.labelled import write_training_images
from hf_lpwd.vision.data.splits import load_splits
from hf_lpwd.vision.failures import DIVERGED
from hf_lpwd.vision.hub.push import PushError
from hf_lpwd.vision.hub.push_callback import push_run
from hf_lpwd.vision.launch import set_up_launch
from hf_lpwd.vision.metrics import compute_metrics
from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.models import load_model_and_processor
from hf_lpwd.vision.run_settings import data_settings
from hf_lpwd.vision.training_args import check_ranges

PROG = Path(__file__).name
# The Trainer reads warmup_steps below 1 as a fraction; this is a tenth of the steps.
DIGITS = {**DIGITS_RUN, "num_warmup_steps": 300, "output_dir": "outputs/digits_no_trainer"}
# Flags that do not change what a run computes.
NOT_THE_RUN = {
    *("cache_dir", "token", "hub_token", "trust_remote_code", "output_dir", "per_device_eval_batch_size"),
    *("checkpointing_steps", "resume_from_checkpoint", "resume_with_changes", "with_tracking", "report_to"),
    *("push_to_hub", "hub_model_id", "log_layers"),
}


@dataclass
class LoopArguments(LPWDArguments):  # LPWD
    """How to train."""

    output_dir: str | None = HfArg(default=None, help="Where to store checkpoints and model.")
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    learning_rate: float = 5e-5
    weight_decay: float = setting("weight_decay", default=0.0)
    num_train_epochs: int = 3
    max_train_steps: int | None = HfArg(default=None, help="Overrides num_train_epochs.")
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "linear"
    num_warmup_steps: int = 0
    seed: int = 42
    checkpointing_steps: str | None = HfArg(default=None, help="A number, or 'epoch'.")
    resume_from_checkpoint: str | None = HfArg(default=None, help="A checkpoint's folder.")
    resume_with_changes: bool = HfArg(
        default=False, help="Go on from a checkpoint of a run with other settings."
    )
    with_tracking: bool = False
    report_to: str = HfArg(default="all", help="The trackers of with_tracking.")
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = field(default=None, repr=False)

    log_layers: bool = field(default=False, init=False)  # the Trainer's

    def __post_init__(self) -> None:
        super().__post_init__()
        text = self.checkpointing_steps
        if text not in (None, "epoch") and not (text.isdigit() and int(text)):
            raise ValueError(f"checkpointing_steps is {text!r}, but must be a number of steps or 'epoch'")
        check_ranges(self)
        if self.push_to_hub and self.output_dir:
            self.hub_model_id = self.hub_model_id or Path(self.output_dir).absolute().name
            validate_repo_id(self.hub_model_id)


class Parser(OneLineParser, HfArgumentParser):
    """Reads dataclasses, and says what is wrong in one line."""


def parse_args(argv: Sequence[str]) -> tuple[ModelArguments, DataTrainingArguments, LoopArguments]:
    """Reads the command line."""
    parser = Parser((ModelArguments, DataTrainingArguments, LoopArguments), prog=PROG, description=__doc__)
    given = parser.parse_args(argv)
    if not (given.dataset_name or given.train_dir or given.model_name_or_path or given.model_type):
        known = vars(given).keys()
        parser.set_defaults(**{name: value for name, value in DIGITS.items() if name in known})
    try:
        arguments = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    if arguments[2].output_dir is None:
        parser.error("name a folder for the results: --output_dir")
    return arguments


def main(argv: Sequence[str]) -> None:
    """Trains, evaluates after each epoch, reads the test split once, and saves the model."""
    model_args, data_args, args = parse_args(argv)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to if args.with_tracking else None,
        project_dir=args.output_dir,
    )
    set_up_launch(accelerator, args.decay_timing)  # LPWD
    with sole_use(args.output_dir) if accelerator.is_main_process else nullcontext():
        train(model_args, data_args, args, accelerator)
    # Also ends the process group, without which a process now and then aborts at its end.
    accelerator.end_training()
    # No process waits for the upload, and none is held up by one that fails.
    if args.push_to_hub and accelerator.is_main_process:
        url = push_run(Path(args.output_dir), args.hub_model_id, token=args.hub_token or model_args.token)
        print(f"pushed: {url}")


def train(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    args: LoopArguments,
    accelerator: Accelerator,
) -> None:
    """Does the run in a folder that is its own."""
    settings = {**asdict(model_args), **asdict(data_args), **asdict(args)}
    settings = {name: value for name, value in settings.items() if name not in NOT_THE_RUN}
    settings |= {"processes": accelerator.num_processes, "mixed_precision": accelerator.mixed_precision}
    check = partial(
        check_run, args.output_dir, settings, args.resume_from_checkpoint, args.resume_with_changes
    )
    check()
    # One process at a time, so that only the first downloads and decodes.
    with accelerator.main_process_first():
        splits = load_splits(
            data_args, seed=args.seed, cache_dir=model_args.cache_dir, token=model_args.token
        )
    settings |= data_settings(splits)
    settings[CHANGES] = check()
    set_seed(args.seed)
    model, processor = load_model_and_processor(model_args, splits.class_names)
    mix = make_mixer(len(splits.class_names), data_args.mixup_alpha, data_args.cutmix_alpha)
    later = finishes_later(accelerator.device)
    loaders, order = {}, torch.Generator()
    for role in ("train", "validation", "test"):
        if getattr(splits, role) is None:
            continue
        images = ImageDataset.from_split(splits, role, processor, data_args, seed=args.seed, unfinished=later)
        size = args.per_device_train_batch_size if role == "train" else args.per_device_eval_batch_size
        sampler = RandomSampler(images, generator=order) if role == "train" else None
        # A separate generator: a loader takes no random numbers from the one that dropout uses.
        own = torch.Generator()
        loaders[role] = DataLoader(images, size, sampler=sampler, collate_fn=collate, generator=own)

    optimizer = create_lpwd_optimizer(  # LPWD
        model,
        torch.optim.AdamW,
        lr=args.learning_rate,
        **vars(LPWDConfig.from_args(args)),  # LPWD
    )
    plan = optimizer.plan  # LPWD: what happens to each parameter
    model, optimizer, *prepared = accelerator.prepare(model, optimizer, *loaders.values())
    loaders = dict(zip(loaders, prepared, strict=True))
    number = accelerator.gradient_accumulation_steps  # as DeepSpeed's configuration or the launcher set it
    if number != args.gradient_accumulation_steps:
        raise BadInputError(f"give --gradient_accumulation_steps {number}, as in DeepSpeed's configuration")
    # A step is one of the optimizer, whatever the number of processes and of batches in it.
    steps_per_epoch = math.ceil(len(loaders["train"]) / args.gradient_accumulation_steps)
    max_steps = args.max_train_steps or args.num_train_epochs * steps_per_epoch
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, args.num_warmup_steps, max_steps)
    steps, losses = 0, torch.zeros(2, device=accelerator.device)
    if args.resume_from_checkpoint:
        steps = load_checkpoint(accelerator, args.resume_from_checkpoint, max_steps, losses, scheduler)

    def save() -> None:
        save_checkpoint(accelerator, args.output_dir, steps, max_steps, losses, scheduler, settings)

    if accelerator.is_main_process:
        remove_unfinished(args.output_dir)
        write_record(args.output_dir, settings)
        write_training_images(args.output_dir, splits)
    if args.with_tracking:
        accelerator.init_trackers("image_classification_no_trainer", {k: str(v) for k, v in settings.items()})

    quiet = not (accelerator.is_main_process and sys.stderr.isatty())
    bar = tqdm(total=max_steps, initial=steps, disable=quiet)
    results = {}
    while steps < max_steps:
        epoch, step_in_epoch = divmod(steps, steps_per_epoch)
        # Order and augmentation depend on seed and epoch alone, and are the same in a resumed run.
        order.manual_seed(args.seed + epoch)
        loaders["train"].set_epoch(epoch)  # which also tells the dataset
        model.train()
        # On a GPU, images are augmented, resized and normalised there.
        finish = loaders["train"].dataset.transform.finish
        if step_in_epoch == 0:
            losses.zero_()
        done = step_in_epoch * args.gradient_accumulation_steps
        for batch in accelerator.skip_first_batches(loaders["train"], done) if done else loaders["train"]:
            with accelerator.accumulate(model):
                optimizer.train()  # LPWD: here pwd decays, once for each step
                loss = training_loss(model, finish(batch), mix)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses += torch.stack([loss.detach().float(), torch.ones_like(loss, dtype=torch.float32)])
            if not accelerator.sync_gradients:
                continue
            # A step that the fp16 scaler skipped counts, but the schedule waits for it.
            if not accelerator.optimizer_step_was_skipped:
                scheduler.step()
            steps += 1
            bar.update()
            if args.checkpointing_steps not in (None, "epoch") and steps % int(args.checkpointing_steps) == 0:
                save()
            if steps == max_steps:
                break
        results = evaluate(model, loaders["validation"], accelerator)
        total, count = accelerator.reduce(losses).tolist()
        results = {"epoch": epoch + 1, "train_loss": total / count, **results}
        accelerator.print(f"epoch {epoch + 1}: loss {total / count:.4f}, accuracy {results['accuracy']:.4f}")
        if args.with_tracking:
            accelerator.log(results, step=steps)
        if args.checkpointing_steps == "epoch":
            save()

    # A run that is resumed at its end only evaluates.
    results = results or evaluate(model, loaders["validation"], accelerator)
    if "test" in loaders:
        test = evaluate(model, loaders["test"], accelerator)
        results |= {f"test_{name}": value for name, value in test.items()}
        accelerator.print(f"test accuracy {test['accuracy']:.4f}")
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        with written_aside(args.output_dir) as folder:
            accelerator.unwrap_model(model).save_pretrained(folder, state_dict=state)
            processor.save_pretrained(folder)
        write_json(Path(args.output_dir) / "layer_rates.json", plan.to_dict())  # LPWD
        write_json(Path(args.output_dir) / "all_results.json", results)
    accelerator.wait_for_everyone()


def evaluate(model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator) -> dict[str, float]:
    """Returns accuracy, macro F1 and top-5 accuracy; `gather_for_metrics` counts every image once.

    Raises:
        BadInputError: The model's answers are NaN or infinite.
    """
    model.eval()
    outputs = []
    for batch in map(loader.dataset.transform.finish, loader):
        with torch.no_grad():
            logits = model(**batch).logits
        outputs.append(accelerator.gather_for_metrics((logits.float(), batch["labels"])))
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*outputs, strict=True))
    if not logits.isfinite().all():
        raise BadInputError(f"the model's logits are NaN or infinite: {DIVERGED}")
    return compute_metrics(EvalPrediction(predictions=logits.numpy(), label_ids=labels.numpy()))


def run(argv: Sequence[str]) -> int:
    """Returns the exit code of `main`: 0, or 1 where the run is saved but not pushed."""
    try:
        main(argv)
    except PushError as error:
        refuse(PROG, error)
        return 1
    except ValueError as error:
        raise BadInputError(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(errors_in_one_line(run, sys.argv[1:], PROG))
