"""What an image is called: the grammar of references, as engines and registries read it.

Source: github.com/distribution/reference, ``regexp.go`` and ``normalize.go``. Pure.
"""

from __future__ import annotations

import re

NAME_LIMIT = 255

_HOST = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*(:[0-9]{1,5})?"
)
_PART = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")


def flaw_of_reference(text: str) -> str:
    """Why no engine can read it; empty if one can."""
    name, at, digest = text.partition("@")
    if at and _DIGEST.fullmatch(digest) is None:
        return "what follows '@' must be a digest, for example sha256: and 64 hexadecimal digits"
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and _TAG.fullmatch(tag) is None:
        return f"the tag {tag[:80]!r} is invalid: use 1 to 128 letters, digits, '_', '.' and '-'"
    parts = [*head.split("/"), last] if slash else [last]
    if slash and _is_host(parts[0]):
        if _HOST.fullmatch(parts[0]) is None:
            return f"the registry {parts[0][:80]!r} is no address"
        del parts[0]
    for part in parts:
        if _PART.fullmatch(part) is None:
            if _PART.fullmatch(part.lower()):
                return f"the name must be lower-case; did you mean {part.lower()[:80]!r}?"
            return (
                f"{part[:80]!r} is invalid: use lower-case letters and digits, separated by '.', '_' or '-'"
            )
    if len(head) + len(slash) + len(last) > NAME_LIMIT:
        return f"the name is longer than {NAME_LIMIT} characters"
    return ""


def _is_host(part: str) -> bool:
    """Whether the first part of a name is the address of a registry."""
    return part == "localhost" or any(character in part for character in ".:")
