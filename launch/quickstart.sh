#!/usr/bin/env bash
# From nothing to translated images: installs, trains on digits, evaluates, exports and
# translates a folder. Minutes on two cores; again, it trains no more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/install.sh cpu
export PYTHONPATH=. # for configs/
python=.venv/bin/python
run=workdir/digits

"$python" -m eotjax.main --config=configs/digits.py --workdir="$run"
"$python" launch/digits_folder.py "$run/twos"
"$python" -m eotjax.translate --export="$run/export" --input="$run/twos" --output="$run/threes" \
  --overwrite

cat <<END

Look at
  $run/export/translations.png   held-out twos, their translations, and the training threes nearest to them
  $run/samples/                  twos and their translations during training
  $run/twos/, $run/threes/       a folder of images and its translation
END
