"""Measures of translations, beside their sources and a set of targets."""

import dm_pix
import jax
import numpy as np
from jaxtyping import Float, Int

from eotjax.data import images
from eotjax.transport import moments

Row = dict[str, float]


def transport_cost(
    source: Float[np.ndarray, "n ..."], target: Float[np.ndarray, "n ..."]
) -> float:
    """Mean of |x - y|^2 / 2 over the pairs."""
    return float(
        np.mean(np.sum((source - target).reshape(len(source), -1) ** 2, 1)) / 2
    )


def frechet_distance(a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "m k"]) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with the sets' moments.

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson & Landau 1982).
    """
    half = moments.bures_wasserstein(moments.of(a, ddof=1), moments.of(b, ddof=1))
    return max(2 * float(half), 0.0)


def hue(rgb: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n"]:
    """The hue of each image's mean light, in degrees."""
    r, g, b = np.moveaxis((rgb + 1).mean((1, 2)), -1, 0)
    return np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)) % 360


def hue_error(
    source: Float[np.ndarray, "n h w 3"], target: Float[np.ndarray, "n h w 3"]
) -> float:
    """Median difference of the pairs' hues, 0 to 180 degrees; 90 where independent."""
    difference = np.abs(hue(source) - hue(target)) % 360
    return float(np.median(np.minimum(difference, 360 - difference)))


class Classifier:
    """Share of tinted images whose 3 nearest neighbours say they show the target."""

    def __init__(self, grey: np.ndarray, labels: np.ndarray, wanted: int):
        """Args: grey: uint8 [n, h, w, 1]. labels: [n]. wanted: the target's label."""
        from sklearn.neighbors import KNeighborsClassifier

        self._wanted = wanted
        self._neighbours = KNeighborsClassifier(3)
        self._neighbours.fit(images.to_float(grey).reshape(len(grey), -1), labels)

    def __call__(self, rgb: Float[np.ndarray, "n h w 3"]) -> float:
        light = rgb.max(-1).reshape(len(rgb), -1)
        return float(np.mean(self._neighbours.predict(light) == self._wanted))


@jax.jit
def _ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    size = min(11, *a.shape[1:3])
    return dm_pix.ssim(a, b, max_val=2.0, filter_size=size)


def structure(
    source: Float[np.ndarray, "n h w c"], target: Float[np.ndarray, "n h w c"]
) -> float:
    """Mean structural similarity of the pairs' light, at most 1 (Wang et al. 2004).

    Args: images in [-1, 1]; their light is taken from 0, black, to 2, as it demands.
    """
    light = [1 + x.mean(-1, keepdims=True) for x in (source, target)]
    parts = (
        _ssim(*(x[start : start + 64] for x in light))
        for start in range(0, len(source), 64)
    )
    return float(np.mean(np.concatenate([np.asarray(part) for part in parts])))


def kernel_distance(a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "m k"]) -> float:
    """Squared MMD under (x y / k + 1)^3, unbiased: KID (Binkowski et al. 2018)."""
    from sklearn.metrics.pairwise import polynomial_kernel

    a, b = np.asarray(a, float), np.asarray(b, float)  # of which this is the default
    own = [
        (gram.sum() - np.trace(gram)) / (len(gram) * (len(gram) - 1))
        for gram in (polynomial_kernel(a), polynomial_kernel(b))
    ]
    return float(sum(own) - 2 * polynomial_kernel(a, b).mean())


def light_correlation(
    source: Float[np.ndarray, "n h w c"], target: Float[np.ndarray, "n h w c"]
) -> float:
    """Mean correlation of the pairs' light in 16x16 cells: the layout that is kept."""

    def cells(x: np.ndarray) -> np.ndarray:
        rows, columns = (
            np.array_split(np.arange(side), min(16, side)) for side in x.shape[1:3]
        )
        light = x.mean(-1)
        light = np.stack([light[:, r].mean(1) for r in rows], 1)
        light = np.stack([light[:, :, c].mean(2) for c in columns], 2)
        light = light.reshape(len(x), -1)
        return light - light.mean(1, keepdims=True)

    a, b = cells(source), cells(target)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / np.maximum(norms, 1e-12)))


def nearest(
    a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "m k"]
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Of each point of `a`: how far the nearest of `b` is, and which that is."""
    from sklearn.neighbors import NearestNeighbors

    distance, index = NearestNeighbors(n_neighbors=1).fit(b).kneighbors(a)
    return distance[:, 0], index[:, 0]


def table(rows: dict[str, Row]) -> str:
    """Rows of metrics, right-aligned, for a terminal or a Markdown file."""
    names = list(next(iter(rows.values())))
    lines = [["", *names]]
    lines += [
        [key, *(f"{row[name]:.4g}" if name in row else "" for name in names)]
        for key, row in rows.items()
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return "\n".join(text)
