"""Prepares a CycleGAN data set for TFDS from an archive that you already have.

python launch/prepare_cyclegan.py horse2zebra.zip [--data_dir=FOLDER]

The archive is one of CycleGAN's own, or any .zip in their form: one folder that holds
trainA, trainB, testA and testB. It is prepared by TFDS's own builder under the name of
the file, where configs/horse2zebra.py finds it (with --config.data.path=FOLDER where
--data_dir was given).
"""

import argparse
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cycle_gan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--data_dir", help="default: TFDS's own, in the home folder")
    arguments = parser.parse_args()
    name = arguments.archive.stem
    if name not in cycle_gan._DL_URLS or not arguments.archive.is_file():
        parser.error(
            f"{arguments.archive} must be an existing file named after one of "
            f"{', '.join(cycle_gan._DL_URLS)}, such as horse2zebra.zip"
        )
    cycle_gan._DL_URLS[name] = str(arguments.archive.absolute())
    builder = tfds.builder(
        f"cycle_gan/{name}", data_dir=arguments.data_dir, file_format="array_record"
    )
    builder.download_and_prepare()
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    print(f"prepared {builder.data_dir}: {sizes}")


if __name__ == "__main__":
    main()
