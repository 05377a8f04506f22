#!/usr/bin/env bash
# TPU slices on GKE, by xpk: a JobSet of one pod a VM, which GKE starts again when one fails or is preempted.
#
#   CLUSTER=my-cluster WORKLOAD=imagenet-f16 TPU_TYPE=v5p-128 IMAGE=gcr.io/me/vqgan_jax experiments/launch/gke_xpk.sh \
#       --config=experiments/stage1_imagenet.py:f16_16384 --workdir=gs://bucket/run
#
# IMAGE has this checkout as its working folder, installed with the extra `tpu`. SLICES (default 1), RESTARTS (default
# 20) and, before a pod that is told to end is killed, GRACE seconds for its checkpoint (default 300). DRY_RUN=1 prints.
set -euo pipefail
: "${CLUSTER:?the GKE cluster}" "${WORKLOAD:?a name for the run}" "${TPU_TYPE:?such as v5p-128}" "${IMAGE:?a container}"

train="${VQGAN:-vqgan} train$(printf ' %q' "$@") --distributed"
launch=(
    xpk workload create --cluster="$CLUSTER" --workload="$WORKLOAD" --tpu-type="$TPU_TYPE" --num-slices="${SLICES:-1}"
    --docker-image="$IMAGE" --command="$train"
    --max-restarts="${RESTARTS:-20}" --restart-on-user-code-failure --termination-grace-period-seconds="${GRACE:-300}"
)
if [[ ${DRY_RUN:-} ]]; then
    echo "${launch[*]}"
else
    "${launch[@]}"
fi
