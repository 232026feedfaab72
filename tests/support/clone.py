"""A checkout of our own to do things to: the tree as it is now, changes included, as one commit after ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """In which git commits without knowing who runs the tests. What a git or a make around us has set is left out."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "MAKE"))}
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in _WHO.items()}
    return {**inherited, **who, "GIT_CONFIG_GLOBAL": os.devnull}


_WHO = {"NAME": "Somebody", "EMAIL": "somebody@example.org"}


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=root,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def done(root: Path, *command: str) -> str:
    """What a command prints that has to work."""
    ended = run(root, *command)
    assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
    return ended.stdout


def commit_all(root: Path, message: str) -> str:
    """The commit's full id."""
    done(root, "git", "add", "--all")
    done(root, "git", "commit", "--quiet", "--allow-empty", "--message", message)
    return done(root, "git", "rev-parse", "HEAD").strip()


def clone_into(directory: Path) -> Path:
    """The clone's root."""
    root = directory / "clone"
    done(directory, "git", "clone", "--quiet", "--shared", str(ROOT), str(root))
    done(root, "git", "rm", "--quiet", "-r", ".")
    listed = done(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, root / name
        if source.is_symlink() or source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    commit_all(root, "What is being tested")
    return root
