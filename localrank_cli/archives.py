"""Zip files as torch.save writes them, and those that only look like one."""

import zipfile
from pathlib import Path

_MAGIC = b"PK\x03\x04"


def is_archive(path: Path) -> bool:
    """Tells whether a file begins as a zip file does.

    Args:
        path: The file.

    Returns:
        True for what torch.load reads as a zip file.
    """
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def fault_of_archive(path: Path) -> str:
    """Tells why a zip file must not be given to torch.load.

    torch never compresses. Of a compressed entry a mapped file would give the packed bytes as if
    they were the weights, and a small file could unpack to any size.

    Args:
        path: For which `is_archive` holds.

    Returns:
        The reason, as a part of a sentence; empty where there is none.
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
