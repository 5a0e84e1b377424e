"""Features of images: python -m eotjax.features --data=FOLDER --output=F.npz.

For a plan whose cost is taken in them: coupling.cost = "features" and
coupling.features = F.npz. The file holds an array for each folder, float32 [n, d], rows
in the order of the images' names, each of length 1: then |x - y|^2 / 2 is one minus the
cosine of the angle between two images' features. And the images' names and sizes, by
which a run knows them again.
"""

import argparse
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from eotjax import arrays, atomic, command, remote
from eotjax.data import domains, images, sources
from eotjax.errors import gather, require
from eotjax.evaluation import classifier
from eotjax.evaluation.classifier import Classify
from eotjax.progress import Progress

AT_ONCE = 64  # images whose features are kept together until all are done


def make(
    paths: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    classify: Classify,
    size: tuple[int, int],
    fit: images.Fit,
    identity: str,
) -> None:
    """Writes the features of all images of some folders; goes on where it was.

    Args:
      paths: the images, by the folders' names.
      output: the .npz file.
      classify: whose features they are.
      size: (height, width) that images are brought to before.
      fit: how, as data.fit.
      identity: of the classifier: work done with another one is not gone on with.

    Raises:
      UserError: images are broken; names up to five of each folder.
    """
    listed = [
        (name, *((str(x), x.stat().st_size, x.stat().st_mtime_ns) for x in found))
        for name, found in paths.items()
    ]
    said = repr((identity, size, fit, listed))
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    partly = output.with_name(f"{output.name}.partly")
    partly.mkdir(exist_ok=True)
    decode = partial(images.decode, size=size, channels=3, fit=fit)
    sets = {name: sources.of_files(found, decode) for name, found in paths.items()}
    gather(partial(domains.check, x, f"looking at {n}") for n, x in sets.items())
    progress = Progress("features", sum(map(len, paths.values())), "images")

    def part(name: str, start: int) -> np.ndarray:
        """Features of a few images, of unit length; from a file, if there is one."""
        few = paths[name][start : start + AT_ONCE]
        path = partly / f"{digest}_{list(paths).index(name)}_{start}.npz"
        found = arrays.kept(path)
        if found is None:
            found = classify(np.stack(list(map(decode, few)))).features
            length = np.linalg.norm(found, axis=1, keepdims=True)
            found = (found / np.maximum(length, 1e-12)).astype(np.float32)
            arrays.keep(path, found)
        progress.update(len(few))
        return found

    features = {
        name: np.concatenate([part(name, i) for i in range(0, len(found), AT_ONCE)])
        for name, found in paths.items()
    }
    marks = {
        sources.marks_of(name): np.array([x.mark(i) for i in range(len(x))])
        for name, x in sets.items()
    }
    arrays.write(output, features | marks)
    shutil.rmtree(partly)
    for name, array in features.items():
        print(f"{name}: {array.shape[0]} images, {array.shape[1]} features each")
    print(f"wrote {output}")


def run() -> int:
    """Writes the features that the command line asks for."""
    parser = argparse.ArgumentParser(description="Features for a plan's cost.")
    parser.add_argument("--data", required=True, help="holds the folders")
    parser.add_argument("--output", required=True, help="a .npz file")
    parser.add_argument(
        "--model", default=classifier.LITE, help="efficientnet-lite0 or one of timm"
    )
    parser.add_argument("--weights", default="", help="its file of weights")
    parser.add_argument("--names", nargs=2, default=["trainA", "trainB"])
    parser.add_argument(
        "--image_size", type=int, nargs=2, default=(256, 256), help="height width"
    )
    parser.add_argument("--fit", choices=("crop", "pad", "stretch"), default="crop")
    arguments = parser.parse_args()
    output, here = arguments.output, remote.local(arguments.output)
    require(here.suffix == ".npz", f"{output} must end in .npz; name it so.")
    if not remote.is_remote(output):
        require(not here.exists(), f"{output} is there already; remove it first.")
        require(here.parent.is_dir(), f"there is no folder {here.parent}; make it.")
        atomic.check_writable(here.parent)
    data = remote.fetched(arguments.data)
    weights = str(remote.fetched(arguments.weights)) if arguments.weights else ""
    paths = {name: images.find(data / name) for name in arguments.names}
    identity = arguments.model
    classify = classifier.load(arguments.model, weights)
    if weights:
        with open(weights, "rb") as file:
            identity += hashlib.file_digest(file, "sha256").hexdigest()
    with remote.placing(output) as path:
        make(
            paths,
            path,
            classify=classify,
            size=tuple(arguments.image_size),
            fit=arguments.fit,
            identity=identity,
        )
    return 0


if __name__ == "__main__":
    command.exit_after(run)
