"""Which images a run was trained on: their names in order and, where a name is no more than a place, some of their content."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jepakit.core.errors import UserError
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.samples import read_many
from jepakit.data.sources import Source, fingerprint, spread_places

log = logging.getLogger("jepakit")
SOME = 16  # samples whose content is noted

Content = tuple[str | None, ...]


@dataclass(frozen=True)
class Identity:
    """What a set of images is recognised by.

    names: sha256 of the titles; content: a hash of each of some samples, None for one that could not be read. content is
    None where titles are file names, and in runs that began before it was noted.
    """

    names: str
    content: Content | None = None

    @classmethod
    def of(cls, source: Source) -> "Identity":
        return cls(fingerprint(source), _content_of(source))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Identity | None":
        """What a checkpoint noted; None where it noted nothing."""
        names, content = state.get("names"), state.get("content")
        return cls(names, tuple(content) if content else None) if isinstance(names, str) else None

    def agrees(self, now: "Identity") -> bool | None:
        """Whether the images now are these; None, not known, where titles are mere places and these have no content noted."""
        if now.names != self.names:
            return False
        if now.content is None:
            return True
        return None if self.content is None else _same(self.content, now.content)

    def is_of(self, source: Source) -> bool | None:
        """As `agrees`, for the images of a source, which are read only if the names are the same."""
        return fingerprint(source) == self.names and self.agrees(Identity(self.names, _content_of(source)))


def require_same(before: Identity | None, now: Identity, place: str, moved_from: str | None) -> None:
    """Raises UserError where the images of a run, now at `place`, are not known to be those that it began with.

    moved_from: where they lay, if that is another place; in their own place images of no noted content are taken for the same.
    """
    same = before is not None and before.agrees(now)
    began = "the run began before jepakit noted what its images hold"
    if same is None and moved_from is None:
        log.warning("%s: that there are as many in %s is all that could be checked", began, place)
    elif same is None:
        raise UserError(f"{began}; whether {place} holds the same cannot be told: put them where they were, {moved_from}")
    elif not same:
        raise UserError(
            f"the images in {place} are not those that the run began with: bring them back, or say with --data where they are"
        )


def _content_of(source: Source) -> Content | None:
    """Hashes of some samples, as they are stored (decoders differ between machines); None where names tell enough."""
    if not source.by_place:
        return None
    found = read_many(source, spread_places(source, SOME), lambda index: _hash(source.raw(index)))
    return tuple(None if isinstance(each, BadImageError) else each for each in found)


def _hash(raw: bytes | Pixels) -> str:
    if isinstance(raw, bytes):
        return hashlib.sha256(raw).hexdigest()[:16]
    shape = f"{raw.dtype.newbyteorder('=')} {raw.shape}".encode()
    return hashlib.sha256(shape + raw.tobytes()).hexdigest()[:16]


def _same(a: Content, b: Content) -> bool:
    """Whether some samples could be read both times, and all of those are the same."""
    both = [(x, y) for x, y in zip(a, b, strict=False) if x and y]
    return len(a) == len(b) and bool(both) and all(x == y for x, y in both)
