"""Noise that looks like images: Gaussian, with their covariance wave by wave."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from eotjax import arrays
from eotjax.errors import UserError

GROWTH = 1.2  # of the waves' radius, from band to band
FLOOR = 1e-3  # of a band's mean variance, that no mixture of its channels is below


class Spectrum(NamedTuple):
    """The covariance of an image's channels at some waves.

    Their mean variance is 1 over the continuum of waves: that of noise far from the
    borders. An image has few slow waves, which weigh much; over all its pixels noise
    has 1.2 to 1.6 times that, the more the smaller it is, and most in the corners,
    where waves meet their reflections.

    Attributes:
      radius: of the waves, in radians a pixel, ascending.
      root: K of the covariance K K, symmetric.
    """

    radius: Float[np.ndarray, "r"]
    root: Float[np.ndarray, "r c c"]


def of_images(sets: Sequence[Float[np.ndarray, "_ h w c"]]) -> Spectrum:
    """The spectrum of sets of images, each counting as much, about their mean colour.

    The waves are those of the DCT-II, in bands of like radius; their directions count
    as one.
    """
    import scipy.fft

    mean = np.mean([x.mean((0, 1, 2)) for x in sets], axis=0)
    waves = [scipy.fft.dctn(x - mean, axes=(1, 2), norm="ortho") for x in sets]
    radius = _radius(*sets[0].shape[1:3])
    slowest = np.min(radius[radius > 0], initial=np.pi)
    band = np.round(np.log(np.maximum(radius, slowest / 2) / slowest) / np.log(GROWTH))
    radii, roots = [], []
    for number in np.unique(band):
        at = band == number
        radii.append(radius[at].mean())
        flat = [x[:, at].reshape(-1, x.shape[-1]) for x in waves]
        roots.append(_root(np.mean([x.T @ x / len(x) for x in flat], axis=0)))
    spectrum = Spectrum(np.array(radii, np.float32), np.array(roots, np.float32))
    # As if of the continuum of waves, so that sizes do not differ.
    power = np.mean(np.sum(_roots(spectrum, _radius(64, 64, 0.5)) ** 2, axis=-1))
    return spectrum._replace(root=spectrum.root / np.sqrt(power))


def coloured(
    white: Float[Array, "b ..."], spectrum: Spectrum | None
) -> Float[Array, "b ..."]:
    """White noise given a spectrum, that of waves between its own interpolated.

    Edges reflect, and an image's size changes nothing within it.

    Args:
      white: [b, h, w, c]; of any shape where there is no spectrum.
      spectrum: None leaves it white.
    """
    if spectrum is None:
        return white
    import scipy.fft

    height, width = white.shape[1:3]
    down, across = (
        scipy.fft.dct(np.eye(n), axis=0, norm="ortho").astype(np.float32)
        for n in (height, width)
    )
    roots = _roots(spectrum, _radius(height, width))
    waves = jnp.einsum("bklc,klcd->bkld", white, roots, precision="highest")
    rows = jnp.einsum("ki,bkld->bild", down, waves, precision="highest")
    return jnp.einsum("lj,bild->bijd", across, rows, precision="highest")


def to_text(spectrum: Spectrum) -> str:
    """A spectrum as one word of text, for a config."""
    file = io.BytesIO()
    np.savez_compressed(file, **spectrum._asdict())
    return base64.b64encode(file.getvalue()).decode()


def from_text(text: str) -> Spectrum:
    """What `to_text` wrote.

    Raises:
      UserError: it is damaged.
    """
    try:
        return Spectrum(**arrays.read(io.BytesIO(base64.b64decode(text))).arrays)
    except Exception as error:  # of base64, zipfile, zlib and NumPy
        raise UserError(
            f"estimator.spectrum is damaged ({error}); it is measured, not given: copy "
            "the folder again."
        ) from error


def _radius(
    height: int, width: int, first: float = 0.0
) -> Float[np.ndarray, "{height} {width}"]:
    """Of the waves of the DCT-II, in radians a pixel, the slowest number `first`."""
    y, x = (np.pi * (np.arange(n) + first) / n for n in (height, width))
    return np.hypot(y[:, None], x[None])


def _root(covariance: Float[np.ndarray, "c c"]) -> Float[np.ndarray, "c c"]:
    variances, directions = np.linalg.eigh(covariance)
    floor = max(FLOOR * variances.mean(), 1e-12)
    return directions * np.sqrt(np.maximum(variances, floor)) @ directions.T


def _roots(
    spectrum: Spectrum, radius: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w c c"]:
    """K at waves of these radii, linear between those of the spectrum."""
    hats = [
        np.interp(radius, spectrum.radius, one) for one in np.eye(len(spectrum.radius))
    ]
    return np.einsum("rhw,rcd->hwcd", hats, spectrum.root).astype(np.float32)
