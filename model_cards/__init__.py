"""The template of model cards; installed as `hf_lpwd.model_cards`."""
