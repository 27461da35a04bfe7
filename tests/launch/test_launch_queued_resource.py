"""launch/queued_resource.sh against a fake gcloud: a resource that can be taken away."""

import os
import signal

import pytest

FLAGS = [
    "--name=acid",
    "--zone=z",
    "--accelerator-type=v6e-16",
    "--runtime-version=v2-tpuv6e",
    "--config=configs/acid_b16.py",
    "--workdir=gs://b/run",
    "--poll=0.02",
    "--backoff=0",
    "--settle=0",
    "--attempts=1",
]
DELETE = "gcloud compute tpus queued-resources delete acid --zone=z --force --quiet"
NONE = {"code": 1, "err": "ERROR: NOT_FOUND: Resource 'acid' was not found\n"}


def states(world, *answers, nodes=("READY",)):
    """Of the queued resource, one at each look; NONE is "not found"; and of its node."""
    typed = [f"{a}\tv6e-16" if isinstance(a, str) else a for a in answers]
    world.answer("--format=value(state.state", *typed)
    world.answer("tpu-vm describe", *nodes)


def the_run(world, *codes):
    world.answer("tpu_worker.sh follow", *[{"code": code} for code in codes])


def verbs(world) -> list[str]:
    """What was done to the resource, and when the run was started."""
    done = []
    for call in world.calls("gcloud"):
        if "queued-resources" in call and "describe" not in call:
            done.append(call[4])
        elif "tpu_worker.sh start" in call[-1]:
            done.append("start")
    return done


