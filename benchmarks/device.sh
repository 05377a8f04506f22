#!/usr/bin/env bash
# What one accelerator computes and how fast: parity with golden arrays, then a training step of both stages, encode,
# decode and sample, each against its plan. One command, one JSON, eight minutes.
#
#   benchmarks/device.sh [FILE]                        # default: device.json
#   SMALL=1 TIMES=4 JAX_PLATFORMS=cpu benchmarks/device.sh      # tiny networks, to try it on a CPU
#
# Started in a checkout that is installed with the extra `cuda` or `tpu`. A part that fails or takes longer than its
# seconds, which TIMES multiplies, is told in FILE with the end of its output; the others go on. PYTHON (default
# python). TOKENIZER and PRIOR are pages of the lab book, BATCH images or sequences (default 16).
set -uo pipefail
cd "$(dirname "$0")/.."
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

for part in golden:60 step1:150 encode:50 decode:50 step2:90 sample:75; do
    name=${part%:*} limit=$((${part#*:} * ${TIMES:-1}))
    echo "$name, $limit s at most" >&2
    status=0
    timeout --kill-after=5 "$limit" "${PYTHON:-python}" benchmarks/device.py "$name" \
        > "$parts/$name.json" 2> "$parts/$name.log" || status=$?
    echo "$status" > "$parts/$name.status"
done
"${PYTHON:-python}" benchmarks/device.py join "$parts" | tee "${1:-device.json}"
