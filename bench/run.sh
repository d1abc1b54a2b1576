#!/bin/sh
# Benchmarks kernels, engine, prefix index, transfers and serving on this machine into bench/results: `make bench`. Takes
# about ten minutes on a quiet machine. Peers, routers, routing and chaos have commands of their own.
set -eu
cd "$(dirname "$0")/.."
baton=$PWD/.venv/bin/baton
results=$PWD/bench/results
work=$(mktemp -d)
export BATON_HOME="$work/home"
trap '"$baton" down >/dev/null; rm -rf "$work"' EXIT

# served NAME FLAGS…: a fleet with these flags, under load
served() {
    name=$1
    shift
    "$baton" up --detach --port 8765 "$@" >/dev/null
    {
        echo "baton up $*" | sed "s|$work/||g"
        "$baton" bench serve --base-url http://127.0.0.1:8765 --seed 0
    } | tee "$results/$name.txt"
    "$baton" down >/dev/null
}

for name in kernels engine prefix_index transfer; do
    "$baton" bench "$name" | tee "$results/$name.txt"
done
served serve-default
.venv/bin/python -c "from engine.random_checkpoint import LLAMA_107M, write; write('$work/llama-107m', LLAMA_107M)"
served serve-107m --model "$work/llama-107m"
served serve-107m-colocated --model "$work/llama-107m" --colocated
