#!/usr/bin/env bash
# Trains by N processes on this machine, each with a GPU of its own, or all on its CPU:
#   launch/multiprocess.sh [--dry-run] N --config=CONFIG --workdir=RUN [OPTION...]
# OPTIONs are those of `python -m eotjax.main`. SIGTERM or Ctrl-C stops all of them well, with
# status 143. PYTHON names another interpreter than .venv's.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
source "$root/launch/launcher.bash"
[[ ${1-} =~ ^[1-9][0-9]*$ ]] || fail "give the number of processes first, as in: $0 2 --config=..."
count=$1
shift

visible=()
if [[ ${CUDA_VISIBLE_DEVICES+set} ]]; then # the user's choice of them
  IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
else
  while read -r; do visible+=("${#visible[@]}"); done < <(nvidia-smi --list-gpus 2>/dev/null || true)
fi
gpus=${#visible[@]}
if ((gpus > 0 && gpus < count)); then
  fail "there are $gpus GPUs for $count processes; start at most $gpus."
fi
port=$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')

set -m # each process in a group of its own: Ctrl-C comes to them through this script alone
processes=()
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT
for ((id = 0; id < count; id++)); do
  settings=(JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$count" JAX_PROCESS_ID="$id")
  if ((gpus > 0)); then
    settings+=(CUDA_VISIBLE_DEVICES="${visible[id]}")
  else
    settings+=(JAX_PLATFORMS=cpu)
  fi
  run=(env "${settings[@]}" "$python" -m eotjax.main --distributed "$@")
  if [[ $dry ]]; then
    shown "${run[@]}"
  else
    "${run[@]}" &
    processes+=($!)
  fi
done

status=0
for process in ${processes[@]+"${processes[@]}"}; do
  while true; do # a signal ends `wait`, not the process
    code=0
    wait "$process" || code=$?
    kill -0 "$process" 2>/dev/null || break
  done
  if ((code > status)); then status=$code; fi
done
exit "$status"
