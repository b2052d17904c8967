"""The numbers that judge features, under their public name `jepakit.metrics` (they are defined in model/metrics.py)."""

from jepakit.model.metrics import Discriminant, Gram, content_cosines, lidar, position_share, rankme

__all__ = ["Discriminant", "Gram", "content_cosines", "lidar", "position_share", "rankme"]