def test_waits_runs_and_says_how_to_delete(world):
    states(world, NONE, "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    result = world.launch("queued_resource.sh", *FLAGS, "--spot")
    assert result.code == 0, result.text
    assert verbs(world) == ["create", "start"]
    (create,) = world.calls("queued-resources create")
    assert create[4:6] == ["create", "acid"]
    assert set(create[6:]) == {
        "--zone=z",
        "--node-id=acid",
        "--accelerator-type=v6e-16",
        "--runtime-version=v2-tpuv6e",
        "--spot",
    }
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert result.text.count(f"acid is {state}") == 1
    assert "# costs money: v6e-16" in result.text
    assert "still costs money" in result.text
    assert DELETE in result.text


def test_delete_after(world):
    states(world, NONE, "ACTIVE", NONE)
    result = world.launch("queued_resource.sh", *FLAGS, "--delete-after")
    assert result.code == 0, result.text
    assert verbs(world) == ["create", "start", "delete"]
    assert "costs nothing any more" in result.text


def test_dry_run_prints_the_calls_of_the_real_run(world):
    states(world, NONE, "ACTIVE", NONE)
    flags = [*FLAGS, "--reserved", "--project=p", "--env=A=b c", "--internal-ip"]
    flags += ["--delete-after", "--network=n"]
    dry = world.launch("queued_resource.sh", *flags, "--dry-run", "--", "--x=a 'b'")
    assert not world.calls()
    real = world.launch("queued_resource.sh", *flags, "--", "--x=a 'b'")
    assert real.code == 0, real.text
    assert [words for words in dry.printed if words[0] == "gcloud"] == world.calls()


def test_preempted_in_the_middle_goes_on_with_the_same_command(world):
    states(world, NONE, "ACTIVE", NONE, NONE, "PROVISIONING", "ACTIVE")
    the_run(world, 42, 0)
    result = world.launch("queued_resource.sh", *FLAGS, "--", "--x=a b")
    assert result.code == 0, result.text
    assert verbs(world) == ["create", "start", "delete", "create", "start"]
    first, second = world.calls("tpu_worker.sh start")
    assert first == second
    assert "Restart 1 of 50 in 0 s; it goes on from gs://b/run." in result.text


def test_a_create_after_a_preemption_is_tried_again(world):
    """Quota is not released at once, and gcloud has bad moments: flags that worked are right."""
    states(world, NONE, "ACTIVE", NONE, NONE, NONE, NONE, NONE, "ACTIVE")
    the_run(world, 42, 0)
    refused = {"code": 1, "err": "ERROR: RESOURCE_EXHAUSTED: Quota limit has been exceeded\n"}
    world.answer("queued-resources create", {"code": 0}, refused, {"code": 0})
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 0, result.text
    assert verbs(world) == ["create", "start", "delete", "create", "delete", "create", "start"]
    assert "could not create acid again just now" in result.text
    assert "Restart 2 of 50" in result.text


@pytest.mark.parametrize("gone", ["SUSPENDING", "SUSPENDED", "FAILED"])
def test_the_state_tells_what_the_broken_connection_does_not(world, gone):
    """ssh breaks first; the state follows some looks later."""
    states(world, NONE, "ACTIVE", "ACTIVE", gone, NONE, NONE, "ACTIVE")
    the_run(world, 255, 0)
    result = world.launch("queued_resource.sh", *FLAGS, "--settle=30")
    assert result.code == 0, result.text
    assert verbs(world) == ["create", "start", "delete", "create", "start"]
    assert f"acid is {gone}." in result.text


def test_a_preempted_node_of_an_active_resource(world):
    looks = [NONE, "ACTIVE", "ACTIVE", NONE, NONE, "ACTIVE"]
    states(world, *looks, nodes=["READY", "PREEMPTED", "READY"])
    the_run(world, 134, 0)
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 0, result.text
    assert "The node is PREEMPTED." in result.text


def test_a_real_error_stops(world):
    states(world, NONE, "ACTIVE")
    the_run(world, 3)
    world.answer("tpu_worker.sh code", {"out": "ConfigError: no such key\n", "code": 3})
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 3
    assert verbs(world) == ["create", "start"]
    assert "ConfigError: no such key" in result.text
    assert "the run itself failed, with code 3" in result.text
    assert DELETE in result.text


def test_a_real_error_deletes_if_told_so(world):
    states(world, NONE, "ACTIVE", "ACTIVE", NONE)
    the_run(world, 3)
    result = world.launch("queued_resource.sh", *FLAGS, "--delete-after")
    assert result.code == 3
    assert verbs(world) == ["create", "start", "delete"]


def test_no_connection_to_an_active_resource_deletes_nothing(world):
    """The run may be going on."""
    states(world, NONE, "ACTIVE")
    the_run(world, 255)
    result = world.launch("queued_resource.sh", *FLAGS, "--delete-after")
    assert result.code == 255
    assert verbs(world) == ["create", "start"]
    assert "costs money; the run may be going on" in result.text


QUOTA = {"code": 1, "err": "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV6E' exceeded.\n"}


def test_quota_denied(world):
    states(world, NONE)
    world.answer("queued-resources create", QUOTA)
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 1
    assert verbs(world) == ["create"]
    assert "Quota limit 'TPUV6E' exceeded." in result.text
    assert "no quota for v6e-16 in z" in result.text
    assert "Nothing was created: it costs nothing." in result.text


def test_a_failed_create_leaves_nothing_half_made(world):
    states(world, NONE, "FAILED", NONE)
    world.answer("queued-resources create", QUOTA)
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 1
    assert verbs(world) == ["create", "delete"]
    assert "The failed create left acid in state FAILED: it is deleted." in result.text


def test_quota_denied_later(world):
    states(world, NONE, "ACCEPTED", "FAILED", NONE)
    world.answer("value(state.failedData", "Quota exceeded for TPUs in zone z")
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 1
    assert verbs(world) == ["create", "delete"]
    assert "acid has FAILED: Quota exceeded for TPUs in zone z" in result.text


def test_another_failure_to_create_shows_what_gcloud_said(world):
    states(world, NONE)
    world.answer("queued-resources create", {"code": 2, "err": "ERROR: no such runtime version\n"})
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 2
    assert "ERROR: no such runtime version" in result.text
    assert "quota" not in result.text


@pytest.mark.parametrize("state", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
def test_a_create_that_was_cut_off_is_adopted(world, state):
    states(world, state, "ACTIVE")
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 0, result.text
    assert verbs(world) == ["start"]
    assert f"acid is there already, {state}: it is adopted." in result.text


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "SUSPENDING"])
def test_a_dead_one_is_replaced(world, state):
    states(world, state, NONE, "ACTIVE")
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 0, result.text
    assert verbs(world) == ["delete", "create", "start"]


