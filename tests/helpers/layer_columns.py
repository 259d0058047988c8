"""One column of a `LayerMap`: parameter name -> layer, stack, or the module that decides."""

from __future__ import annotations

from hf_lpwd.layers import LayerMap


def layers_of(layer_map: LayerMap) -> dict[str, int]:
    """Parameter name -> layer."""
    return {name: place.layer for name, place in layer_map.places.items()}


def stacks_of(layer_map: LayerMap) -> dict[str, str]:
    """Parameter name -> stack."""
    return {name: place.stack for name, place in layer_map.places.items()}


def modules_of(layer_map: LayerMap) -> dict[str, str]:
    """Parameter name -> what decides its layer."""
    return {name: place.module for name, place in layer_map.places.items()}
