#!/bin/sh
# Everything a GPU should measure, in one command: sh benchmarks/gpu.sh  (or: make bench-gpu)
# Needs one CUDA device with 80 GB (8b; else leave that step out) and no download: weights are
# random. Five minutes at most on an H100, what matters most first: every step has a limit, writes
# its JSON at once, and one that fails or runs out of time stops no other. Writes, into $RESULTS
# (benchmarks/results):
#
#   gpu_logs/tests.log   the tests that need a GPU: kernels, graphs, golden cases in float32
#   gpu_kernels.json     every fused kernel at full size: off its definition, ms, share of a copy
#   gpu_2b.json          infinity-2b 1024x1024, batch 1 and 4: published, exact, three plans
#   gpu_d30.json         var-d30 256x256, batch 1 and 8: the same
#   gpu_calibrate.json   the fashion checkpoint: what calibrate found, and in which time (its log)
#   gpu_8b.json          infinity-8b 1024x1024, batch 1: published, exact, balanced-like
#   gpu_logs/STEP.log    what each step said; gpu_logs/status.txt: how each ended
#
# Each bench JSON has the measured ceiling (matrix product, copy), peak memory, time by scale and
# phase, and the times of the first images (warm_up_ms).
#
#   STEPS="tests 2b"     only these steps (tests kernels 2b d30 calibrate 8b)
#   RESULTS=folder       where to write
#   DRY=1                on any machine, tiny models: whether the commands hold, no result
set -u
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
RESULTS="${RESULTS:-benchmarks/results}"
STEPS="${STEPS:-tests kernels 2b d30 calibrate 8b}"
FASHION=checkpoints/fashion/var_fashion.pth
if [ "${DRY:-0}" = 1 ]; then
    LARGE=infinity-trial LARGER=infinity-trial SMALL=var-trial FASHION="$FASHION --dry-run"
    DEVICE="--device cpu --dtype float32 --repeats 1 --seconds 0"  # some emulate bfloat16
else
    LARGE=infinity-2b LARGER=infinity-8b SMALL=var-d30
    DEVICE="--device cuda --dtype bfloat16 --repeats ${REPEATS:-7}"
    "$PYTHON" -c '
import sys, torch
if not torch.cuda.is_available():
    sys.exit("benchmarks/gpu.sh: no CUDA device here (DRY=1 tries the commands without one)")
print(torch.cuda.get_device_name(), "torch", torch.__version__)' || exit 1
fi
PLANS="--plan balanced-like --plan stagevar --plan skip-2"
LOGS="$RESULTS/gpu_logs"
mkdir -p "$LOGS"
: > "$LOGS/status.txt"
failed=0

# step NAME SECONDS COMMAND...: run it if it is asked for, within its time, and go on after it.
step() {
    name=$1 limit=$2
    shift 2
    case " $STEPS " in *" $name "*) ;; *) return ;; esac
    printf '%s: %s\n' "$name" "$*"
    begun=$(date +%s)
    PYTHONPATH=. timeout -k 10 "$limit" "$@" > "$LOGS/$name.log" 2>&1
    code=$?
    [ $code -eq 0 ] || failed=1
    said="$name: exit $code after $(($(date +%s) - begun)) s (124: out of its $limit s)"
    printf '%s\n' "$said" >> "$LOGS/status.txt"
    tail -n 25 "$LOGS/$name.log"
    printf '%s\n\n' "$said"
}

# bench NAME SECONDS MODEL ARGUMENTS...
bench() {
    name=$1 limit=$2 model=$3
    shift 3
    # shellcheck disable=SC2086
    step "$name" "$limit" "$PYTHON" -m stagevar_probe bench --random "$model" $DEVICE \
        --output "$RESULTS/gpu_$name.json" "$@"
}

step tests 60 "$PYTHON" -m pytest -q -m gpu tests/gpu
step kernels 25 "$PYTHON" benchmarks/kernels.py "$RESULTS/gpu_kernels.json"
# shellcheck disable=SC2086
{
    bench 2b 75 "$LARGE" --batches 1,4 --compile auto --seconds 25 $PLANS
    bench d30 30 "$SMALL" --batches 1,8 --compile auto --seconds 8 $PLANS
    step calibrate 50 sh -c "\"$PYTHON\" -m stagevar_probe calibrate $FASHION --guidance 3 --json \
        --output \"$RESULTS/gpu_calibrate.yaml\" > \"$RESULTS/gpu_calibrate.json\""
    bench 8b 60 "$LARGER" --batches 1 --compile auto --seconds 20 --plan balanced-like
}

cat "$LOGS/status.txt"
exit $failed
