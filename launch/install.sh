#!/usr/bin/env bash
# Makes .venv and installs eotjax there with the EXTRAs: launch/install.sh [EXTRA...]
# Does nothing where they are in and pyproject.toml and requirements.lock are unchanged.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/.eotjax-installed # a checksum, then what was installed under it, by line

fits() {
  "$1" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' &>/dev/null
}

find_python() {
  local candidates=(python3 python3.13 python3.12 python3.11 python3.14) python
  if [[ -n ${PYTHON-} ]]; then candidates=("$PYTHON"); fi
  for python in "${candidates[@]}"; do
    if fits "$python"; then
      echo "$python"
      return
    fi
  done
  echo "Found no Python 3.11 or later with its venv module (tried ${candidates[*]}):" \
    "install one, or name it, as in PYTHON=/path/to/python $0." >&2
  return 1
}

if [[ ! -x .venv/bin/pip ]]; then
  python=$(find_python)
  "$python" -m venv .venv
  rm -f "$stamp"
fi

checksum=$({ pwd && cat pyproject.toml requirements.lock; } | cksum)
if [[ ! -f $stamp || $(head -n 1 "$stamp") != "$checksum" ]]; then
  echo "$checksum" >"$stamp"
fi
wanted=
for part in eotjax "$@"; do
  grep -qxF -- "$part" "$stamp" || wanted=yes
done
if [[ -z $wanted ]]; then exit 0; fi

extras=$(IFS=, && echo "$*")
extras=${extras:+[$extras]}
echo "Installing eotjax$extras into .venv (minutes the first time, then seconds)."
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --constraint requirements.lock --editable ".$extras"
printf '%s\n' eotjax "$@" >>"$stamp"
