"""Zip files as torch.save writes them, and files that only look like one."""

import zipfile
from pathlib import Path

_MAGIC = b"PK\x03\x04"


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip archive by its first bytes, as torch.load decides."""
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def fault_of_archive(path: Path) -> str:
    """Return why a zip file must not be given to torch.load, as part of a sentence; else "".

    torch never compresses. Of a compressed entry a mapped file would give the packed bytes as if
    they were the weights, and a small file could unpack to any size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        size = path.stat().st_size
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        return f"its list of entries is damaged: {error}"
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "its entries are compressed, which torch.save never does"
    if sum(entry.file_size for entry in entries) > size:
        return "its entries are larger than the file"
    return ""
