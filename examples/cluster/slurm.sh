#!/bin/bash
# Fine-tune a model with all GPUs of two nodes:
#
#     sbatch examples/cluster/slurm.sh
#
# from a folder that all nodes see. The job is put back into the queue when it is preempted and before its time is over,
# and goes on from the last checkpoint.
#SBATCH --job-name=support
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u
run=support
cd "${SLURM_SUBMIT_DIR:-$PWD}"
export HF_HOME="${HF_HOME:-$PWD/huggingface}" # one cache for all nodes: the model is downloaded once
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # another one for each job of a node

# Where nothing is saved yet, the run begins with its first step.
begin=--restart
if compgen -G "runs/$run/checkpoints/step-*" > /dev/null; then begin=--resume; fi

requeue=no
stop() { # Slurm sends USR1 ten minutes before the time is over; srun passes TERM on to all nodes
    requeue=yes
    kill -TERM "$step"
}
trap stop USR1

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend c10d --rdzv-endpoint "$first:$port" --rdzv-id "$SLURM_JOB_ID" --shutdown-timeout 300 \
    -m rankwise -- train "$run.yaml" --run "$run" "$begin" &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2> /dev/null; do # the signal ended the first wait
    wait "$step"
    code=$?
done

if [ "$requeue" = yes ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
