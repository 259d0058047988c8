"""All models of timm and transformers: layers agree with the order in which forward hooks see modules run."""

from __future__ import annotations

import pkgutil

import check_layers
import pytest
import timm
import transformers
from timm.models import model_entrypoint

pytestmark = [
    pytest.mark.slow,
    # Configurations at their defaults, and tensors without elements on the meta device.
    pytest.mark.filterwarnings("ignore"),
]

_HEAD_OF_EACH_BLOCK = "what a decoder predicts before or behind a layer guides the next one"
#: Families of which a module does not run in one line with the blocks, and why.
OUT_OF_LINE = {
    "canine": "the pooler runs before the last, shallow encoder",
    "d_fine": _HEAD_OF_EACH_BLOCK,
    "deimv2": _HEAD_OF_EACH_BLOCK,
    "eomt": _HEAD_OF_EACH_BLOCK,
    "eomt_dinov3": _HEAD_OF_EACH_BLOCK,
    "fastspeech2_conformer": "HifiGan's upsampling layers, a list of their own, run between groups of blocks",
    "lxmert": "the image's layers are registered behind the cross-modal ones, and run before them",
    "mask2former": _HEAD_OF_EACH_BLOCK,
    "nemotron3_5_asr": "its inputs are not known, and a warning names the projector of its prompts",
    "pp_doclayout_v3": _HEAD_OF_EACH_BLOCK,
    "pp_doclayout_v4": _HEAD_OF_EACH_BLOCK,
    "rt_detr": _HEAD_OF_EACH_BLOCK,
    "sam2": "two convolutions of the decoder run on the backbone's features",
    "sam3": _HEAD_OF_EACH_BLOCK,
    "sam3_lite_text": _HEAD_OF_EACH_BLOCK,
    "sam3_tracker": "two convolutions of the decoder run on the backbone's features",
    "speecht5": "HifiGan's upsampling layers, a list of their own, run between groups of blocks",
    "udop": "its three position biases, as many as the layers that the check leaves, run before all of them",
    "videomt": "the masks of each frame guide the next one",
    "videoprism": "the position embeddings of time are used behind the spatial layers",
    "vjepa2": "the pooler's cross-attention runs behind its self-attention",
}
#: Models of transformers in which nothing is repeated.
WITHOUT_BLOCKS = {
    "GlmImageVQVAE",
    "InklingAudioModel",
    "Molmo2Adapter",
    "SLANetSLAHead",
    "SLANeXtSLAHead",
}


def _check(models):
    statuses = {name: check_layers.check(builders) for name, builders in models.items()}
    if all(status == "not built" for status, _ in statuses.values()):
        pytest.skip("builds from no configuration of its own")
    assert {name for name, (status, _) in statuses.items() if status == "no layers found"} <= WITHOUT_BLOCKS
    return {name: about for name, (status, about) in statuses.items() if status == "disagrees"}


@pytest.mark.parametrize(
    "family", sorted({model_entrypoint(name).__module__.rpartition(".")[2] for name in timm.list_models()})
)
def test_timm(family):
    disagree = _check({name: builders for name, _, builders in check_layers.timm_models(f"^{family}$")})
    assert disagree == {} or family in OUT_OF_LINE


@pytest.mark.parametrize("family", [one.name for one in pkgutil.iter_modules(transformers.models.__path__)])
def test_transformers(family):
    disagree = _check(
        {name: builders for name, _, builders in check_layers.transformers_models(f"^{family}$")}
    )
    assert disagree == {} or family in OUT_OF_LINE
