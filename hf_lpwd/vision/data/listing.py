"""The files below a folder, as this package finds them: by links too, and whatever their names hold."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from hf_lpwd.files import RECORD
from hf_lpwd.messages import BadInputError, counted, first_line
from hf_lpwd.vision.data.decoding import HEIF, NEEDS_HEIF, image_suffixes
from hf_lpwd.vision.data.tables import BUILDERS

_ARCHIVES = tuple(suffix for _, suffixes, _ in shutil.get_unpack_formats() for suffix in suffixes)
_DOCUMENTS = re.compile(
    r"\.(txt|md|rst|pdf|html?|xml|ya?ml|toml|ini|log|py|ipynb|sh|mat|npy|npz|pkl|names|data|gitattributes)"
)
# Of macOS, network drives and file systems: thumbnails, copies and what was deleted.
_SYSTEM_FOLDERS = {
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "lost+found",
    "system volume information",
}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini"}
_METADATA = re.compile(r"metadata\.(csv|jsonl|parquet)", re.IGNORECASE)

#: The folders of a file, from the listed one down, and its name.
Key = tuple[str, ...]


@dataclass(frozen=True)
class File:
    """A file below a folder.

    Attributes:
        folders: Names of the folders from the listed one down to the file.
        name: Its own name.
        path: Where it is, which differs from the above inside an archive.
    """

    folders: tuple[str, ...]
    name: str
    path: str

    @property
    def key(self) -> Key:
        """Its folders and its name."""
        return (*self.folders, self.name)


@dataclass
class Listing:
    """What a folder holds, in the order of names.

    Attributes:
        images: Files that can be images, by their suffix.
        metadata: Files called ``metadata.csv``, ``.jsonl`` or ``.parquet``.
        tables: Other files that hold rows.
        archives: Archives; if no image is outside them, they are unpacked, and `images` holds those inside.
        unpacked: Names of those that were unpacked.
        folders: All folders, for each the names from the listed folder down.
        left_out: Files that are not read: why, and how many.
    """

    images: list[File] = field(default_factory=list)
    metadata: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    archives: list[File] = field(default_factory=list)
    unpacked: list[str] = field(default_factory=list)
    folders: list[tuple[str, ...]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def list_folder(folder: str | os.PathLike[str], cache_dir: str | None = None) -> Listing:
    """Lists the images and tables in a folder, in the folders below it, and behind symbolic links.

    Archives are unpacked into `cache_dir`; default: where `datasets` keeps what it converts.

    Raises:
        BadInputError: If a symbolic link leads back to a folder that it is in, or if a folder cannot be read.
    """
    listing = Listing()
    _list(Path(folder), (), (os.path.realpath(folder),), listing)
    if listing.images or not listing.archives:
        listing.left_out.update(f"archive {_suffix(file.name)}, beside images" for file in listing.archives)
    else:
        for file in listing.archives:
            inside = unpack(file.path, cache_dir)
            listing.unpacked.append(file.name)
            stem = file.name.removesuffix(_suffix(file.name)) or file.name
            _list(inside, (*file.folders, stem), (os.path.realpath(inside),), listing)
    return listing


def refuse_run(folder: Path, name: str, wanted: str) -> None:
    """Raises a `BadInputError` if `folder`, given as `name`, is that of a run, whose curves are an image."""
    if (folder / RECORD).is_file():
        raise BadInputError(f"{name} is the folder of a run of hf-lpwd, not {wanted}")


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of an archive that `unpack` takes."""
    return Path(path).name.lower().endswith(_ARCHIVES)


