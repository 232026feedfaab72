"""The cloud provider with Libcloud's EC2 driver, against an EC2 on loopback."""

import asyncio
import base64
import json
import socket
import threading

import pytest
from libcloud.compute.providers import get_driver
from ruamel.yaml import YAML

from galactica.scheduler.core.model.commands import DecommissionServer, OrderServer
from galactica.scheduler.core.model.spec import RuntimeKind, ServerBody, Spec
from galactica.scheduler.core.sight.observations import (
    ProviderServer,
    ProviderState,
    ServerMade,
    ServerUnmade,
)
from galactica.scheduler.providers.cloud import provider as cloud_module
from galactica.scheduler.providers.port import ProviderRefused, ProviderUnavailable, Setting
from tests.support.ec2 import ec2
from tests.support.provider_world import CELL, ListeningMind, body, runner_with, user_data

SERVER = '{"image": "ami-03cf127a", "size": "t3.micro"}'


@pytest.fixture(scope="module")
def cloud():
    with ec2() as settings:
        yield settings


@pytest.fixture
def fleet(request):
    """Tests share a cloud and nothing else."""
    return f"t{abs(hash(request.node.name)) % 10**9}"


@pytest.fixture
async def provider(cloud, fleet, tmp_path):
    made = provider_of(cloud, fleet, tmp_path)
    yield made
    await made.close()


def provider_of(settings, fleet, tmp_path, **options):
    keys = tmp_path / "keys.json"
    keys.write_text('{"key": "AKIA-test", "secret": "s3cr3t"}')
    keys.chmod(0o600)
    given = {"driver": "ec2", "settings": settings, "credentials": str(keys), "timeout": 10, **options}
    return cloud_module.make(Setting("aws", fleet, tmp_path / "data", given))


def driver_of(settings):
    return get_driver("ec2")("AKIA-test", "s3cr3t", **settings)


def nodes_of(settings, fleet):
    return [
        node
        for node in driver_of(settings).list_nodes()
        if node.extra["tags"].get("galactica-fleet") == fleet
    ]


async def test_ordered_node_has_name_tags_and_user_data_that_begins_its_agent(cloud, fleet, provider):
    ref = await provider.order(CELL, body(SERVER), user_data())
    (node,) = nodes_of(cloud, fleet)
    assert (node.id, node.name, node.extra["instance_type"]) == (ref, f"{fleet}-pool-0-1", "t3.micro")
    assert node.extra["tags"]["galactica-cell"] == CELL
    assert await provider.list() == (ProviderServer(CELL, ref, ProviderState.RUNNING),)
    asked = {"Action": "DescribeInstanceAttribute", "InstanceId": ref, "Attribute": "userData"}
    answer = driver_of(cloud).connection.request("/", params=asked).object
    text = base64.b64decode(next(one.text for one in answer.iter() if one.tag.endswith("value"))).decode()
    files = {one["path"]: one["content"] for one in YAML(typ="safe").load(text)["write_files"]}
    assert files["/etc/galactica/agent.env"] == "GALACTICA_TOKEN=gal1.secret\n"
    assert "--id pool/0.1" in files["/opt/galactica/begin"]


async def test_repeated_order_makes_no_second_node(cloud, fleet, provider, tmp_path):
    """Not at once, not later, and not by a scheduler that knows nothing of the first."""
    another = provider_of(cloud, fleet, tmp_path)
    refs = await asyncio.gather(*[provider.order(CELL, body(SERVER), user_data()) for _ in range(4)])
    refs.append(await another.order(CELL, body(SERVER), user_data()))
    await another.close()
    assert len(set(refs)) == 1
    assert [node.id for node in nodes_of(cloud, fleet)] == [refs[0]]


async def test_decommission_waits_for_an_order_that_nobody_waits_for_any_more(fleet, tmp_path):
    """Else the node would be made after it was looked for in vain."""
    asked, go = threading.Event(), threading.Event()

    def before(action):
        if action == "RunInstances":
            asked.set()
            go.wait(20)

    with ec2(before) as cloud:
        provider = provider_of(cloud, fleet, tmp_path, timeout=30)
        order = asyncio.ensure_future(provider.order(CELL, body(SERVER), user_data()))
        assert await asyncio.to_thread(asked.wait, 20)
        order.cancel()
        decommission = asyncio.ensure_future(provider.decommission("", CELL))
        done, _ = await asyncio.wait([order, decommission], return_when=asyncio.FIRST_COMPLETED)
        assert (done, order.cancelled()) == ({order}, True)
        go.set()
        async with asyncio.timeout(20):
            await decommission
        assert [one.state for one in await provider.list()] == [ProviderState.GONE]
        await provider.close()


