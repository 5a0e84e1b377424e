# shellcheck shell=bash
# Sourced by launchers that take --dry-run first: they then print what they would run.

fail() {
  echo "$0: $1" >&2
  exit 2
}

shown() {
  printf '%q ' "$@"
  echo
}

dry=
if [[ ${1-} == --dry-run ]]; then
  # shellcheck disable=SC2034 # read by the launcher
  dry=yes
  shift
fi
