"""FID, KID and LPIPS by torch-fidelity, with weights from files: nothing is downloaded.

torch-fidelity is the optional extra `fid`; whoever calls nothing here needs no torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
from jaxtyping import Float, UInt8

from eotjax.errors import UserError
from eotjax.evaluation.classifier import leave_triton_out

# The names under which torch-fidelity and torchvision publish the weights.
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
LPIPS_WEIGHTS = "weights-vgg16-lpips.pth"
VGG16_WEIGHTS = "vgg16-397923af.pth"

KID_SUBSET_SIZE = 1000  # torch-fidelity's own, where there are as many images
SMALLEST_SIDE = 16  # pixels that VGG-16's four poolings leave one of
PAIRS_AT_ONCE = 8  # bounds what VGG-16 takes: some 0.2 GB a pair of 256x256


def check(
    shape: tuple[int, ...], inception: str | Path | None, lpips: str | Path | None
) -> None:
    """Raises UserError where images of `shape` cannot be measured by these weights."""
    if inception or lpips:
        _library()
    if inception:
        _existing(Path(inception), INCEPTION_WEIGHTS)
    if lpips:
        _check_sides(*shape[:2])
        _vgg16(_existing(Path(lpips), LPIPS_WEIGHTS))


def distribution(
    translated: UInt8[np.ndarray, "n h w c"],
    target: UInt8[np.ndarray, "m h w c"],
    weights: str | Path,
) -> dict[str, float]:
    """FID (Heusel et al. 2017) and KID (Binkowski et al. 2018) of two sets of images.

    Those of torch-fidelity's command `fidelity --fid --kid --kid-subset-size K` on the
    same images in PNG files, K = min(1000, n, m): KID is the mean over 100 random
    subsets of K images of either side, `kid_std` the standard deviation. With n = m = K
    there is one such subset, and `kid_std` is 0 but for rounding. Grey images count as
    RGB with equal channels. Runs on CUDA where torch finds it.

    Args:
      translated: of any size; the Inception network scales them to 299x299.
      target: as `translated`.
      weights: the file that torch-fidelity publishes as INCEPTION_WEIGHTS.

    Returns:
      {"fid": ..., "kid": ..., "kid_std": ...}.

    Raises:
      UserError: fewer than two images on a side, torch-fidelity is not installed, or
        the file of weights is missing or holds something else.
    """
    fewest = min(len(translated), len(target))
    if fewest < 2:
        raise UserError(
            "FID and KID need two images or more of translations and of targets, but "
            f"there are {len(translated)} and {len(target)}; add some."
        )
    library = _library()
    path = _existing(Path(weights), INCEPTION_WEIGHTS)
    import torch

    extractor = "inception-v3-compat"
    # Loaded again below, where other failures could not be told from a wrong file.
    with _loading(f"Inception-v3 from {path}", INCEPTION_WEIGHTS):
        library.FeatureExtractorInceptionV3(extractor, ["2048"], str(path))
    metrics = library.calculate_metrics(
        # A tensor becomes a Dataset of its images.
        input1=torch.utils.data.Subset(_tensor(translated), range(len(translated))),
        input2=torch.utils.data.Subset(_tensor(target), range(len(target))),
        fid=True,
        kid=True,
        kid_subset_size=min(KID_SUBSET_SIZE, fewest),
        feature_extractor=extractor,
        feature_extractor_weights_path=str(path),
        cuda=torch.cuda.is_available(),
        cache=False,
        save_cpu_ram=True,  # no worker processes: JAX's threads do not survive a fork
        verbose=False,
    )
    return {
        "fid": metrics[library.KEY_METRIC_FID],
        "kid": metrics[library.KEY_METRIC_KID_MEAN],
        "kid_std": metrics[library.KEY_METRIC_KID_STD],
    }


def lpips(
    source: UInt8[np.ndarray, "n h w c"],
    translated: UInt8[np.ndarray, "n h w c"],
    weights: str | Path,
) -> Float[np.ndarray, "n"]:
    """LPIPS (Zhang et al. 2018) of each pair, by VGG-16, at the images' own size.

    Grey images count as RGB with equal channels. Runs on CUDA where torch finds it.

    Args:
      source: of 16x16 pixels or more.
      translated: as `source`.
      weights: the file that torch-fidelity publishes as LPIPS_WEIGHTS. It holds the
        layers' weights alone: torchvision's VGG16_WEIGHTS must lie beside it, as it
        does where torch-fidelity has downloaded both.

    Raises:
      UserError: images of fewer pixels, torch-fidelity is not installed, or a file of
        weights is missing or holds something else.
    """
    _check_sides(*source.shape[1:3])
    library = _library()
    path = _existing(Path(weights), LPIPS_WEIGHTS)
    vgg16 = _vgg16(path)
    import torch

    with (
        _loading(f"LPIPS from {path} and {vgg16}", f"{LPIPS_WEIGHTS}, {VGG16_WEIGHTS}"),
        _hub({LPIPS_WEIGHTS: path, VGG16_WEIGHTS: vgg16}),
    ):
        distance = library.SampleSimilarityLPIPS("lpips-vgg16")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    distance.to(device)
    batches = (_tensor(x).split(PAIRS_AT_ONCE) for x in (source, translated))
    with torch.inference_mode():
        distances = [
            distance(x.to(device), y.to(device)).cpu()
            for x, y in zip(*batches, strict=True)
        ]
    return torch.cat(distances).numpy()


def _check_sides(height: int, width: int) -> None:
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"LPIPS needs images of {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels or more, "
            f"but these have {height}x{width}; translate larger ones."
        )


def _vgg16(lpips: Path) -> Path:
    return _existing(lpips.parent / VGG16_WEIGHTS, VGG16_WEIGHTS)


def _library() -> ModuleType:
    leave_triton_out()
    try:
        import torch_fidelity
    except ImportError as error:
        raise UserError(
            f"FID, KID and LPIPS need torch-fidelity ({error}); "
            "launch/install.sh fid brings it."
        ) from error
    return torch_fidelity


def _existing(path: Path, name: str) -> Path:
    if not path.is_file():
        raise UserError(
            f"there is no file of weights {path}; put the published {name} there."
        )
    return path


@contextmanager
def _loading(what: str, names: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # unpickling what is no weights raises almost anything
        raise UserError(f"cannot load {what}; give the published {names}.") from error


@contextmanager
def _hub(files: dict[str, Path]) -> Iterator[None]:
    """Here torch.hub has these files, by name, and nothing to download."""
    import torch

    before = torch.hub.get_dir()
    with TemporaryDirectory() as folder:
        checkpoints = Path(folder, "checkpoints")  # where torch.hub looks
        checkpoints.mkdir()
        for name, path in files.items():
            (checkpoints / name).symlink_to(path.resolve())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


def _tensor(images: UInt8[np.ndarray, "n h w c"]):
    """A torch.Tensor, uint8 [n, 3, h, w]."""
    import torch

    rgb = np.broadcast_to(images, (*images.shape[:3], 3))
    return torch.from_numpy(np.moveaxis(rgb, -1, 1).copy())
