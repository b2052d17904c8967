"""Folders of images beside folders of label images: ADE20K's layout, its like with other words, and with no split."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

from jepakit.core.errors import UserError
from jepakit.data.decoding.decode import SUFFIXES
from jepakit.data.labels.segmentation_masks import WORD, folder_words, without_mask_word
from jepakit.data.labels.split_words import split_of
from jepakit.data.unread_files import some
from jepakit.evaluation.dense.label_images import LABEL_SUFFIXES, LabelValues, read_class_list, read_labels
from jepakit.evaluation.dense.pairs import LabelledFolder, Pair, fifth_held_out

CLASS_LISTS = ("classes.txt", "class_list.txt", "labels.txt", "objectInfo150.txt", "_classes.csv")
_IMAGES = ("images", "image", "imgs", "img", "img_dir", "jpegimages")
TwoFolders = tuple[Path, Path]  # of images, of their labels


def label_folders(
    root: Path, zero_is_other: bool | None, ignore: tuple[int, ...] | None, class_list: Path | None
) -> LabelledFolder:
    """Pairs of root/images/PART/NAME.jpg and root/annotations/PART/NAME.png, or root/PART/images/..., or without parts.

    The folders may be called by other words (imgs, img_dir; masks, labels, gt, ann_dir), the parts by those of any split; a
    label's name may end in a word for masks (NAME_mask.png). Raises UserError where a folder or one of a pair is missing.
    """
    values, names, notes = label_values(root, zero_is_other, ignore, class_list, default=True)
    parts, first = _parts(root), int(values.zero_is_other)
    held = next((part for part in ("test", "validation") if part in parts), None)
    if held is None or "train" not in parts:
        return fifth_held_out([pair for folders in parts.values() for pair in _pairs(folders, values)], names, notes, first)
    train, test = (tuple(_pairs(parts[part], values)) for part in ("train", held))
    return LabelledFolder(train, test, names, notes, first)


def label_values(
    root: Path, zero_is_other: bool | None, ignore: tuple[int, ...] | None, class_list: Path | None, default: bool
) -> tuple[LabelValues, tuple[str, ...], tuple[str, ...]]:
    """What values mean, the classes' names, and what to say of it. default: whether 0 is no class, where nobody says."""
    found = class_list or next((root / name for name in CLASS_LISTS if (root / name).is_file()), None)
    listed, names = read_class_list(found, zero_is_other) if found else ((), ())
    zero = default if zero_is_other is None else zero_is_other
    notes: tuple[str, ...] = (f"classes are the {len(names)} of {found.name}",) if found else ()
    if zero_is_other is None and default and 0 not in listed:
        notes += ("label 0 is no class, as in ADE20K (segmentation.zero_is_other=false makes it one)",)
    return LabelValues(zero, ignore, listed), names, notes


def pairs_by_name(images: dict[str, Path], labels: dict[str, Path], values: LabelValues, where: TwoFolders) -> list[Pair]:
    """Pairs of images and label images of one name. Raises UserError, naming one that is alone, and both counts."""
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        here, other = where if alone[0] in images else where[::-1]
        counts = f"{len(images)} images, {len(labels)} label images"
        raise UserError(f"{here} has '{alone[0]}' and {other} has not ({counts}): each image needs a PNG of its name")
    return [Pair(images[name], str(labels[name]), partial(read_labels, labels[name], values)) for name in sorted(images)]


def image_files(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Files with these endings in a folder, by their names without it. Raises UserError where two have one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and path.name[0] != ".":
            if path.stem in found:
                raise UserError(f"{folder} has both {found[path.stem].name} and {path.name}: which is '{path.stem}'?")
            found[path.stem] = path
    return found


def _pairs(folders: TwoFolders, values: LabelValues) -> list[Pair]:
    images, labels = image_files(folders[0], SUFFIXES), image_files(folders[1], LABEL_SUFFIXES)
    if not images:
        raise UserError(f"no images in {folders[0]}")
    if not images.keys() & labels.keys():
        labels = {without_mask_word(name): path for name, path in labels.items()}
    return pairs_by_name(images, labels, values, folders)


def _parts(root: Path) -> dict[str, TwoFolders]:
    """Folders of images and of labels by part of the split; 'train' alone where there is none."""
    both = _both(root)
    if both:
        images, labels = ({p: folder for folder in _below(side) if (p := split_of(folder / "x"))} for side in both)
        return {part: (images[part], labels[part]) for part in images if part in labels} or {"train": both}
    found = {part: pair for folder in _below(root) if (part := split_of(folder / "x")) and (pair := _both(folder))}
    if not found:
        raise UserError(
            f"no folder of images beside one of labels in {root}: give a root with images/ and annotations/ (or masks/, "
            "labels/), each with training/ and validation/ or without; VOC's folders; or COCO's, with annotations/*.json"
        )
    return found


def _both(root: Path) -> TwoFolders | None:
    """The folders of images and of labels in a folder, if it has both. Raises UserError where several may be one of them."""
    sides = [], []  # type: tuple[list[Path], list[Path]]
    for folder in _below(root):
        words = folder_words(folder.name)
        if folder.name.lower() in _IMAGES:
            sides[0].append(folder)
        elif any(map(WORD.fullmatch, words)):
            sides[1].append(folder)
    if several := next((side for side in sides if len(side) > 1), None):
        named = some([folder.name for folder in several])
        raise UserError(f"{root} has several folders of {'images' if several is sides[0] else 'labels'} ({named}): leave one")
    return (sides[0][0], sides[1][0]) if all(sides) else None


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".") if folder.is_dir() else []
