"""What the names of folders, columns and arrays say: the parts of a split, classes, masks of a segmentation."""
