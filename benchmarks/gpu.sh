#!/bin/sh
# Everything a GPU should measure, in one command: sh benchmarks/gpu.sh  (or: make bench-gpu)
# Writes benchmarks/results/<model>_<gpu>_<dtype>[_compile-auto]_v<version>.json, one a line below,
# then prints their table. Needs one CUDA device and no download: weights are random.
# Infinity has no published loop here yet, so its rows compare with `exact` only.
set -eu
cd "$(dirname "$0")/.."
PROBE="${PROBE:-stagevar-probe}"
PYTHON="${PYTHON:-python3}"

"$PYTHON" - <<'CHECK'
import sys
import torch
if not torch.cuda.is_available():
    sys.exit("benchmarks/gpu.sh: no CUDA device here")
print(torch.cuda.get_device_name(), "torch", torch.__version__)
CHECK

# The exact path, eager and compiled, must give the same pictures on this device: see the marker.
"$PYTHON" -m pytest -q -m gpu tests || [ $? -eq 5 ]

for size in ${SIZES:-var-d16 var-d30 infinity-2b}; do
    for compile in ${COMPILE:-off auto}; do
        "$PROBE" bench --random "$size" --device cuda --dtype bfloat16 --batches "${BATCHES:-1,4,8}" \
            --repeats "${REPEATS:-7}" --compile "$compile"
    done
done
"$PYTHON" benchmarks/table.py --print
