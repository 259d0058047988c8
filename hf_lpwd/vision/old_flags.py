"""Flags of older releases of transformers and of its example scripts, and what stands in their place."""

from __future__ import annotations

_LEAVE_OUT = "leave it out"

#: Name -> what to do instead.
OLD_FLAGS: dict[str, str] = {
    "overwrite_output_dir": "name another --output_dir, or delete that folder yourself",
    "use_auth_token": "use --token, or `hf auth login`",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "evaluation_strategy": "use --eval_strategy",
    "evaluate_during_training": "use --eval_strategy steps",
    "warmup_ratio": "use --warmup_steps with a number below 1, a fraction of all steps",
    "no_cuda": "use --use_cpu",
    "use_mps_device": f"{_LEAVE_OUT}; a device that is there is used",
    "per_gpu_train_batch_size": "use --per_device_train_batch_size",
    "per_gpu_eval_batch_size": "use --per_device_eval_batch_size",
    "max_val_samples": "use --max_eval_samples",
    "max_predict_samples": "use --max_eval_samples, which also limits the test images",
    "feature_extractor_name": "use --image_processor_name",
    "adafactor": "use --optim adafactor",
    "group_by_length": f"{_LEAVE_OUT}; images have no length",
    "save_safetensors": f"{_LEAVE_OUT}; weights are always saved as safetensors",
    "fp16_backend": "use --fp16 or --bf16",
    "half_precision_backend": "use --fp16 or --bf16",
    "fp16_opt_level": "use --fp16 or --bf16",
    "sharded_ddp": "use --fsdp",
    "torchdynamo": "use --torch_compile",
    "include_inputs_for_metrics": _LEAVE_OUT,
    "push_to_hub_model_id": "use --hub_model_id",
    "push_to_hub_organization": "use --hub_model_id ORGANIZATION/NAME",
    "push_to_hub_token": "use --hub_token",
    "split_batches": "use --accelerator_config '{\"split_batches\": true}'",
    "dispatch_batches": "use --accelerator_config '{\"dispatch_batches\": true}'",
    "jit_mode_eval": _LEAVE_OUT,
    "use_ipex": _LEAVE_OUT,
    "mp_parameters": _LEAVE_OUT,
    "ray_scope": _LEAVE_OUT,
    "past_index": _LEAVE_OUT,
    "tpu_num_cores": _LEAVE_OUT,
    "timing": "use --decay_timing",
    "schedule": "use --layer_schedule",
    "coupling": "use --decay_coupling",
    "match_budget": "use --match_decay_budget",
    "no_decay": "use --no_decay_pattern",
}
