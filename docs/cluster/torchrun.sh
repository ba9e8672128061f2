#!/bin/bash
# One agent of a training over several machines without a scheduler; the same line on each of them:
#
#   NODES=2 GPUS=8 HEAD=first-machine:29500 docs/cluster/torchrun.sh RECIPE RUN_FOLDER [options of facezoo train]
#
# HEAD is one of the machines, the same in all lines; its agent keeps the list of the others. A machine that is lost is
# replaced by running the line on another one; the others wait for it (10 minutes; JOIN_TIMEOUT in seconds) and all go on
# from the last checkpoint. ADDRESS is this machine's, where its name leads nowhere. The run folder and the data must lie
# on a file system that all machines share.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: NODES=N GPUS=N HEAD=HOST:PORT torchrun.sh RECIPE RUN_FOLDER [options of facezoo train]" >&2
  exit 2
fi
recipe=$1 output=$2
shift 2

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Without it (torch 2.6 to 2.13 at least) an agent that survives publishes its processes' meeting point only once, and
# the agent that takes a lost machine's place waits for it for ever.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
head=${HEAD:-localhost:29500}
conf="join_timeout=${JOIN_TIMEOUT:-600},read_timeout=${JOIN_TIMEOUT:-600}"
if [ -n "${ADDRESS:-}" ]; then
  # torchrun finds out by names whether it is HEAD; where those lead nowhere it has to be told.
  conf="$conf,is_host=$([ "$ADDRESS" = "${head%:*}" ] && echo 1 || echo 0)"
fi

exec torchrun \
  --nnodes="${NODES:-1}" --nproc-per-node="${GPUS:-1}" --max-restarts="${RESTARTS:-10}" \
  --rdzv-backend=c10d --rdzv-endpoint="$head" --rdzv-id="${RUN_ID:-facezoo}" \
  --rdzv-conf="$conf" ${ADDRESS:+--local-addr="$ADDRESS"} \
  -m facezoo train "$recipe" --output "$output" --nodes "${NODES:-1}" --devices "${GPUS:-1}" --requeue "$@"
