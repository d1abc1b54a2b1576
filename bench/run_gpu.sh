#!/bin/sh
# Runs all tests and benchmarks that need a GPU: `make bench-gpu`, or `PYTHON=python3 bench/run_gpu.sh FOLDER`.
# Takes about ten minutes, mostly to compile. Each part writes FOLDER/NAME.txt (bench/results), even if others fail.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
results=${1:-bench/results}
mkdir -p "$results"
status=0

# part NAME MODULE ARGUMENTS…
part() {
    name=$1
    shift
    if ! timeout 600 "$python" -m "$@" >"$results/$name.txt" 2>&1; then
        status=1
        echo "$name failed"
    fi
    tail -40 "$results/$name.txt"
}

part gpu_tests pytest -m gpu -W default -rs -p no:cacheprovider tests/gpu
part gpu_kernels fleet bench gpu_kernels
part gpu_decode fleet bench gpu_decode --deterministic --quantization int8 int4
part gpu_transfer fleet bench transfer --device cuda
part gpu_contract pytest -W default -p no:cacheprovider -k triton tests/contract
part gpu_cuda pytest -m gpu -W default -rs -p no:cacheprovider tests/contract/test_transport_cuda.py
part gpu_split pytest -m gpu -W default -rs -p no:cacheprovider tests/integration/test_families_split.py
exit $status
