"""Files that are replaced whole: whoever reads one, also after a crash, finds the old content or the new one."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """It may not be on the disk yet when this returns. Raises OSError."""
    with _draft(path) as draft:
        draft.write_bytes(content)


def replace_secret_file(path: Path, content: bytes) -> None:
    """Only its owner can ever read it, and it is on the disk when this returns. Raises OSError."""
    with _draft(path) as draft:
        draft.unlink(missing_ok=True)  # one that was left behind may be open to others
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Where to write; takes the file's place at the end of the block, and goes if that fails."""
    draft = path.with_name(f"{path.name}.new")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
