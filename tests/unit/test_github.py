"""What the hosting reads: the workflow of the gate and the forms of issues."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.y*ml") if path.stem != "config")
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")


def read(path):
    return YAML(typ="safe").load(path)


def named(paths):
    return [pytest.param(path, id=path.stem) for path in paths]


def steps(workflow):
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", named(WORKFLOWS))
def test_a_workflow_may_read_and_nothing_else(workflow):
    assert read(workflow)["permissions"] == {"contents": "read"}
    assert [job for job in read(workflow)["jobs"].values() if "permissions" in job] == []


@pytest.mark.parametrize("workflow", named(WORKFLOWS))
def test_an_action_is_pinned_by_its_commit(workflow):
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert [one for one in used if not PINNED.fullmatch(one)] == []


@pytest.mark.parametrize("workflow", named(WORKFLOWS))
def test_a_job_ends_some_time_and_keeps_no_credentials(workflow):
    assert [name for name, job in read(workflow)["jobs"].items() if "timeout-minutes" not in job] == []
    checkouts = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout@")]
    assert [step for step in checkouts if step["with"]["persist-credentials"] is not False] == []


def test_the_gate_is_run_for_each_change_with_the_whole_history():
    workflow = ROOT / ".github/workflows/check.yaml"
    # YAML 1.1 reads the key `on` as a truth value, YAML 1.2 as the word.
    assert {"push", "pull_request"} <= set(read(workflow)["on"])
    assert [step["run"] for step in steps(workflow) if step.get("run") == ".ci/run"] == [".ci/run"]
    (checkout,) = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"]["fetch-depth"] == 0


@pytest.mark.parametrize("form", named(FORMS))
def test_a_form_has_what_the_hosting_needs(form):
    told = read(form)
    assert all(told[key] for key in ("name", "description", "body"))
    questions = [part for part in told["body"] if part["type"] != "markdown"]
    ids = [part["id"] for part in questions]
    assert len(ids) == len(set(ids))
    assert [part for part in questions if not part["attributes"].get("label")] == []
    assert any(part.get("validations", {}).get("required") for part in questions)


def test_there_are_forms():
    assert {form.stem for form in FORMS} == {"bug", "idea"}
