"""A map of embeddings: images that an encoder finds alike lie near each other; and which are nearest to which.

n images, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from jepakit.core.errors import UserError

MOST_POINTS = 2000  # of which t-SNE takes some seconds
TSNE_ITERATIONS = 500  # half of scikit-learn's: 2,000 points lie as after all of them, but for their last tightening
LEADING = 50  # principal components that t-SNE is given, as its authors do
CLUSTERS = 10


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Points of n images: pca (n, 2) and its shares of variance, tsne (n, 2) or None for fewer than five; clusters (n,) of
    k-means; nearest (n, k), places of the images with the highest cosine, nearest first, and cosines (n, k)."""

    pca: NDArray[np.float32]
    explained: NDArray[np.float32]
    tsne: NDArray[np.float32] | None
    clusters: NDArray[np.int64]
    nearest: NDArray[np.int64]
    cosines: NDArray[np.float32]

    def figure(self, labels: Sequence[str] | None = None) -> Figure:
        """Both maps, coloured by labels (n,), or by clusters."""
        names, colours = np.unique([f"cluster {c}" for c in self.clusters] if labels is None else labels, return_inverse=True)
        maps = {"PCA": self.pca, **({} if self.tsne is None else {"t-SNE": self.tsne})}
        figure = Figure(figsize=(4.2 * len(maps), 4.2), layout="constrained")
        for ax, (title, points) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
            for i, name in enumerate(names):
                own = points[colours == i]
                ax.scatter(*own.T, s=5, color=f"C{i % 10}", marker="os^Dv*"[i // 10 % 6], label=name, linewidths=0)
            ax.set_title(title, fontsize=9)
            ax.set_axis_off()
        if len(names) <= 20:
            ax.legend(fontsize=6, frameon=False, markerscale=2)
        return figure


def embedding_map(vectors: ArrayLike, *, clusters: int = CLUSTERS, k: int = 6, seed: int = 0) -> EmbeddingMap:
    """The map of embeddings (n, D), such as `encoder.embed(images)`, at most 2,000, compared by direction, as cosines do.

    clusters: of k-means; k: nearest images of each. Raises UserError for fewer than two, or more, or what is not finite.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = np.asarray(vectors, np.float64)
    if x.ndim != 2 or not 2 <= len(x) <= MOST_POINTS:
        raise UserError(f"a map takes 2 to {MOST_POINTS:,} embeddings (n, D), not {x.shape}: take some of them")
    if not np.isfinite(x).all():
        raise UserError("some embeddings are not finite: the weights or the images are broken")
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    parts = min(LEADING, *unit.shape)
    with np.errstate(invalid="ignore"):  # of a collapsed encoder all are one point, and shares of variance are none
        found = PCA(parts, svd_solver="full").fit(unit)
    leading = found.transform(unit)
    points = np.zeros((len(x), 2))
    points[:, : min(2, parts)] = leading[:, :2]
    explained = np.zeros(2)
    explained[: min(2, parts)] = np.nan_to_num(found.explained_variance_ratio_[:2])
    tsne = None
    if len(x) >= 5 and parts >= 2 and explained[0] > 0:
        perplexity = min(30.0, (len(x) - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, max_iter=TSNE_ITERATIONS, init="pca", random_state=seed).fit_transform(leading)
    groups = KMeans(min(clusters, len(np.unique(unit, axis=0))), n_init=4, random_state=seed).fit_predict(unit)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(k, len(x) - 1)]
    tsne = None if tsne is None else tsne.astype(np.float32)
    alike = np.take_along_axis(cosines, nearest, 1).astype(np.float32)
    return EmbeddingMap(points.astype(np.float32), explained.astype(np.float32), tsne, groups.astype(np.int64), nearest, alike)