def test_one_of_another_type_is_left_alone(world):
    states(world, {"out": "ACTIVE\tv5litepod-8\n"})
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 1
    assert verbs(world) == []
    assert "is a v5litepod-8, not a v6e-16" in result.text


def test_deleted_by_someone_else_is_not_created_again(world):
    states(world, NONE, "WAITING_FOR_RESOURCES", NONE)
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 1
    assert verbs(world) == ["create"]
    assert "deleted by someone else" in result.text


def test_restarts_end(world):
    states(world, *[NONE, "ACTIVE", NONE] * 3)
    the_run(world, 42)
    result = world.launch("queued_resource.sh", *FLAGS, "--max-restarts=2")
    assert result.code == 42
    assert verbs(world) == ["create", "start", "delete"] * 3
    assert "preempted 3 times, more than --max-restarts" in result.text


def test_waiting_for_capacity_ends_and_takes_the_request_back(world):
    answers = ["WAITING_FOR_RESOURCES"] * 3
    states(world, NONE, *answers, NONE)
    result = world.launch("queued_resource.sh", *FLAGS, "--wait-timeout=0")
    assert result.code == 1
    assert verbs(world)[:2] == ["create", "delete"]
    assert "wait longer with --wait-timeout" in result.text


def test_a_delete_is_tried_again_until_it_is_gone(world):
    states(world, "SUSPENDING", "SUSPENDING", "SUSPENDED", NONE, "ACTIVE")
    world.answer("queued-resources delete", {"code": 1, "err": "FAILED_PRECONDITION\n"}, "", "")
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 0, result.text
    assert verbs(world) == ["delete", "delete", "delete", "create", "start"]


def test_a_look_that_fails_in_a_long_wait_is_no_end(world):
    states(world, NONE, "PROVISIONING", {"code": 1, "err": "503 try later\n"}, "ACTIVE")
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 0, result.text
    assert "Cannot look at acid just now: 503 try later" in result.text


def test_a_first_look_that_fails_is_the_end(world):
    states(world, {"code": 1, "err": "ERROR: You do not currently have an active account.\n"})
    result = world.launch("queued_resource.sh", *FLAGS)
    assert result.code == 1
    assert "do not currently have an active account" in result.text
    assert "gcloud auth login" in result.text
    assert verbs(world) == []


@pytest.mark.parametrize("moment", ["queued-resources create", "tpu_worker.sh follow"])
def test_ctrl_c_tells_what_costs_and_how_to_delete(world, moment):
    states(world, NONE, "ACTIVE")
    world.answer(moment, {"seconds": 30})
    launcher = world.start("queued_resource.sh", *FLAGS, "--delete-after")
    world.wait_for_call(moment)
    os.killpg(launcher.pid, signal.SIGINT)
    result = world.finish(launcher, timeout=10)
    assert result.code == 130
    assert "it costs money" in result.text
    assert DELETE in result.text
    assert "delete" not in verbs(world)


def test_status_and_delete(world):
    states(world, "ACTIVE", NONE)
    status = world.launch("queued_resource.sh", "status", "--name=acid", "--zone=z")
    assert "acid is ACTIVE, v6e-16." in status.text
    assert DELETE in status.text
    result = world.launch("queued_resource.sh", "delete", "--name=acid", "--zone=z")
    assert result.code == 0
    assert [" ".join(call) for call in world.calls("queued-resources delete")] == [DELETE]


def test_spot_and_reserved(world):
    result = world.launch("queued_resource.sh", *FLAGS, "--spot", "--reserved")
    assert result.code == 2
    assert "exclude each other" in result.text