def unpack(path: str | os.PathLike[str], cache_dir: str | None = None) -> Path:
    """Unpacks an archive, once for each state of the file, and returns the folder.

    Raises:
        BadInputError: If it is damaged, or holds links or paths that lead out of it.
    """
    path = Path(path).absolute()
    state = path.stat()
    key = hashlib.sha256(f"{path} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    root = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / "unpacked"
    target = root / f"{key}-{path.name}"
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        try:
            os.mkdir(f"{temporary}/all")
            if path.suffix.lower() == ".zip":
                _unzip(path, f"{temporary}/all")
            else:
                # The name decides about the format, without regard to case here.
                shutil.unpack_archive(path, f"{temporary}/all", _tar_format(path.name.lower()), filter="data")
        except BadInputError:
            raise
        except Exception as error:  # zipfile, tarfile, zlib and lzma raise their own types
            raise BadInputError(f"{path.name} cannot be unpacked: {first_line(error)}") from error
        try:
            os.rename(f"{temporary}/all", target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    return target


def _unzip(path: Path, folder: str) -> None:
    """Unpacks a zip, of which `shutil` would leave out every member with two dots in its name, unsaid."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        unsafe = [name for name in names if name.startswith("/") or ".." in re.split(r"[/\\]", name)]
        if unsafe:
            members = counted(len(unsafe), "member leads", "members lead")
            raise BadInputError(
                f"{path.name}: {members} out of the archive, the first {unsafe[0][-100:]!r}: pack it again "
                "with paths below one folder"
            )
        archive.extractall(folder)


def _tar_format(name: str) -> str:
    return next(form for form, suffixes, _ in shutil.get_unpack_formats() if name.endswith(tuple(suffixes)))


def _list(folder: Path, folders: tuple[str, ...], above: tuple[str, ...], listing: Listing) -> None:
    """Adds what is in `folder`; `above` are the real paths of the folders that it is in, itself included."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInputError(f"{folder} cannot be read: {error.strerror}") from error
    if folders and any(entry.name == RECORD for entry in entries):
        listing.left_out[f"folder {folders[-1]}, a run of hf-lpwd"] += 1
        return
    listing.folders.append(folders)
    for entry in entries:
        path = _link_as_text(entry) or entry.path
        if os.path.isdir(path):
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FOLDERS:
                _count_hidden(entry, listing)
                continue
            real = os.path.realpath(path)
            if real in above:
                raise BadInputError(
                    f"{entry.path} is a symbolic link to {real}, which it is in: remove the link"
                )
            _list(Path(path), (*folders, entry.name), (*above, real), listing)
        else:
            _add(File(folders, entry.name, entry.path), listing)


def _link_as_text(entry: os.DirEntry[str]) -> str | None:
    """Returns the folder that a file names if it is a symbolic link as git stores it where it has none."""
    if "." in entry.name or not os.path.isfile(entry.path) or entry.stat().st_size > 1024:
        return None
    with open(entry.path, "rb") as file:
        text = os.fsdecode(file.read())
    target = os.path.join(os.path.dirname(entry.path), text)
    return target if "/" in text and "\0" not in text and os.path.isdir(target) else None


def _add(file: File, listing: Listing) -> None:
    """Adds a file to the part of the listing where it belongs."""
    suffix = _suffix(file.name)
    if file.name.lower() in _SYSTEM_FILES or (file.name.startswith(".") and suffix not in image_suffixes()):
        return
    if file.name.startswith("."):
        listing.left_out["hidden file"] += 1
    elif not os.path.isfile(file.path):
        listing.left_out["broken symbolic link"] += 1
    elif suffix in image_suffixes():
        listing.images.append(file)
    elif _METADATA.fullmatch(file.name):
        listing.metadata.append(file)
    elif suffix in BUILDERS:
        listing.tables.append(file)
    elif suffix in _ARCHIVES:
        listing.archives.append(file)
    elif suffix in HEIF:
        listing.left_out[f"file {suffix}, {NEEDS_HEIF}"] += 1
    elif _DOCUMENTS.fullmatch(suffix):
        listing.left_out[f"document {suffix}"] += 1
    else:
        listing.left_out[f"file {suffix}" if suffix else "file without an extension"] += 1


def _count_hidden(entry: os.DirEntry[str], listing: Listing) -> None:
    names = [name for _, _, files in os.walk(entry.path) for name in files if not name.startswith("._")]
    number = sum(_suffix(name) in image_suffixes() for name in names)
    if number:
        listing.left_out[f"image in the hidden folder {entry.name}"] += number


def _suffix(name: str) -> str:
    archive = next((suffix for suffix in _ARCHIVES if name.lower().endswith(suffix)), None)
    return archive or os.path.splitext(name.lower())[1]
