#!/bin/sh
# The whole way of the picture model at a hundredth of its size, on a CPU, with no network:
#
#   sh training/rehearse.sh            data -> carry -> train -> kill -> resume -> join -> load ->
#                                      calibrate -> evaluate -> page; one line of figures at the end
#
#   PYTHON=python     with the project installed: makes the data, measures what was trained
#   BARE=python       what the lent machine has (PyTorch, NumPy, SciPy, Pillow): trains
#   PACKAGES=runs/npm archives by npm; fetched there if they are missing, the only step that may ask
#                     the network
#   WORK=runs/rehearsal
#   MINUTES=2         of each of the two runs
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}" WORK="${WORK:-runs/rehearsal}" MINUTES="${MINUTES:-2}"
BARE="${BARE:-$PYTHON}" PACKAGES="${PACKAGES:-runs/npm}"
rm -rf "$WORK" && mkdir -p "$WORK" && WORK=$(cd "$WORK" && pwd)
say() { echo "== $*"; }
# what runs where no network is, if this system lets one have none
if unshare -rn true 2> /dev/null; then OFFLINE="unshare -rn"; else OFFLINE=""; fi
say "network: ${OFFLINE:-cannot be denied here}"

say data
"$PYTHON" -m training.data.shard --output "$WORK/pictures.zip" --packages "$PACKAGES" \
    --concepts 60 --scenes 3000 --side 128
say carry
"$PYTHON" -m training.carry --shard "$WORK/pictures.zip" --out "$WORK/carried"
"$BARE" -c 'import importlib.util as u
print("== trains with", [m for m in ("torch", "numpy", "scipy", "PIL", "pydantic", "safetensors")
    if u.find_spec(m)])'

run() { # in the carried folder, without the project's environment
    (cd "$WORK/carried" && env -u PYTHONPATH OUT="$WORK/out" MINUTES="$MINUTES" PYTHON="$BARE" \
        PYTHONDONTWRITEBYTECODE=1 $OFFLINE sh run.sh --device cpu --size tiny "$@")
}
say "train, and kill it once it trains the transformer"
run > "$WORK/first.log" 2>&1 &
FIRST=$!
until grep -qs '"stage": "transformer"' "$WORK/out/progress.json"; do
    kill -0 $FIRST 2> /dev/null || { cat "$WORK/first.log"; echo "rehearsal: it ended"; exit 1; }
    sleep 0.5
done
# the training process is the one that holds its folder; ours alone, by its number
for pid in /proc/[0-9]*; do
    [ "$(readlink "$pid/cwd" 2> /dev/null)" = "$WORK/carried" ] || continue
    tr '\0' ' ' < "$pid/cmdline" | grep -q 'training.gpu' && kill -9 "${pid#/proc/}"
done
wait $FIRST && { echo "rehearsal: it was not killed"; exit 1; }
tail -n 2 "$WORK/first.log"
say resume
run --resume > "$WORK/second.log" 2>&1 || { tail -n 20 "$WORK/second.log"; exit 1; }
grep -q 'goes on from step' "$WORK/second.log"
tail -n 2 "$WORK/second.log"
[ "$(ls "$WORK/out" | wc -l)" -le 8 ] || { echo "rehearsal: more than 8 files"; exit 1; }

say "join, load, calibrate, evaluate"
$OFFLINE "$PYTHON" -m training.after "$WORK/out" --output "$WORK/checkpoint" \
    --shard "$WORK/pictures.zip" --device cpu --features pixels --count 14 --held-out 8 \
    --batch 14 --keep-demo
$OFFLINE "$PYTHON" - "$WORK" <<'EOF'
import json, sys
from pathlib import Path
import stagevar_runtime
work = Path(sys.argv[1])
pipeline = stagevar_runtime.load(work / "checkpoint/pictures.safetensors", device="cpu")
images = pipeline.generate(prompts=["a red circle"], seed=0).images
record = json.loads((work / "out/progress.json").read_text())
steps = [r for r in record["logs"]["transformer"] if "loss" in r]
exact = {s: json.loads((work / f"checkpoint/pictures.{s}.json").read_text())["rows"][0]
         for s in ("scenes", "emoji")}
print(f"rehearsed: {tuple(images.shape)} pictures, loss {steps[0]['by_scale'][0]:.3f} to "
      f"{steps[-1]['by_scale'][0]:.3f} at the first scale, {steps[-1]['images']} images, "
      f"scenes {exact['scenes']['passed'][0]:.2f}, emoji R@1 {exact['emoji']['passed'][0]:.2f}, "
      f"plans {sorted(pipeline.profile.plans)}")
EOF
