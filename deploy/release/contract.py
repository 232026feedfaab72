"""The contract of the last release, as an image that `buf breaking` compares with."""

from __future__ import annotations

from pathlib import Path

from deploy.release.tree import IMAGE_FILE, Refused, Tree, tool


def breaking_changes(tree: Tree) -> str:
    """What buf says of changes that older agents, schedulers or command lines would not understand; else nothing."""
    try:
        tree.run(tool("buf"), "breaking", "--against", IMAGE_FILE)
    except Refused as refused:
        return str(refused)
    return ""


def write_image(tree: Tree, image: Path) -> None:
    """Of the contract as it is in the tree, without comments."""
    tree.run(tool("buf"), "build", "--exclude-source-info", "--output", str(image))
