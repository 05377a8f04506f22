#!/usr/bin/env bash
# Plain hosts: the same command on each by ssh, numbered in the order of HOSTS; all again if one fails.
#
#   HOSTS="alpha beta" experiments/launch/ssh.sh --config=experiments/stage1_imagenet.py --workdir=/shared/runs/f16
#
# Every host has this checkout in DIR (default: this folder's name here), `vqgan` on its PATH and the same shared workdir.
# The first one is the coordinator: the others must reach its PORT (default 8476). RESTARTS (default 3) after failures,
# PAUSE seconds apart. DRY_RUN=1 prints what would be run. `pkill -TERM vqgan` on any one host saves and ends all.
set -euo pipefail
: "${HOSTS:?names of the hosts, with spaces between}"
read -ra hosts <<< "$HOSTS"
read -ra ssh <<< "${SSH:-ssh}"

line() { # of a host, by its number
    printf '%s' "cd ${DIR:-$PWD} && ${VQGAN:-vqgan} train$(printf ' %q' "${flags[@]}") --distributed" \
        " --coordinator=${hosts[0]}:${PORT:-8476} --processes=${#hosts[@]} --process_id=$1"
}

launch() { # on all hosts; fails if one does
    local jobs=() failed=0 i
    for i in "${!hosts[@]}"; do
        "${ssh[@]}" "${hosts[i]}" "$(line "$i")" &
        jobs+=("$!")
    done
    for i in "${!jobs[@]}"; do
        wait "${jobs[i]}" || failed=1
    done
    return "$failed"
}

flags=("$@")
if [[ ${DRY_RUN:-} ]]; then
    for i in "${!hosts[@]}"; do
        echo "${ssh[*]} ${hosts[i]} $(line "$i")"
    done
    exit
fi
for ((attempt = 0; ; attempt++)); do
    launch && exit
    ((attempt < ${RESTARTS:-3})) || exit 1
    echo "it failed; again in ${PAUSE:-60} s, from the newest checkpoint" >&2
    sleep "${PAUSE:-60}"
done
