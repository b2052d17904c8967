"""Local and remote files: the paths that a pattern or an address stands for, and retries for what a network fails to give."""

import glob
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile
from typing import Any, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from jepakit.core.errors import UserError, line_of

T = TypeVar("T")
PATTERN_SIGNS = "*?[{"
MOST_PATHS = 100_000
PAUSES = (1.0, 4.0, 16.0)  # seconds before another try
PATIENCE = 60.0  # seconds before a file that could not be fetched is tried again
EXTRA = ("aiohttp", "huggingface_hub")  # packages that the extra 'remote' brings


class NothingThereError(UserError):
    """No file has a name that matches."""


@dataclass(frozen=True)
class DataPaths:
    """Files of one file system, which may be the local one; in natural order."""

    fs: AbstractFileSystem
    paths: tuple[str, ...]

    @property
    def local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)


def is_remote(data: str) -> bool:
    """Whether `data` is an address (scheme://...) rather than a local path."""
    return "://" in data or "::" in data


def is_pattern(data: str) -> bool:
    """Whether `data` stands for several files: it has braces or glob characters, and no file has just that name."""
    return any(c in data for c in PATTERN_SIGNS) and not os.path.exists(os.path.expanduser(data))


def expand(data: str) -> DataPaths:
    """The files that a path, an address or a pattern of either names: braces ({000..146}, {a,b}), then * ? [] and **.

    Raises UserError where nothing matches, a package is missing, or the place cannot be reached.
    """
    words = [data] if not is_remote(data) and os.path.exists(data) else list(islice(braces(data), MOST_PATHS + 1))
    if len(words) > MOST_PATHS:
        raise UserError(f"{shown(data)} stands for more than {MOST_PATHS} files: check the range in its braces")
    if data.startswith("file://") or not is_remote(data):
        return DataPaths(LocalFileSystem(), natural(_local(words, data)))
    try:
        reached = [url_to_fs(word, **_options(word)) for word in words]
        fs = reached[0][0]
        if any(other != fs for other, _ in reached):
            raise UserError(f"{shown(data)} names several places: its files must lie in one")
        return DataPaths(fs, natural(_remote(fs, [path for _, path in reached], data)))
    except UserError:
        raise
    except ImportError as error:
        module = error.name or getattr(error.__cause__, "name", None)  # fsspec's own error bears no name
        package = "'jepakit[remote]'" if module in EXTRA else module
        then = f"pip install {package}" if package else line_of(error)
        raise UserError(f"{shown(data)} needs another package to be reached: {then}") from None
    except Exception as error:  # each back-end raises its own
        if is_permanent(error):
            raise UserError(f"nothing is found at {shown(data)}: check the address, and that you may read it") from None
        raise UserError(f"{shown(data)} cannot be reached: {reason_of(error)}") from None


def shown(address: str) -> str:
    """An address as a message may show it: without a password, or a query, which may be a signature."""
    plain = re.sub(r"(?<=://)[^/@\s]*@", "", address)
    return re.sub(r"(https?://[^\s?]*)\?\S*", r"\1", plain)


def braces(word: str) -> Iterator[str]:
    """The words that a shell's brace expansion makes of {a,b} and {08..11}; other braces stay as they are."""
    for start in (i for i, c in enumerate(word) if c == "{"):
        depth, marks = 0, [start]  # of the opening brace, the commas and the closing brace
        for end in range(start, len(word)):
            depth += (word[end] == "{") - (word[end] == "}")
            if not depth or (depth == 1 and word[end] == ","):
                marks.append(end)
            if not depth:
                break
        span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", word[start + 1 : marks[-1]])
        if not depth and (span or len(marks) > 2):
            choices = _range(*span.groups()) if span else (word[a + 1 : b] for a, b in pairwise(marks))
            rest = word[marks[-1] + 1 :]
            # a choice may have braces of its own
            yield from (word[:start] + head + tail for choice in choices for head in braces(choice) for tail in braces(rest))
            return
    yield word


