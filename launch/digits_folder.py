"""Writes the test digits as PNG files: python launch/digits_folder.py FOLDER."""

import sys
from pathlib import Path

from configs import digits
from eotjax.build import dataset
from eotjax.data import images


def main(folder: Path) -> None:
    splits = dataset.load(digits.get_config())
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(splits.source.test[::8]):
        images.write(folder / f"two_{index:02d}.png", image)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
