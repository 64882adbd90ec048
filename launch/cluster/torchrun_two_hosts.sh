#!/usr/bin/env bash
# Two hosts without Ray. On each host: torchrun_two_hosts.sh <0 or 1> <address of host 0> <command>
#
#   host 0:  torchrun_two_hosts.sh 0 10.0.0.1 generate --model /data/model --prompt Hello
#   host 1:  torchrun_two_hosts.sh 1 10.0.0.1 generate --model /data/model --prompt Hello
set -euo pipefail

if (($# < 3)); then
    echo "usage: $0 <number of this host: 0 or 1> <address of host 0> <command> [options]" >&2
    exit 2
fi
node_rank=$1 address=$2
shift 2

# Ranks of a host: set RANKS_PER_HOST, or one for each core that is not shared.
ranks=${RANKS_PER_HOST:-$(lscpu --parse=core,socket | grep -v '^#' | sort -u | wc -l)}

exec torchrun --nnodes=2 --node-rank="$node_rank" --nproc-per-node="$ranks" \
    --master-addr="$address" --master-port="${MASTER_PORT:-29500}" -m launch "$@"
