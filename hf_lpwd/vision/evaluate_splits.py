"""`hf-lpwd train` with `--do_eval` or `--do_predict` alone: a trained model, measured on labelled images."""

from __future__ import annotations

from pathlib import Path

from hf_lpwd.checkpoints.run_folder import check_output_dir
from hf_lpwd.checkpoints.run_record import write_record
from hf_lpwd.messages import BadInputError, counted, say
from hf_lpwd.vision.arguments import ImageTrainingArguments
from hf_lpwd.vision.classifier import saved_scale
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.images import ImageDataset, collate, finishes_later
from hf_lpwd.vision.data.labelled import LabelledImages, load_labelled, with_training_images
from hf_lpwd.vision.data.transforms import ImageTransform
from hf_lpwd.vision.image_trainer import ImageTrainer
from hf_lpwd.vision.launch import set_up_launch
from hf_lpwd.vision.metrics import compute_metrics, logits_only
from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.models import hub_options, load_trained
from hf_lpwd.vision.run_settings import run_settings


def evaluate_splits(
    model_args: ModelArguments, data_args: DataTrainingArguments, training_args: ImageTrainingArguments
) -> None:
    """Measures a trained model on whole splits, with its own classes, and writes the metrics as Trainer does.

    `do_eval` measures the validation split, `do_predict` the test split; each the only split if there is one.

    Raises:
        BadInputError: There is no trained model, it was trained on these images, or the data does not fit it.
    """
    name = model_args.model_name_or_path
    if name is None:
        raise BadInputError(
            "--do_eval and --do_predict without --do_train measure a trained model: give --model_name_or_path"
        )
    for flag in ("config_name", "image_processor_name"):
        if getattr(model_args, flag) is not None:
            raise BadInputError(f"{flag} has no effect without --do_train: a trained model has its own")
    set_up_launch(training_args, training_args.decay_timing)
    output_dir = str(training_args.output_dir)
    settings = run_settings(model_args, data_args, training_args)
    check_output_dir(output_dir, settings)
    model, processor, class_names = load_trained(name, **hub_options(model_args))
    wanted = [("eval", "validation")] * training_args.do_eval + [("test", "test")] * training_args.do_predict
    transform = ImageTransform(processor)
    found: dict[str, tuple[LabelledImages, ImageDataset]] = {}
    for prefix, role in wanted:
        data = load_labelled(
            data_args,
            class_names,
            roles=[role],
            scale=saved_scale(Path(name)),
            cache_dir=model_args.cache_dir,
            token=model_args.token,
        )
        data, is_training_data = with_training_images(data, name, data_args.dataset_config_name)
        if is_training_data:
            raise BadInputError(
                f"{data.where} holds the images that {name} was trained on: name others, or measure them "
                f"by hf-lpwd evaluate with --split {data.split}"
            )
        images = ImageDataset(
            data.images,
            transform,
            image_column=data.image_column,
            source=data.split,
            rows=data.rows,
            scale=data.facts.images.scale if data.facts.images else None,
            skip_bad_images=data_args.skip_bad_images,
            unfinished=finishes_later(training_args.device) or None,
        )
        found[prefix] = data, images
    trainer = ImageTrainer(
        model=model,
        args=training_args,
        transform=transform,
        eval_dataset=images,
        data_collator=collate,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=logits_only,
        processing_class=processor,
    )
    if trainer.is_world_process_zero():
        write_record(output_dir, settings)
    for prefix, (data, images) in found.items():
        values = trainer.evaluate(images, metric_key_prefix=prefix)
        trainer.save_metrics(prefix, values)
        if trainer.is_world_process_zero():
            facts = data.facts.without_undecodable({data.split: images.num_skipped})
            say(f"hf-lpwd train: {facts.describe()}")
            count = counted(len(images), "image")
            left_out = f", {images.num_skipped} cannot be decoded" if images.num_skipped else ""
            accuracy = values[f"{prefix}_accuracy"]
            print(f"{data.where}: accuracy {accuracy:.4f} ({count}{left_out}); in {output_dir}")
