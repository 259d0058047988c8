"""Drop an image, see its class: the app that `hf-lpwd space` writes next to a model. Run it with python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
from huggingface_hub import SpaceCard
from transformers import pipeline

#: Small images, such as those of CIFAR, fill their frame.
CSS = "#image img {width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated}"


def build(folder: Path) -> gr.Blocks:
    """Returns the app of the model in `folder`/model."""
    classify = pipeline("image-classification", model=str(folder / "model"))
    table = json.loads((folder / "model" / "layer_rates.json").read_text("utf-8"))["table"]

    def classes(image: Any) -> dict[str, float]:
        return (
            {} if image is None else {answer["label"]: answer["score"] for answer in classify(image, top_k=5)}
        )

    title = SpaceCard.load(folder / "README.md").data.title
    with gr.Blocks(title=title, analytics_enabled=False) as app:
        gr.Markdown(f"# {title}")
        with gr.Row():
            image = gr.Image(type="pil", label="Image", height=320, elem_id="image")
            answer = gr.Label(label="Classes", num_top_classes=5)
        image.change(classes, image, answer, api_name="classify")
        gr.Markdown("## Weight decay by layer")
        gr.Dataframe(table["rows"], headers=table["header"], interactive=False, wrap=True)
    return app


if __name__ == "__main__":
    build(Path(__file__).parent).launch(css=CSS)
