"""The command line: parses, calls the Python function of the same name, and says errors in one sentence."""

import io
import os
import signal
import sys
from typing import Any

import typer

from jepakit.cli import experiments  # noqa: F401  # commands are in `app`, and stand in its help, in this order

# isort: split
from jepakit.cli import embeddings, exports, images, mistakes, plans  # noqa: F401
from jepakit.cli.options import ANYWHERE, app
from jepakit.core import ranks
from jepakit.core.errors import UserError
from jepakit.core.signals import quiet_interrupts

LOST_RANK = 75  # exit code of a run that lost a process: EX_TEMPFAIL of sysexits.h, which Windows has not
_UsageError: Any = typer.BadParameter.__base__  # click's; newer typer carries a click of its own and installs none


def _alone(error: UserError) -> bool:
    """Whether only this one of several processes made a mistake: they had joined, and did not agree on it."""
    group: Any = sys.modules.get("jepakit.core.distributed")  # torch is not imported here
    return group is not None and group.has_joined() and type(error).__name__ != "AgreedError"


def _prepare_process() -> None:
    """What must be set before torch is imported, and how text is written."""
    # torch's threads spin for long while they wait; where another program wants the cores, each wait then costs a time
    # slice, and a step 50 times its time (measured: 0.3 s -> 16 s). Spin briefly. It must be set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what torch cannot do on Apple's GPUs the CPU does
    if ranks.launched():  # torch advises against an option that is needed (core/parallel.py)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for stream in (sys.stdout, sys.stderr):  # a name that is no text in this encoding is printed as its bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "backslashreplace")


def _in_order(words: list[str]) -> list[str]:
    """`help VERB` as `VERB --help`, and first the options that may stand anywhere."""
    words = [*words[1:], "--help"] if words[:1] == ["help"] else words
    return [*(word for word in words if word in ANYWHERE), *(word for word in words if word not in ANYWHERE)]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one sentence and exit code 2."""
    _prepare_process()
    if arguments is None:
        quiet_interrupts()
    words = _in_order(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(words, standalone_mode=False, prog_name="jepakit")  # typer makes of Ctrl-C a code that it gives back
        if code == 130:
            print("stopped", file=sys.stderr)
        if isinstance(code, int) and code:
            sys.exit(code)
    except _UsageError as error:
        needs_help = type(error).__name__ == "NoArgsIsHelpError"  # its message is the help
        print(error.format_message() if needs_help else f"error: {mistakes.usage_sentence(error, words)}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        if ranks.is_main() or _alone(error):  # of several processes one says it
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a disk that is full or read-only, a name that is too long
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ == "LostRankError":
            print(f"error: {error}", file=sys.stderr)
            sys.exit(LOST_RANK)
        if type(error).__name__ != "OutOfMemoryError":  # torch's own; torch is not imported here
            raise
        print("error: the device's memory is too small: raise optim.accumulate, or lower optim.batch_size", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    finally:
        if arguments is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said; while Python ends it would print a traceback