async def test_nodes_are_told_apart_by_fleet_and_those_of_others_are_left_alone(
    cloud, fleet, provider, tmp_path
):
    other = provider_of(cloud, fleet + "x", tmp_path)
    ref = await other.order(CELL, body(SERVER), user_data())
    assert await provider.list() == ()
    await provider.decommission(ref, CELL)
    assert await other.list() == (ProviderServer(CELL, ref, ProviderState.RUNNING),)
    await other.close()


async def test_decommissioned_node_is_terminated_and_shown_as_gone(cloud, fleet, provider):
    ref = await provider.order(CELL, body(SERVER), user_data())
    for _ in range(2):
        await provider.decommission(ref, CELL)
        gone = ProviderServer(CELL, ref, ProviderState.GONE, "state at the cloud: terminated")
        assert await provider.list() == (gone,)
    await provider.decommission("", "pool/9.9")


async def test_node_that_somebody_stopped_is_gone(cloud, fleet, provider):
    ref = await provider.order(CELL, body(SERVER), user_data())
    (node,) = nodes_of(cloud, fleet)
    driver_of(cloud).stop_node(node)
    assert await provider.list() == (
        ProviderServer(CELL, ref, ProviderState.GONE, "state at the cloud: stopped"),
    )
    assert await provider.order(CELL, body(SERVER), user_data()) == ref


async def test_runner_orders_finds_and_decommissions_nodes(cloud, fleet, tmp_path):
    mind = ListeningMind()
    provider = provider_of(cloud, fleet, tmp_path)
    cells = [f"pool/{slot}.1" for slot in range(5)]
    spec = Spec(RuntimeKind.SERVER, server=ServerBody("it", SERVER))
    async with runner_with(
        provider, mind, [OrderServer("it", cell, spec, "gal1.x") for cell in cells]
    ) as runner:
        await mind.until(lambda: len(mind.of(ServerMade)) == 5)
        await mind.until(lambda: mind.listed and len(mind.listed) == 5)
        refs = {one.server: one.ref for one in mind.of(ServerMade)}
        assert {one.cell: one.ref for one in mind.listed} == refs
        runner.send([DecommissionServer("it", cell, refs[cell], "old") for cell in cells])
        await mind.until(lambda: len(mind.of(ServerUnmade)) == 5)
        await mind.until(lambda: {one.state for one in mind.listed} == {ProviderState.GONE})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": "t3.mirco"}, "the cloud has no size 't3.mirco'; it has for example t3.micro"),
        ({"location": "us-east-1q"}, "the cloud has no location 'us-east-1q'; it has for example us-east-1"),
        (
            {"arguments": {"ex_colour": "red"}},
            r"the driver does not have the arguments ex_colour \(it has: ex_keyname",
        ),
        (
            {"arguments": {"ex_userdata": "x"}},
            "ex_userdata: not allowed; give only the driver's own arguments",
        ),
        (
            {"arguments": {"ex_security_group_ids": ["sg-1"]}},
            "the driver does not accept these arguments: .*ex_subnet",
        ),
        ({"colour": 1}, "the pool's server: colour: Extra inputs"),
    ],
)
async def test_wrong_body_is_refused_for_good(cloud, fleet, provider, change, says):
    with pytest.raises(ProviderRefused, match=says):
        await provider.order(CELL, body(json.dumps({**json.loads(SERVER), **change})), user_data())
    assert nodes_of(cloud, fleet) == []


async def test_what_the_cloud_itself_refuses_is_final(provider):
    arguments = {"ex_security_group_ids": ["sg-nonesuch"], "ex_subnet": {"id": "subnet-nonesuch"}}
    text = json.dumps({**json.loads(SERVER), "arguments": arguments})
    with pytest.raises(ProviderRefused, match=r"the cloud refused the request \(400\).*nonesuch"):
        await provider.order(CELL, body(text), user_data())


async def test_cloud_that_does_not_answer_is_unavailable_and_bounded_in_time(fleet, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        settings = {"host": "127.0.0.1", "port": deaf.getsockname()[1], "secure": False}
        provider = provider_of(settings, fleet, tmp_path, timeout=0.3)
        async with asyncio.timeout(10):
            with pytest.raises(ProviderUnavailable, match="the request to the cloud failed"):
                await provider.list()
        await provider.close()


async def test_cloud_that_is_not_there_is_unavailable(fleet, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    provider = provider_of({"host": "127.0.0.1", "port": port, "secure": False}, fleet, tmp_path)
    with pytest.raises(ProviderUnavailable, match="the request to the cloud failed"):
        await provider.list()
    await provider.close()


async def test_credentials_are_in_no_message(cloud, fleet, tmp_path, capfd):
    provider = provider_of({**cloud, "port": 1}, fleet, tmp_path)
    with pytest.raises(ProviderUnavailable) as error:
        await provider.order(CELL, body(SERVER), user_data())
    said = str(error.value) + "".join(capfd.readouterr())
    assert "s3cr3t" not in said
    assert "gal1.secret" not in said
    await provider.close()
