#!/usr/bin/env bash
# Trains on a Cloud TPU, of one host or of many, and goes on after a pre-emption:
#   launch/tpu_vm.sh [--dry-run] create|setup|delete NAME
#   launch/tpu_vm.sh [--dry-run] run NAME --config=CONFIG --workdir=RUN [OPTION...]
# `run` makes the TPU where there is none, sets up all its workers, trains, and begins again where
# the TPU was taken away. Needs gcloud. The workdir and the data must outlive the TPU: BUCKET is
# mounted at ~/bucket by gcsfuse.
#   ZONE (us-central2-b)  TYPE (v4-8)  VERSION (tpu-ubuntu2204-base)  SPOT (yes; empty: no)
#   REPOSITORY: what the workers clone  BUCKET: of Cloud Storage, without gs://
#   PAUSE (60): seconds before it is made anew, again and again where there is no capacity
set -euo pipefail
zone=${ZONE:-us-central2-b}
type=${TYPE:-v4-8}
version=${VERSION:-tpu-ubuntu2204-base}
spot=${SPOT-yes}
pause=${PAUSE:-60}
source "$(dirname "${BASH_SOURCE[0]}")/launcher.bash"
(($# >= 2)) || fail "give a command and the TPU's name, as in: $0 run NAME --config=..."
command=$1 name=$2
shift 2

tpu() { # gcloud on this TPU; printed only, in a dry run
  local run=(gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" "${@:2}")
  if [[ $dry ]]; then
    shown "${run[@]}"
  else
    "${run[@]}"
  fi
}

state() { # READY, PREEMPTED, ..., or NONE
  if [[ $dry ]]; then
    echo NONE
  else
    gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' 2>/dev/null || echo NONE
  fi
}

create() {
  tpu create --accelerator-type="$type" --version="$version" ${spot:+--spot}
}

delete() {
  tpu delete --quiet
}

everywhere() { # a shell command, on all workers at once
  tpu ssh --worker=all --command="$1"
}

setup() {
  [[ ${REPOSITORY-} ]] || fail "set REPOSITORY to what the workers shall clone."
  local steps enough='import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'
  # Ubuntu 22.04 has Python 3.10, and 3.11 among its packages.
  printf -v steps '%s -c %q 2>/dev/null || %s' python3 "$enough" \
    'command -v python3.11 >/dev/null || { sudo apt-get update -qq; sudo apt-get install -y -qq python3.11-venv; }'
  printf -v steps 'set -e; %s; [ -d eotjax ] || git clone --quiet %q eotjax; eotjax/launch/install.sh tpu' \
    "$steps" "$REPOSITORY"
  if [[ ${BUCKET-} ]]; then
    printf -v steps '%s; mkdir -p bucket; mountpoint -q bucket || gcsfuse --implicit-dirs --rename-dir-limit=200000 %q bucket' \
      "$steps" "$BUCKET"
  fi
  everywhere "$steps"
}

ready() { # made where there is none, and set up
  case $(state) in
  READY) ;;
  NONE) create || return ;;
  *) # taken away, or stopped
    delete && create || return
    ;;
  esac
  setup
}

run() {
  local train had=
  printf -v train ' %q' "$@"
  while true; do
    local status=0 now
    { ready && had=yes &&
      everywhere "cd eotjax && .venv/bin/python -m eotjax.main --distributed$train"; } || status=$?
    if ((status == 0)) || [[ $dry ]]; then return; fi
    now=$(state)
    if [[ $now != NONE ]]; then had=yes; fi
    # It is not the TPU that failed, or there never was one.
    if [[ $now == READY || ! $had ]]; then return "$status"; fi
    echo "$0: $name was taken away; making it anew in $pause s" >&2
    sleep "$pause"
  done
}

case $command in
create | setup | delete) "$command" ;;
run) run "$@" ;;
*) fail "there is no $command; it is create, setup, run or delete." ;;
esac
