#!/usr/bin/env bash
# Where there is a GPU: whether it computes what the CPU computes, how fast, and a real run on CIFAR-10.
#   benchmarks/gpu.sh [FOLDER of sets that TFDS has prepared]
# Results go to results/gpu, or to OUTPUT; PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
output=${OUTPUT:-results/gpu}
mkdir -p "$output"

"$python" benchmarks/on_device.py | tee "$output/on_device.txt"
"$python" benchmarks/throughput.py --models=cnn7 --workers=1,4,16,64 --output="$output/throughput.json" | tee "$output/throughput.txt"
"$python" benchmarks/convolution.py --output="$output/convolution.json" | tee "$output/convolution.txt"
if [ $# -gt 0 ]; then
    "$python" experiments/train.py --dataset=cifar10 --data_dir="$1" --model=cnn7 --groups=4 --workers=4 \
        --local_period=64 --global_period=128 --steps=${STEPS:-6000} --workdir="$output/cifar10"
fi
