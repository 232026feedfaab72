"""Cut a release from this checkout: `make release`. CONTRIBUTING.md says when and how.

It checks, builds into dist/, makes an annotated tag, and commits the record of the new last release: its version, its
commit, and the image of its contract. It pushes nothing. When it is refused or fails, there is neither tag nor commit.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from deploy.release.artefacts import build
from deploy.release.changelog import notes_of
from deploy.release.checks import reasons_against, tag_of
from deploy.release.contract import write_image
from deploy.release.tree import IMAGE_FILE, LAST_FILE, Refused, Release, Tree

ROOT = Path(__file__).parents[2]

_LAST = """\
# The last release. `make release` writes it; tags do not travel everywhere, this file does.
# The contract of that commit is the image proto/released.binpb.
version = "{release.version}"
commit = "{release.commit}"
"""


def main() -> int:
    tree = Tree(ROOT)
    try:
        if reasons := list(reasons_against(tree)):
            print("no release:", *(f"- {reason}" for reason in reasons), sep="\n", file=sys.stderr)
            return 1
        release = Release(tree.version(), tree.git("rev-parse", "HEAD").strip())
        files = _build(tree)
        _tag_and_record(tree, release)
    except Refused as refused:
        print(f"no release: {refused}", file=sys.stderr)
        return 1
    print(f"released {release.version}: the tag {tag_of(release.version)}, and in dist/:")
    print(*(f"  {file}" for file in files), sep="\n")
    print(f"push both the branch and the tag: git push origin HEAD {tag_of(release.version)}")
    return 0


def _build(tree: Tree) -> list[str]:
    """The files' names. They get into dist/ when all of them are made."""
    dist = tree.root / "dist"
    dist.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".release-", dir=dist) as place:
        files = build(tree, Path(place))
        return [file.replace(dist / file.name).name for file in files]


def _tag_and_record(tree: Tree, release: Release) -> None:
    """The tag names the commit that was checked and built; the record can only be in the one after it."""
    tag = tag_of(release.version)
    message = f"Galactica {release.version}\n\n{notes_of(tree, release.version)}\n"
    tree.git("tag", "--annotate", "--cleanup=verbatim", "--message", message, tag, release.commit)
    try:
        write_image(tree, tree.root / IMAGE_FILE)
        (tree.root / LAST_FILE).write_text(_LAST.format(release=release))
        tree.git("add", IMAGE_FILE, LAST_FILE)
        told = f"The last release is {release.version}: its commit and its contract"
        tree.git("commit", "--quiet", "--message", told)
    except BaseException:
        tree.git("tag", "--delete", tag)
        tree.git("reset", "--quiet", "--hard", release.commit)
        raise


if __name__ == "__main__":
    sys.exit(main())
