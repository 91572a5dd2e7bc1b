#!/bin/sh
# Everything a GPU should measure, in one command: sh benchmarks/gpu.sh  (or: make bench-gpu)
# Needs one CUDA device with 80 GB (infinity-8b; else leave that step out) and no download: weights
# are random. Takes under 20 minutes on an H100: every step has a limit, and a step that fails or
# runs out of time stops no other. Writes, into $RESULTS (benchmarks/results):
#
#   gpu_2b_eager.json    infinity-2b 1024x1024, batch 1: published, exact, nothing compiled
#   gpu_2b.json          the same, batch 1 and 4, graphs: published, exact, four plans
#   gpu_8b.json          infinity-8b 1024x1024, batch 1, graphs: published, exact, four plans
#   gpu_d30.json         var-d30 256x256, batch 1 and 8, graphs: published, exact, four plans
#   gpu_d30_auto.json    the same, batch 1, graphs and compiled blocks: published, exact
#   gpu_2b_auto.json     infinity-2b, batch 1, graphs and compiled blocks: published, exact, stagevar
#   gpu_logs/STEP.log    what each step said; gpu_logs/status.txt: how each ended
#
# Each JSON has the measured ceiling (matrix product, copy), peak memory, and time by scale and phase.
#
#   STEPS="tests 2b"     only these steps (tests 2b_eager 2b 8b d30 d30_auto 2b_auto)
#   RESULTS=folder       where to write
#   DRY=1                on any machine, tiny models: whether the commands hold, no result
set -u
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
RESULTS="${RESULTS:-benchmarks/results}"
STEPS="${STEPS:-tests 2b_eager 2b 8b d30 d30_auto 2b_auto}"
if [ "${DRY:-0}" = 1 ]; then
    LARGE=infinity-trial LARGER=infinity-trial SMALL=var-trial
    DEVICE="--device cpu --dtype bfloat16 --repeats 1 --seconds 0"
else
    LARGE=infinity-2b LARGER=infinity-8b SMALL=var-d30
    DEVICE="--device cuda --dtype bfloat16 --repeats ${REPEATS:-7}"
    "$PYTHON" -c '
import sys, torch
if not torch.cuda.is_available():
    sys.exit("benchmarks/gpu.sh: no CUDA device here (DRY=1 tries the commands without one)")
print(torch.cuda.get_device_name(), "torch", torch.__version__)' || exit 1
fi
PLANS="--plan stagevar --plan stagevar-released --plan fastvar --plan skip-2"
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
    timeout -k 10 "$limit" "$@" > "$LOGS/$name.log" 2>&1
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

step tests 150 "$PYTHON" -m pytest -q -m gpu tests/gpu
# shellcheck disable=SC2086
{
    bench 2b_eager 80 "$LARGE" --batches 1 --compile off --plan exact --seconds 30
    bench 2b 240 "$LARGE" --batches 1,4 --compile graphs --seconds 90 $PLANS
    bench 8b 220 "$LARGER" --batches 1 --compile graphs --seconds 90 $PLANS
    bench d30 90 "$SMALL" --batches 1,8 --compile graphs --seconds 30 $PLANS
}
bench d30_auto 110 "$SMALL" --batches 1 --compile auto --seconds 30 --plan exact
bench 2b_auto 300 "$LARGE" --batches 1 --compile auto --seconds 60 --plan exact --plan stagevar

cat "$LOGS/status.txt"
exit $failed
