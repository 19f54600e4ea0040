#!/usr/bin/env bash
# Where there is a GPU, in ten minutes: how far predictions hold, whether it computes what the CPU computes, how fast, and
# with what is left of the time a real run on CIFAR-10.
#   benchmarks/gpu.sh [FOLDER of sets that TFDS has prepared]
# Results go to results/gpu, or to OUTPUT; PYTHON names the interpreter, TARGET the GPU as compile_for.py calls it, and
# BUDGET the seconds for all of it.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
output=${OUTPUT:-results/gpu}
budget=${BUDGET:-570}
mkdir -p "$output"

# part NAME SECONDS COMMAND...: at most so many seconds of what is left; what it has found until then stays.
part() {
    local name=$1 most=$2 left=$((budget - SECONDS)) code
    shift 2
    if [ "$left" -lt 15 ]; then echo "$name: left out, no time"; return; fi
    timeout --signal=TERM --kill-after=10 "$((left < most ? left : most))" "$@" 2>&1 | tee "$output/$name.txt"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] || echo "$name: ended with $code after $SECONDS s"
}

part predictions 200 "$python" benchmarks/gpu_predictions.py --target="${TARGET:-h100:1x1}" --output="$output/predictions.json"
part on_device 80 "$python" benchmarks/on_device.py
part lanes 120 "$python" benchmarks/gpu_lanes.py --dtypes=bfloat16 --output="$output/lanes.json"
part throughput 80 "$python" benchmarks/throughput.py --models=cnn7 --workers=1,16 --lanes=vmap --output="$output/throughput.json"
if [ $# -gt 0 ]; then
    part cifar10 "$budget" "$python" experiments/train.py --dataset=cifar10 --data_dir="$1" --model=cnn7 --groups=4 --workers=4 \
        --local_period=64 --global_period=128 --steps="${STEPS:-6000}" --workdir="$output/cifar10"
fi
