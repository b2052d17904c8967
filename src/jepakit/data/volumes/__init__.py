"""Volumes and stacks, cut into slices: NIfTI, DICOM, multi-page TIFF, arrays."""
