"""A mixer that is the same for every batch size, and a run with it; test_batch_augmentation.py also runs this
file in two processes, which save their weights.
"""

import os
import sys
from pathlib import Path

import torch
from small_trainers import Images, lpwd_args, make_model, weights
from torch.nn.functional import one_hot
from transformers import ViTImageProcessor

from hf_lpwd.vision.data.transforms import ImageTransform
from hf_lpwd.vision.image_trainer import ImageTrainer

FLAGS = {
    "optim": "sgd",
    "gradient_accumulation_steps": 1,
    "label_smoothing_factor": 0.2,
    "max_steps": -1,
    "num_train_epochs": 2,
    "learning_rate": 0.2,
}


def fixed_mix(pixel_values, labels):
    """Mixes each image with its mirror image, and its label with a class that the image decides."""
    share = torch.sigmoid(pixel_values[:, 0, 0, 0])
    by_image = share[:, None, None, None]
    other = (pixel_values[:, 1, 0, 0] > 0).long()
    mixed = share[:, None] * one_hot(labels, 3) + (1 - share[:, None]) * one_hot(other, 3)
    return by_image * pixel_values + (1 - by_image) * pixel_values.flip(-1), mixed


def make_image_trainer(path, size=22, mix=fixed_mix, **changes):
    model = make_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return ImageTrainer(
        model=model,
        args=lpwd_args(path, **{**FLAGS, **changes}),
        transform=ImageTransform(ViTImageProcessor()),
        mix=mix,
        train_dataset=Images(size),
        eval_dataset=Images(8, seed=1),
    )


def main(folder):
    trainer = make_image_trainer(folder / "run", size=24, per_device_train_batch_size=4)
    assert trainer.args.world_size == 2
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(weights(trainer.accelerator.unwrap_model(trainer.model)), folder / "weights.pt")
    torch.distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
