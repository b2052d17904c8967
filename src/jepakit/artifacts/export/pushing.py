"""The verb `push`: an export for transformers, uploaded to the Hugging Face Hub."""

import importlib.util
import tempfile
from contextlib import nullcontext
from pathlib import Path

from jepakit.artifacts.export.exporting import MARK, export
from jepakit.artifacts.load import HUB_ID
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError, checked
from jepakit.core.files import load_json, user_path


@checked
def push(
    run: Run | str | Path,
    repo: str,
    *,
    precision: str = "fp32",
    which: str | None = None,
    custom_code: bool = False,
    public: bool = False,
    overwrite: bool = False,
) -> str:
    """Export an encoder for transformers and upload it as the hub's model `repo` (owner/name), private unless `public`.

    run: as for `export`; an hf export that is there already is uploaded as it is. Needs huggingface_hub, and its login.
    Returns the model's address. Raises UserError as `export` does, where the repository is there (unless `overwrite`, which
    makes a new commit of it), and where the hub refuses.
    """
    if not HUB_ID.fullmatch(repo):
        raise UserError(f"'{repo}' is no name of a repository: give owner/name")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("push needs huggingface_hub: pip install 'jepakit[hub]'")
    place = user_path(run, "the encoder")
    ready = _is_hf_export(place)
    if ready and (precision, which, custom_code) != ("fp32", None, False):
        raise UserError(f"{place} is an export already: its precision, encoder and code are as they are")
    with nullcontext(None) if ready else tempfile.TemporaryDirectory(prefix="jepakit-") as folder:
        if folder is not None:
            place = Path(folder) / "model"
            export(run, "hf", place, precision=precision, which=which, custom_code=custom_code)
            text = (place / "README.md").read_text(encoding="utf-8")
            (place / "README.md").write_text(text.replace('"FOLDER"', f'"{repo}"'), encoding="utf-8")
        return _upload(place, repo, public=public, overwrite=overwrite)


def _upload(place: Path, repo: str, *, public: bool, overwrite: bool) -> str:
    """The address of what was uploaded. Raises UserError."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="jepakit")
        there = not overwrite and api.repo_exists(repo)
        if not there:
            address = api.create_repo(repo, private=not public, exist_ok=overwrite)
            api.upload_folder(repo_id=repo, folder_path=place, commit_message="jepakit push")
    except Exception as error:  # the hub's errors are many: no login, not allowed, offline
        raise UserError(f"not pushed: the hub says: {(str(error).strip().splitlines() or ['nothing'])[0][:200]}") from None
    if there:
        raise UserError(f"the hub has {repo} already: give another name, or replace its files with --overwrite")
    return str(address)


def _is_hf_export(folder: Path) -> bool:
    """Whether a folder is what `export --format hf` wrote."""
    try:
        return bool(load_json(folder / MARK)["format"] == "hf")
    except (OSError, ValueError, LookupError, TypeError):
        return False
