#!/bin/bash
# The diagnostics of model_cards/REPLICATION.md: ConvNeXt on CIFAR-10 with the settings of C1, seed 0, at its rates.
# Run it where data/ and models/ are; the tables go to the folder that is named.
#
#     scripts/replication/diagnostics.sh model_cards/replication/diagnostics
set -euo pipefail
out=$1
here=$(dirname "$0")
flags=(--dataset_name data/cifar10 --model_name_or_path models/convnext --ignore_mismatched_sizes --augmentation crop_flip
    --learning_rate 1e-3 --lr_scheduler_type cosine --warmup_steps 0.1 --num_train_epochs 6
    --per_device_train_batch_size 64 --per_device_eval_batch_size 500 --seed 0 --layer_schedule uniform)
rates=(0.5291 3.175 18.52 105.8) # C1's: total decay 0.1, 0.6, 3.5, 20
mkdir -p "$out" trained

for rate in "${rates[@]}"; do
    for kind in opposing-penalty equivalence; do
        table=$out/$kind-$rate.csv
        [ -e "$table" ] && continue
        hf-lpwd diagnose $kind --out "trained/$kind-$rate" "${flags[@]}" --weight_decay "$rate" --logging_steps 10
        cp "trained/$kind-$rate/$kind.csv" "$table"
    done
done

# Trained models: their feature norms from layer to layer, and their accuracy with smaller weights.
runs=()
for run in none-0 wd-0.5291 wd-18.52 rwd-18.52 pwd-18.52 linear-18.52; do
    rate=${run#*-}
    case ${run%-*} in
    none) method=(--decay_timing wd) ;;
    linear) method=(--decay_timing pwd --layer_schedule linear --match_decay_budget) ;;
    *) method=(--decay_timing "${run%-*}") ;;
    esac
    [ -e "trained/$run/model.safetensors" ] ||
        hf-lpwd train "${flags[@]}" "${method[@]}" --weight_decay "$rate" --output_dir "trained/$run"
    runs+=("trained/$run")
done
[ -e "$out/feature_norms.csv" ] ||
    python "$here/feature_norms.py" --dataset data/cifar10 --split validation "${runs[@]}" >"$out/feature_norms.csv"
for run in none-0 wd-0.5291; do
    [ -e "$out/shrink-$run.csv" ] && continue
    hf-lpwd diagnose shrink --out "trained/shrink-$run" --dataset_name data/cifar10 --model_name_or_path "trained/$run"
    cp "trained/shrink-$run/shrink.csv" "$out/shrink-$run.csv"
done
