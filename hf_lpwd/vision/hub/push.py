"""Uploads to the Hub: which files of a run, how, and what is said when that fails."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_lpwd.files import RECORD, SAVED_FILES
from hf_lpwd.messages import BadInputError, counted, printable
from hf_lpwd.vision.hub.patience import GaveUpError, patience

#: Files of a run that are uploaded: the model, its processor and code, the card and what it shows. Not the
#: records of settings and the Trainer's state, which name folders of this machine.
PUBLISHED = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*processor_config.json",
    "README.md",
    "curves.png",
    "layer_rates.json",
    "*_results.json",
)
#: Uploaded if the model has custom code. Otherwise such files are the user's, not the run's.
_CODE = "*.py"
#: A pickle, which can run code when it is loaded, the list of a checkpoint's files, which names it, and the
#: settings, which hold paths of this machine.
_NEVER = ("training_args.bin", SAVED_FILES, RECORD)


class PushError(RuntimeError):
    """Something was not uploaded; the message is one line and says what to do."""


def files_to_push(folder: Path, checkpoints: Iterable[Path] = ()) -> dict[str, Path]:
    """Returns the files of a run that belong on the Hub, by their path there.

    Args:
        folder: The output folder of a run, or one of its checkpoints.
        checkpoints: Checkpoints inside `folder` that go up whole, with their optimizer states.

    Raises:
        BadInputError: There is no trained model, or a file is a link or otherwise not in `folder` itself.
    """
    found = sorted({path for pattern in PUBLISHED for path in folder.glob(pattern)})
    config = folder / "config.json"
    if config not in found or not any(path.suffix == ".safetensors" for path in found):
        raise BadInputError(f"{folder} holds no trained model: name the output_dir of a run of hf-lpwd train")
    _refuse_link(config, folder)
    if '"auto_map"' in config.read_text("utf-8"):
        found += sorted(folder.glob(_CODE))
    for checkpoint in checkpoints:
        _refuse_link(checkpoint, folder)
        found += sorted(path for path in checkpoint.rglob("*") if path.name not in _NEVER)
    for path in found:
        _refuse_link(path, folder)
    return {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}


def _refuse_link(path: Path, folder: Path) -> None:
    mode = path.lstat().st_mode
    inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    if not inside or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadInputError(
            f"{path} is a link or no regular file, and could bring up what lies outside of {folder}: "
            "put a copy in its place"
        )


def upload(
    files: dict[str, Path],
    repo_id: str,
    *,
    token: str | None = None,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "Upload with hf-lpwd",
) -> tuple[str, bool]:
    """Makes a repository if there is none, and commits files to it; unchanged ones are not sent again.

    `HfApi.upload_folder` does the same for a folder. It follows links, and cannot commit a run and its
    checkpoint under another name at once, nor a card that loads the model by its name on the Hub.

    Args:
        files: Path in the repository -> file; if there are none, only the repository is made.
        repo_id: ``user/name``, or a name under the token's user.
        token: For the Hub; default: the one of ``hf auth login`` or ``HF_TOKEN``.
        repo_type: ``"model"`` or ``"space"``.
        private: Whether a new repository is private; None: as the user has set on the Hub.
        revision: Branch, made if missing, or pull request, as ``refs/pr/1``; default: main.
        create_pr: Open a pull request instead of committing to `revision`.
        message: Of the commit.

    Returns:
        The address of the commit or pull request, and whether there was anything to change.

    Raises:
        PushError: It did not succeed; the message says why. Whatever was sent before is used again next time.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    from hf_lpwd import __version__

    api = HfApi(token=token, library_name="hf-lpwd", library_version=__version__)
    options: dict[str, Any] = {"repo_type": repo_type, "revision": revision}
    try:
        with patience():
            url = api.create_repo(
                repo_id,
                repo_type=repo_type,
                private=private,
                exist_ok=True,
                space_sdk="gradio" if repo_type == "space" else None,
            )
            if not files:
                return printable(url), False
            if revision and not revision.startswith("refs/"):
                api.create_branch(url.repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
            before = api.repo_info(url.repo_id, **options).sha
            commit = api.create_commit(
                url.repo_id,
                [CommitOperationAdd(name, _content(path, url.repo_id)) for name, path in files.items()],
                commit_message=message,
                create_pr=create_pr,
                **options,
            )
    except Exception as error:  # each layer beneath fails in its own way, and none of them may end a run
        raise PushError(f"not pushed to {repo_id}: {_why(error)}") from error
    return printable(commit.pr_url or commit.commit_url), commit.oid != before


def _content(path: Path, repo_id: str) -> str | bytes:
    """Returns a file's path; of a card its text, which loads the model by its name on the Hub."""
    if path.name != "README.md":
        return str(path)
    example = r'model=".*"\)  # a folder, or a name on the Hub'
    return re.sub(example, f'model="{repo_id}")', path.read_text("utf-8")).encode()


def _why(error: BaseException) -> str:
    """Says in a few words what went wrong, and what helps."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    advice = {
        401: "no token, or a wrong one: `hf auth login`",
        403: "this token has no write permission there",
        404: "no such repository, or no permission to see it",
        429: "too many requests: wait some minutes",
    }
    for one in chain:
        status = getattr(getattr(one, "response", None), "status_code", 0)
        # hf_xet, which sends large files, has one error for all that happens, and the status in its text.
        in_text = re.search(r"HTTP status \w+ error \((\d+)", str(one))
        if in_text and isinstance(one, ConnectionError):
            status = int(in_text[1])
            if status == 404 and "xet-write-token" in str(one):
                return "this Hub has no Xet storage: set HF_HUB_DISABLE_XET=1"
        if status in advice or status >= 500:
            message = printable(getattr(one, "server_message", None) or "")[:200]
            detail = f"{status}: {message}" if message else str(status)
            return f"{advice.get(status, 'the Hub has a fault')} ({detail})"
        if isinstance(one, GaveUpError):
            return f"the Hub was given up: {one}"
        if isinstance(one, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        if not status and (isinstance(one, ConnectionError) or type(one).__module__.startswith("httpx")):
            return f"the connection to the Hub failed ({type(one).__name__})"
    # huggingface_hub wraps what goes wrong with one file in a RuntimeError that names only the file.
    said = chain[1] if isinstance(error, RuntimeError) and len(chain) > 1 else error
    return printable(said)[:300]


def listing(files: dict[str, Path]) -> str:
    """Returns a line for each file, with its size in bytes, and their sum."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    rows = [*sizes.items(), (counted(len(sizes), "file"), sum(sizes.values()))]
    return "\n".join(f"{size:>15,}  {name}" for name, size in rows)
