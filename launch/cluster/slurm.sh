#!/usr/bin/env bash
# sbatch launch/cluster/slurm.sh train --model ... --data ... --output ... --context ... --steps ...
#
# A Ray cluster on the job's nodes, one command on it, and nothing left when either ends.
#SBATCH --job-name=tokenfabric
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_address=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname --ip-address | cut -d' ' -f1)
port=6379
export RAY_AUTH_MODE=token

srun --nodes=1 --ntasks=1 --overlap -w "${nodes[0]}" \
    ray start --head --node-ip-address="$head_address" --port=$port \
    --num-cpus="$SLURM_CPUS_PER_TASK" --dashboard-host=127.0.0.1 --block &
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT

for node in "${nodes[@]:1}"; do
    # `ray start` itself tries again until the head answers.
    srun --nodes=1 --ntasks=1 --overlap -w "$node" \
        ray start --address="$head_address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
done

srun --nodes=1 --ntasks=1 --overlap -w "${nodes[0]}" \
    python -m launch "$@" --launcher ray --address "$head_address:$port" \
    --nodes "$SLURM_JOB_NUM_NODES"
