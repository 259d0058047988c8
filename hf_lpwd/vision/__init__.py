"""Fine-tuning of image classifiers: data, transforms, metrics, models, the run and its model card."""
