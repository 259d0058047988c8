"""A run as a Gradio app, to be run here or pushed as a Space."""

from __future__ import annotations

import json
import sys
from importlib import metadata, resources
from pathlib import Path

from hf_lpwd.files import write_bytes
from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.hub.card import plain
from hf_lpwd.vision.hub.push import files_to_push

#: The release that the app is tested with, in the browser.
GRADIO = "6.31.0"
#: Published files of a run that the app does not need.
_NOT_THE_MODEL = ("README.md", "curves.png", "_results.json")

_TEXT = """
# {title}

Drop an image to classify it. Below it, the weight decay of each layer in training. To run the app:

```
pip install -r requirements.txt
python app.py
```
"""


def write_space(output_dir: Path, out: Path) -> dict[str, Path]:
    """Writes a Gradio app of a run: app.py, requirements.txt, README.md with a Space's metadata, model/.

    Args:
        output_dir: Output folder of a run of ``hf-lpwd train``.
        out: Folder of the app, made if missing.

    Returns:
        The files by their path in `out`.

    Raises:
        BadInputError: There is no trained model with its layer rates, or `out` holds something else.
    """
    from huggingface_hub import ModelCard, SpaceCard, SpaceCardData

    published = files_to_push(output_dir)
    if not {"layer_rates.json", "README.md"} <= published.keys():
        raise BadInputError(f"{output_dir} has no layer_rates.json or README.md: the run has not ended")
    if "table" not in json.loads(published["layer_rates.json"].read_text("utf-8")):
        raise BadInputError(f"{output_dir} was trained with an older release of hf-lpwd, train it again")
    if out.exists() and not (out / "app.py").exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInputError(f"{out} is not empty and holds no app: name another folder with --out")
    card = ModelCard.load(published["README.md"]).data
    title = str(card.model_name or output_dir.absolute().name)
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license=card.license,
        tags=["image-classification", "lpwd"],
        emoji="🖼️",
        colorFrom="blue",
        colorTo="green",
    )
    contents = {
        "app.py": resources.files("hf_lpwd.vision.hub").joinpath("space_app.py").read_bytes(),
        "requirements.txt": _requirements(published["config.json"]).encode(),
        "README.md": str(
            SpaceCard(f"---\n{data.to_yaml()}\n---\n{_TEXT.format(title=plain(title))}")
        ).encode(),
    }
    for name, path in published.items():
        if not name.endswith(_NOT_THE_MODEL):
            contents[f"model/{name}"] = path.read_bytes()
    for name, content in contents.items():
        write_bytes(out / name, content)
    return {name: out / name for name in contents}


def _requirements(config: Path) -> str:
    """Returns the libraries that the app imports, in the versions that the model was trained with."""
    timm = json.loads(config.read_text("utf-8"))["model_type"] == "timm_wrapper"
    libraries = ["torch", "torchvision", "transformers", *(["timm"] if timm else [])]
    # A wheel for one machine has a local version, "2.8.0+cpu", that PyPI does not know.
    pins = [f"{library}=={metadata.version(library).partition('+')[0]}" for library in libraries]
    return "\n".join([f"gradio=={GRADIO}", *pins, ""])
