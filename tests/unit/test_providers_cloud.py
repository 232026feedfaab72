"""The cloud provider's pure parts: user data, credentials, names, and what failures mean."""

import subprocess

import pytest
from libcloud.common.exceptions import BaseHTTPError, RateLimitReachedError
from libcloud.common.types import InvalidCredsError
from ruamel.yaml import YAML

from galactica.scheduler.core.model.spec import RuntimeKind
from galactica.scheduler.providers.cloud import user_data as cloud_init
from galactica.scheduler.providers.cloud.credentials import Credentials, CredentialsError, read_credentials
from galactica.scheduler.providers.cloud.nodes import Names
from galactica.scheduler.providers.cloud.provider import failure_of, make
from galactica.scheduler.providers.port import ProviderRefused, ProviderUnavailable, Setting
from tests.support.provider_world import user_data

AWKWARD = {"zone": "a b", "quote": 'it\'s "so": #1', "path": "$HOME/`x`", "place": "${install}"}


def test_user_data_is_yaml_that_installs_an_agent_and_begins_it():
    text = cloud_init.render(user_data(labels=AWKWARD), None, "galactica[docker,enrol]==1.0")
    assert text.startswith("#cloud-config\n")
    content = YAML(typ="safe").load(text)
    files = {one["path"]: one for one in content["write_files"]}
    assert files["/etc/galactica/agent.env"]["content"] == "GALACTICA_TOKEN=gal1.secret\n"
    assert files["/etc/galactica/agent.env"]["permissions"] == "0600"
    assert ["/opt/galactica/bin/pip", "install", "galactica[docker,enrol]==1.0"] in content["runcmd"]
    unit = files["/etc/systemd/system/galactica-agent.service"]["content"].splitlines()
    assert {"ExecStart=/opt/galactica/begin", "StartLimitIntervalSec=0", "KillMode=process"} <= set(unit)


def test_the_agent_is_begun_with_exactly_the_words_that_were_meant(tmp_path):
    agent = tmp_path / "galactica-agent"
    agent.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    agent.chmod(0o755)
    given = user_data(labels=AWKWARD, runtimes=(RuntimeKind.DOCKER,))
    script = cloud_init.begin_script(given).replace("/opt/galactica/bin/galactica-agent", str(agent))
    done = subprocess.run(["/bin/sh"], input=script, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert words[:3] == ["--data", "/var/lib/galactica-agent", "--host"]
    assert words[4:] == given.agent_arguments()


def test_an_operators_own_template_may_leave_places_out(tmp_path):
    template = tmp_path / "own.yaml"
    template.write_text("#cloud-config\nrun: ${begin}\nshell: ${PATH}\n")
    content = YAML(typ="safe").load(cloud_init.render(user_data(), template, "x"))
    assert content == {"run": cloud_init.begin_script(user_data()), "shell": "${PATH}"}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BaseHTTPError(400, "InvalidAMIID.NotFound: no such image"), ProviderRefused),
        (BaseHTTPError(400, "VcpuLimitReached: you may have 5"), ProviderRefused),
        (BaseHTTPError(404, "no such size"), ProviderRefused),
        (BaseHTTPError(400, "Throttling: slower"), ProviderUnavailable),
        (BaseHTTPError(400, "RequestLimitExceeded"), ProviderUnavailable),
        (BaseHTTPError(400, "InsufficientInstanceCapacity"), ProviderUnavailable),
        (BaseHTTPError(403, "not now"), ProviderUnavailable),
        (RateLimitReachedError(), ProviderUnavailable),
        (BaseHTTPError(503, "later"), ProviderUnavailable),
        (InvalidCredsError("who are you"), ProviderUnavailable),
        (TimeoutError(), ProviderUnavailable),
        (NotImplementedError("create_node not implemented for this driver"), ProviderRefused),
        (KeyError("garbage"), ProviderUnavailable),
    ],
)
def test_failures_are_final_or_not(error, kind):
    assert type(failure_of(error)) is kind


def test_name_that_is_too_long_for_a_host_is_refused():
    with pytest.raises(ProviderRefused, match=r"limit: 63 characters\): give the pool a shorter name"):
        Names("galactica", "0123456789abcdef").name(f"{'p' * 55}/0.1")


def test_credentials_come_from_a_private_file_or_from_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "keys.json"
    path.write_text('{"key": "a", "secret": "b"}')
    path.chmod(0o600)
    assert read_credentials(path, "aws") == Credentials("a", "b")
    monkeypatch.setenv("GALACTICA_PROVIDER_MY_AWS_KEY", "c")
    monkeypatch.setenv("GALACTICA_PROVIDER_MY_AWS_SECRET", "d")
    assert read_credentials(None, "my-aws") == Credentials("c", "d")
    assert "c" not in repr(Credentials("cc", "dd")).removeprefix("Credentials")


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ('{"key": "a", "secret": "b"}', 0o640, "other users can read the credentials .*: run chmod 600"),
        ("a:b", 0o600, "invalid credentials"),
        ('{"key": 7}', 0o600, "invalid credentials"),
        (None, 0, "cannot read the credentials .*: No such file"),
    ],
)
def test_credentials_that_lie_open_or_are_none_are_refused_at_the_start(tmp_path, text, mode, says):
    path = tmp_path / "keys.json"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(CredentialsError, match=says):
        read_credentials(path, "aws")
    with pytest.raises(ProviderRefused, match=says):
        make(Setting("aws", "f", tmp_path, {"driver": "ec2", "credentials": str(path)}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"driver": "ec3"}, "Libcloud has no compute driver 'ec3'"),
        ({"driver": "ec2", "settings": {"secret": "x"}}, "secret: put secrets into the credentials' file"),
        ({"driver": "ec2", "sttings": {}}, "sttings: Extra inputs are not permitted"),
        ({"driver": "ec2"}, "set GALACTICA_PROVIDER_AWS_KEY and GALACTICA_PROVIDER_AWS_SECRET"),
    ],
)
def test_wrong_configuration_is_refused_at_the_start(tmp_path, options, says):
    with pytest.raises(ProviderRefused, match=says):
        make(Setting("aws", "f", tmp_path, options))
