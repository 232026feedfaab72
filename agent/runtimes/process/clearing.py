"""Removes a folder, whatever a cell has left in it: directories without permissions, immutable files, mounts, trees of
any depth. Everything here blocks.

It never goes into a mounted file system: that may be one of the host's. Each directory is renamed before it is
entered, and the kernel refuses that for a place where something is mounted.
"""

import contextlib
import fcntl
import itertools
import os
import re
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602
IMMUTABLE_FLAGS = 0x10 | 0x20
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL and FS_APPEND_FL of linux/fs.h."""
UNMOUNT_SECONDS = 10.0

_FLAGS = struct.Struct("l")
_ESCAPED = re.compile(r"\\([0-7]{3})")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def clear(top: Path) -> None:
    """Remove the folder. What can be removed is removed before the first error is raised. Raises OSError."""
    _unmount(top)
    if not top.is_dir() or top.is_symlink():
        top.unlink(missing_ok=True)
        return
    with _opened(top) as folder:
        _make_ours(folder)
        errors = _emptied(folder)
    if errors:
        raise errors[0]
    with _opened(top.parent) as parent:
        _insist(parent, top.name, lambda: os.rmdir(top.name, dir_fd=parent))


def _emptied(top: int) -> list[OSError]:
    """Remove everything below. Directories are lifted to the top first, so that no path and no number of open
    directories grows with the depth of the tree."""
    errors: list[OSError] = []
    failed: set[str] = set()
    prefix, lifted = f".lifted-{time.time_ns()}-", itertools.count()
    while names := [name for name in os.listdir(top) if name not in failed]:
        for name in names:
            here = name
            try:
                if not _is_directory(top, name):
                    _unlink(top, name)
                    continue
                if not name.startswith(prefix):
                    _lift(top, name, top, f"{prefix}{next(lifted)}")
                    continue
                with _opened(name, top) as directory:
                    _make_ours(directory)
                    for inner in os.listdir(directory):  # noqa: PTH208
                        here = inner
                        if _is_directory(directory, inner):
                            _lift(directory, inner, top, f"{prefix}{next(lifted)}")
                        else:
                            _unlink(directory, inner)
                os.rmdir(name, dir_fd=top)
            except OSError as error:
                errors.append(OSError(error.errno, f"{here}: {error.strerror}"))
                failed.add(name)
    return errors


def _is_directory(parent: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _unlink(parent: int, name: str) -> None:
    _insist(parent, name, lambda: os.unlink(name, dir_fd=parent))


def _lift(parent: int, name: str, top: int, here: str) -> None:
    _insist(parent, name, lambda: os.rename(name, here, src_dir_fd=parent, dst_dir_fd=top))


def _insist(parent: int, name: str, act: Callable[[], object]) -> None:
    """Once more where permissions or flags of the entry or its directory are in the way."""
    try:
        act()
    except PermissionError:
        _make_ours(parent)
        with contextlib.suppress(OSError), _opened(name, parent, os.O_NONBLOCK) as entry:
            _make_ours(entry)
        act()


def _make_ours(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        flags = _FLAGS.unpack(fcntl.ioctl(descriptor, GET_FLAGS, _FLAGS.pack(0)))[0]
        if flags & IMMUTABLE_FLAGS:
            fcntl.ioctl(descriptor, SET_FLAGS, _FLAGS.pack(flags & ~IMMUTABLE_FLAGS))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
        with contextlib.suppress(OSError):  # of another user: the attempt itself tells
            os.fchmod(descriptor, stat.S_IRWXU)


@contextlib.contextmanager
def _opened(path: Path | str, parent: int | None = None, special: int = 0) -> Iterator[int]:
    """A directory; with ``special`` also a file, of which only regular ones can be opened without harm."""
    if special:
        mode = os.stat(path, dir_fd=parent, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise OSError(f"{path} is a special file")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | special
    else:
        flags = _DIRECTORY
    try:
        descriptor = os.open(path, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(path, stat.S_IRWXU, dir_fd=parent)
        descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unmount(top: Path) -> None:
    """Detach what is mounted on the folder and below it, the innermost first. Raises OSError."""
    here = str(top.parent.resolve() / top.name)
    for place in reversed(_mount_points()):
        if place == here or place.startswith(f"{here}/"):
            done = subprocess.run(
                ["umount", "-l", "--", place],
                capture_output=True,
                text=True,
                timeout=UNMOUNT_SECONDS,
                check=False,
            )
            if done.returncode:
                raise OSError(f"cannot unmount {place}: {done.stderr.strip()}")


def _mount_points() -> list[str]:
    """Of this process, in the order in which they were mounted (proc(5))."""
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return [_ESCAPED.sub(lambda match: chr(int(match[1], 8)), line.split()[4]) for line in text.splitlines()]
