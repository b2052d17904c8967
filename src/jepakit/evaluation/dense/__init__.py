"""Tasks on patches: segmentation, video segmentation, detection."""
