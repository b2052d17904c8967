"""From what the user names to a source of images."""

from pathlib import Path

from jepakit.data.decode import BadImageError
from jepakit.data.folder import FolderSource
from jepakit.data.sets import labelled_set
from jepakit.data.sources import EmojiSource, Source, pick, spread
from jepakit.errors import UserError

NAMED = ("emoji", "scenes")  # sets that need no path


def open_source(data: str, labels: str | None = None) -> Source:
    """The source that `data` names: 'emoji', 'scenes', a labelled set in its usual layout (`sets`), or a folder of images.

    `labels` picks one of several that a set has. Raises UserError.
    """
    if data == "scenes":
        from jepakit.data.scenes import SceneSource

        return SceneSource(labels=labels)
    source: Source
    if data == "emoji":
        source = EmojiSource()
    else:
        found = labelled_set(Path(data), labels)
        source = found or FolderSource(Path(data))
        require_readable(source)
        if found is not None:
            return found  # it has picked its labels
    pick(labels, (source.labels.name,) if source.labels else (), source.name)
    return source


def require_readable(source: Source) -> None:
    """Raises UserError if none of a sample of up to 64 images can be read."""
    reason = ""
    for index in spread(source, 64).tolist():
        try:
            source.read(index)
            return
        except BadImageError as error:
            reason = f"{source.title(index)}: {error}"
    raise UserError(f"no readable image in {source.name}; the last one tried: {reason}")
