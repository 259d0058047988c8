"""Drop a picture, see its class: the app that `hf-lpwd space` puts beside a model. Run it with python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
from huggingface_hub import SpaceCard
from transformers import pipeline

#: Small pictures, such as those of CIFAR, fill their frame.
CSS = "#picture img {width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated}"


def build(folder: Path) -> gr.Blocks:
    """Returns the app of the model in `folder`/model."""
    classify = pipeline("image-classification", model=str(folder / "model"))
    table = json.loads((folder / "model" / "layer_rates.json").read_text("utf-8"))["table"]

    def classes(picture: Any) -> dict[str, float]:
        return {} if picture is None else {a["label"]: a["score"] for a in classify(picture, top_k=5)}

    title = SpaceCard.load(folder / "README.md").data.title
    with gr.Blocks(title=title, analytics_enabled=False) as app:
        gr.Markdown(f"# {title}")
        with gr.Row():
            picture = gr.Image(type="pil", label="Picture", height=320, elem_id="picture")
            answer = gr.Label(label="Classes", num_top_classes=5)
        picture.change(classes, picture, answer, api_name="classify")
        gr.Markdown("## Weight decay by layer")
        gr.Dataframe(table["rows"], headers=table["header"], interactive=False, wrap=True)
    return app


if __name__ == "__main__":
    build(Path(__file__).parent).launch(css=CSS)
