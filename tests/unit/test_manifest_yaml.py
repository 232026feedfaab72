"""Invalid YAML is reported with its place and in plain words, not in the words of the YAML library."""

import pytest

from galactica.scheduler.manifest.loading import ManifestErrors, parse


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1\n", "2:1: invalid YAML: tab used for indentation"),
        ("a: b: c\n", "1:5: invalid YAML: unexpected ':'; check the indentation, or quote the text"),
        ("a: @x\n", "1:4: invalid YAML: unexpected character '@'; quote the text"),
        ("a: *b\n", "1:4: invalid YAML: undefined alias '*b'"),
        ("a: 'x\n", "2:1: invalid YAML: missing closing quote"),
        ("a: 1\nb\nc: 2\n", "3:1: invalid YAML: missing ':' after a key; look at the line above too"),
        ("a:\n  b: 1\n c: 2\n", "3:2: invalid YAML: wrong indentation"),
        ("a: [1, 2\nb: 3\n", "2:2: invalid YAML: missing ',' or ']'"),
        ("a: {b: 1\nc: 2\n", "2:2: invalid YAML: missing ',' or '}'"),
        ("a: !x{ 1\n", "1:6: invalid YAML: expected ' ', but found '{' (while scanning a tag)"),
    ],
)
def test_invalid_yaml_is_told_in_plain_words(text: str, message: str) -> None:
    with pytest.raises(ManifestErrors) as caught:
        parse(text, "web.yaml")
    assert str(caught.value.mistakes[0]).partition(" (here: ")[0] == f"web.yaml:{message}"