def _range(first: str, last: str) -> Iterator[str]:
    a, b = int(first), int(last)
    padded = any(len(text) > 1 and text[0] == "0" for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return (f"{n:0{width}}" for n in range(a, b + (1 if a <= b else -1), 1 if a <= b else -1))


def natural(paths: Iterable[str]) -> tuple[str, ...]:
    """Paths, each once, in an order in which 2 comes before 10."""

    def key(path: str) -> list[tuple[int, str]]:
        parts = [part.lstrip("0") if part.isdigit() else part for part in re.split(r"([0-9]+)", path)]
        return [(len(part) if i % 2 else 0, part) for i, part in enumerate(parts)]  # every second one is a number

    return tuple(sorted(set(paths), key=lambda path: (key(path), path)))


def _local(words: list[str], data: str) -> list[str]:
    found, folders = list[str](), list[str]()
    for word in words:
        path = os.path.expanduser(re.sub("^file://", "", word))
        many = not os.path.exists(path) and glob.has_magic(path)
        matching = glob.glob(path, recursive=True) if many else [path]
        here = [p for p in matching if os.path.isfile(p)]
        folders += [p for p in matching if os.path.isdir(p)]
        if not here and not many:
            raise UserError(f"no such file: {path}" + (f", which {data} names" if path != data else ""))
        found += here
    if not found and folders:
        raise UserError(f"{data} matches folders: give the folder that holds them, {above(folders)}")
    if not found:
        raise NothingThereError(f"no file matches {data}")
    return [os.path.abspath(path) for path in found]


def above(paths: Iterable[str]) -> str:
    """The folder that holds all of these."""
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def titles_below(paths: tuple[str, ...]) -> list[str]:
    """A title for each file, the same wherever the set lies: its path below the folder that holds all of them."""
    parts = [shown(path).split("/") for path in paths]
    levels = zip(*(part[:-1] for part in parts), strict=False)
    shared = len([*takewhile(lambda level: len(set(level)) == 1, levels)])
    return ["/".join(part[shared:]) for part in parts]


def _remote(fs: AbstractFileSystem, paths: list[str], data: str) -> list[str]:
    web = data.rpartition("::")[2].startswith("http")
    magic = re.compile(r"[*\[]" if web else r"[*?\[]")  # a ? in a web address begins its query
    found = [path for path in paths if not magic.search(path)]
    if found:
        with_retries(lambda: fs.info(found[0]))  # a look at one: a thousand would take minutes
    for path in paths:
        if magic.search(path):
            found += [name for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"]
    if not found:
        raise NothingThereError(f"no file matches {shown(data)}")
    return found


def _options(address: str) -> dict[str, Any]:
    """fsspec's options: over http no total time limit (its default is five minutes), and proxies from the environment."""
    kinds = [kind for kind in ("http", "https") if f"{kind}://" in address]
    if not kinds:
        return {}
    from aiohttp import ClientTimeout

    client = {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60), "trust_env": True}
    return {kind: {"client_kwargs": client} for kind in kinds}


def with_retries(work: Callable[[], T], pausing: Callable[[float], None] = lambda seconds: None) -> T:
    """work(), tried up to four times with growing pauses between. Raises UserError and permanent errors at once, else the last.

    pausing: called before each pause with its length in seconds.
    """
    for pause in PAUSES:
        try:
            return work()
        except UserError:
            raise
        except Exception as error:  # each back-end raises its own
            if is_permanent(error):
                raise
            pausing(pause)
            time.sleep(pause)
    return work()


def reason_of(error: Exception) -> str:
    """What any back-end's error says, in one line that a message may show."""
    return shown(line_of(error)) or type(error).__name__


def is_permanent(error: Exception) -> bool:
    """Whether trying again is of no use: the file is not there or may not be read.

    fsspec raises FileNotFoundError for any fault of a web server, so the HTTP status behind it decides: not 429, not 5xx.
    """
    if not isinstance(error, FileNotFoundError | PermissionError):
        return False
    cause: Any = error.__cause__
    status = getattr(cause, "status", None) or getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        return int(status) != 429 and int(status) < 500
    return not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError | PermissionError)
