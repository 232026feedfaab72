"""Manifests as whole files: many at once, too large, unreadable, and the keys that came last."""

from __future__ import annotations

import pytest

from galactica.scheduler.core.model.spec import digest_of
from galactica.scheduler.manifest.loading import ManifestErrors, load, parse
from tests.support.manifests import SMALL, mistakes


def test_all_mistakes_of_all_documents_are_told_at_once():
    told = mistakes(
        """\
        kind: service
        name: web
        replcas: 6
        image: hello:1
        ports: {http: 99999}
        health: {http: {port: htp}, every: 5}
        ---
        kind: service
        name: db
        command: [x]
        stop: {signal: KILL}
        """
    )
    assert told == [
        "web.yaml:3:1: replcas: unknown key; did you mean 'replicas'?",
        "web.yaml:5:15: ports.http: 99999 is not between 1 and 65535",
        "web.yaml:6:23: health.http.port: no such port: 'htp'; did you mean 'http'?",
        "web.yaml:6:36: health.every: '5' has no unit; write ms, s, m, h or d, for example 5s",
        "web.yaml:11:16: stop.signal: 'KILL' is not a signal that ends a program; did you mean 'SIGKILL'?",
    ]


def test_a_port_that_is_wrong_makes_no_second_mistake_of_those_who_name_it():
    told = mistakes(
        f"{SMALL}ports: {{http: 99999}}\nhealth: {{http: {{port: http}}}}\nenv: {{A: '{{port.http}}'}}\n"
    )
    assert told == ["web.yaml:4:15: ports.http: 99999 is not between 1 and 65535"]


def test_a_bomb_of_aliases_is_refused_before_it_unfolds():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (told,) = mistakes("\n".join(lines))
    assert told == (
        "web.yaml:1:37: the document has too many values (aliases count as their content) (here: x)"
    )


def test_a_file_of_more_than_a_mebibyte_is_refused(tmp_path):
    file = tmp_path / "large.yaml"
    file.write_bytes(b"# " + b"x" * 2**20)
    with pytest.raises(ManifestErrors) as caught:
        load([str(file)])
    assert str(caught.value) == f"{file}: the file is larger than 1 MiB; split it into several files"


def test_more_than_a_thousand_documents_are_refused():
    text = "".join(f"---\nkind: service\nname: s{n}\ncommand: [x]\n" for n in range(1_001))
    assert mistakes(text) == ["web.yaml:4002:1: more than 1,000 documents in the file; split it"]


def test_two_files_cannot_speak_of_the_same_service(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(SMALL)
    with pytest.raises(ManifestErrors) as caught:
        load([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])
    assert str(caught.value) == (
        f"{tmp_path}/b.yaml:2:7: name: the service 'web' is already defined in {tmp_path}/a.yaml:2"
    )


def test_one_file_given_twice_is_a_duplicate_too(tmp_path):
    (tmp_path / "a.yaml").write_text(SMALL)
    with pytest.raises(ManifestErrors):
        load([str(tmp_path / "a.yaml")] * 2)


def test_files_that_cannot_be_read_are_told_beside_the_mistakes_of_the_others(tmp_path):
    (tmp_path / "bad.yaml").write_text(f"{SMALL}x: 1\n")
    (tmp_path / "latin.yaml").write_bytes(b"kind: \xe9\n")
    paths = [str(tmp_path / name) for name in ("none.yaml", "latin.yaml", "bad.yaml")] + [str(tmp_path)]
    with pytest.raises(ManifestErrors) as caught:
        load(paths)
    first, second, third, fourth = str(caught.value).splitlines()
    assert first == f"{paths[0]}: cannot read the file: No such file or directory"
    assert second == f"{paths[1]}: the file is not UTF-8 text (invalid at byte 6)"
    assert third == f"{tmp_path}: cannot read the file: Is a directory"
    assert fourth.startswith(f"{paths[2]}:4:1: x: unknown key")


def test_a_thousand_mistakes_are_counted_and_not_all_shown():
    text = SMALL + "".join(f"x{n}: 1\n" for n in range(1_000))
    assert mistakes(text)[-1] == "and 900 more"


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("exclusive: yes", "web.yaml:4:12: exclusive: must be true or false, not 'yes'"),
        ("exclusive: 1", "web.yaml:4:12: exclusive: must be true or false, not '1'"),
        ("drift: repot", "web.yaml:4:8: drift: invalid value 'repot'; did you mean 'report'?"),
        ("drift: [report]", "web.yaml:4:8: drift: must be a single value, not a list"),
        (
            "max_age: 30days",
            (
                "web.yaml:4:10: max_age: unknown unit 'days'; "
                "write ms, s, m, h or d, for example 30d (here: 30days)"
            ),
        ),
        (
            "max_age: 0s",
            ("web.yaml:4:10: max_age: must be greater than 0; remove it for no age limit (here: 0s)"),
        ),
        ("max_age: 4000d", "web.yaml:4:10: max_age: must be between 1s and 3650d (here: 4000d)"),
        ("max_age: 1ms", "web.yaml:4:10: max_age: must be between 1s and 3650d (here: 1ms)"),
    ],
)
def test_mistakes_about_age_drift_and_exclusion_are_told_at_their_place(written, complaint):
    assert mistakes(f"{SMALL}{written}\n") == [complaint]


def test_an_age_is_told_in_days_or_hours():
    (days,), (hours,) = parse(f"{SMALL}max_age: 1.5d\n", "a"), parse(f"{SMALL}max_age: 12h\n", "a")
    assert (days.max_age_seconds, hours.max_age_seconds) == (129_600.0, 43_200.0)


def test_what_is_not_the_spec_can_change_without_a_new_digest():
    (plain,), (kept,) = parse(SMALL, "a"), parse(f"{SMALL}max_age: 12h\ndrift: report\n", "a")
    (exclusive,) = parse(f"{SMALL}exclusive: true\n", "a")
    assert digest_of(plain.spec) == digest_of(kept.spec)
    assert digest_of(plain.spec) != digest_of(exclusive.spec)
