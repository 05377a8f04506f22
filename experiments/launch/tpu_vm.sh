#!/usr/bin/env bash
# A Cloud TPU slice of one or many VMs: the same command on all of them, again if it fails.
#
#   TPU=my-slice ZONE=us-central2-b experiments/launch/tpu_vm.sh \
#       --config=experiments/stage1_imagenet.py:f16_16384 --workdir=gs://bucket/run
#
# Every VM has this checkout, installed with the extra `tpu`, in DIR (default: vqgan_jax, in the home folder).
# RESTARTS (default 3) after failures, PAUSE seconds apart. DRY_RUN=1 prints what would be run. Start it where the
# connection stays, such as in tmux on another VM; `sudo pkill -TERM vqgan` on any one VM saves and ends all of them.
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?where it is}"

train="cd ${DIR:-vqgan_jax} && ${VQGAN:-vqgan} train$(printf ' %q' "$@") --distributed"
launch=(gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$train")
if [[ ${DRY_RUN:-} ]]; then
    echo "${launch[*]}"
    exit
fi
for ((attempt = 0; ; attempt++)); do
    "${launch[@]}" && exit
    ((attempt < ${RESTARTS:-3})) || exit 1
    echo "it failed; again in ${PAUSE:-60} s, from the newest checkpoint" >&2
    sleep "${PAUSE:-60}"
done
