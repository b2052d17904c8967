"""Pictures of what an encoder sees and a predictor predicts: arrays, and Matplotlib figures for notebooks.

attention(encoder, images)                      what each patch attends to, by head
pca(encoder, images)                            patch tokens as colours, one basis for all images
similarity(encoder, images, image=0, patch=0)   cosine of one patch with all others
predictions(run, images)                        what the predictor says of masked patches, painted by a decoder
embedding_map(vectors)                          images that are alike near each other; the nearest of each
coverage(masking, grid)                         how often a patch is context, and target

make_pictures(run)                              all of these of a run, as the files that the report shows

`images` are all that `Encoder.embed` takes. Each result is a frozen dataclass of arrays with a `figure()`.
"""

from jepakit.pictures.attention_maps import AttentionMaps
from jepakit.pictures.attention_maps import attention_maps as attention
from jepakit.pictures.embedding_map import EmbeddingMap, embedding_map
from jepakit.pictures.mask_coverage import Coverage
from jepakit.pictures.mask_coverage import mask_coverage as coverage
from jepakit.pictures.painted_patches import PaintedPredictions
from jepakit.pictures.painted_patches import painted_predictions as predictions
from jepakit.pictures.patch_colours import PatchColours
from jepakit.pictures.patch_colours import patch_colours as pca
from jepakit.pictures.patch_similarity import PatchSimilarity
from jepakit.pictures.patch_similarity import patch_similarity as similarity
from jepakit.pictures.run_pictures import make_pictures

__all__ = [
    "AttentionMaps",
    "Coverage",
    "EmbeddingMap",
    "PaintedPredictions",
    "PatchColours",
    "PatchSimilarity",
    "attention",
    "coverage",
    "embedding_map",
    "make_pictures",
    "pca",
    "predictions",
    "similarity",
]
