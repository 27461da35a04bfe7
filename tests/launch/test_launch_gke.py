"""launch/gke.sh against a fake kubectl, and the JobSet that it submits."""

import os
import re
import signal

import pytest

yaml = pytest.importorskip("yaml")

FLAGS = [
    "--name=acid",
    "--image=host/repo/aced:1",
    "--accelerator=tpu-v6e-slice",
    "--topology=4x4",
    "--config=configs/acid_b16.py",
    "--workdir=gs://b/run",
    "--poll=0.02",
]
PODS = "pod/a\npod/b\npod/c\npod/d"


def states(world, *answers):
    """Of the JobSet, one at each look; "" is "there is none"."""
    world.answer("get jobset acid --ignore-not-found", *answers)


def the_manifest(world, *flags) -> dict:
    result = world.launch("gke.sh", "--dry-run", *flags)
    assert result.code == 0, result.text
    return yaml.safe_load((world.folder / "repo" / "build" / "launch" / "acid.yaml").read_text())


def test_the_jobset(world):
    jobset = the_manifest(world, *FLAGS)
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset["kind"] == "JobSet"
    assert jobset["metadata"]["name"] == "acid"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    # 4x4 chips, 4 a host.
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (1, 4, 4)
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["image"] == "host/repo/aced:1"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["resources"]["requests"] == {"google.com/tpu": 4}
    assert container["command"] == [
        "python",
        "-m",
        "aced.main",
        "--distributed",
        "--config=configs/acid_b16.py",
        "--workdir=gs://b/run",
    ]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {mounts[volume["name"]] for volume in pod["volumes"]} == {"/dev/shm"}


def test_what_is_restarted(world):
    """By Kubernetes' rules: 42, signals and lost nodes restart the set; other codes fail it."""
    jobset = the_manifest(world, *FLAGS, "--max-restarts=7")
    (rule,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert rule["onExitCodes"]["containerName"] == "aced"
    restarted = set(rule["onExitCodes"]["values"])
    assert {42, 134, 137, 143} <= restarted
    assert restarted.isdisjoint({0, 1, 2, 3, 41, 43, 127, 256})
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]


def test_spot_and_other_shapes(world):
    flags = [*FLAGS[:2], "--accelerator=tpu-v5-lite-podslice", "--topology=2x4", *FLAGS[4:]]
    flags += ["--chips-per-host=8", "--spot", "--grace=25", "--service-account=robot"]
    (replicated,) = the_manifest(world, *flags)["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert replicated["template"]["spec"]["parallelism"] == 1
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["terminationGracePeriodSeconds"] == 25
    assert pod["serviceAccountName"] == "robot"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 8}


def test_words_survive_yaml_and_kubernetes(world):
    words = ["--a=two words", '--b=it\'s "quoted"', "--c=$(HOME) $x", "--d=a\\nb: {&", "--é=\t1"]
    jobset = the_manifest(world, *FLAGS, "--env=A=b c", "--", *words)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    # Kubernetes reads $$ as $, and $(NAME) as a variable.
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", word) for word in command)
    assert [word.replace("$$", "$") for word in command][-len(words) :] == words
    assert command[:3] == ["env", "A=b c", "python"]


def test_run_to_the_end(world):
    states(world, "", "RUNNING  0", "RUNNING  0", "RUNNING  1", "RUNNING Completed 1")
    world.answer("get pods", "pod/a", PODS)
    result = world.launch("gke.sh", *FLAGS)
    assert result.code == 0, result.text
    assert len(world.calls("create")) == 1
    assert "1 of 4 pods run." in result.text
    assert "4 of 4 pods run." in result.text
    assert "acid is RUNNING, restarted 1 times." in result.text
    assert "acid is Completed, restarted 1 times." in result.text
    assert "# costs money: 4 hosts with 4 chips" in result.text
    assert "kubectl --namespace=default delete jobset acid" in result.text
    assert not world.calls("delete")


def test_dry_run_prints_the_calls_of_the_real_run(world):
    states(world, "", "RUNNING Completed 0")
    world.answer("get pods", PODS)
    flags = [*FLAGS, "--context=c d", "--namespace=n", "--delete-after"]
    dry = world.launch("gke.sh", *flags, "--dry-run")
    assert not world.calls()
    real = world.launch("gke.sh", *flags)
    assert real.code == 0, real.text
    assert dry.printed == world.calls()


def test_a_run_that_failed_shows_its_log(world):
    states(world, "", "RUNNING  0", "RUNNING Failed 0")
    world.answer("get pods", PODS)
    world.answer("logs", "ConfigError: no such key")
    result = world.launch("gke.sh", *FLAGS)
    assert result.code == 1
    assert "ConfigError: no such key" in result.text
    assert "acid has failed" in result.text


def test_one_of_that_name_is_there(world):
    states(world, "RUNNING  3")
    result = world.launch("gke.sh", *FLAGS)
    assert result.code == 1
    assert "a JobSet acid is there already, RUNNING" in result.text
    assert not world.calls("create")


def test_refused(world):
    states(world, "")
    world.answer("create", {"code": 1, "err": 'error: no matches for kind "JobSet"\n'})
    result = world.launch("gke.sh", *FLAGS)
    assert result.code == 1
    assert 'no matches for kind "JobSet"' in result.text
    assert "Nothing was submitted: it costs nothing." in result.text
    assert "the JobSet controller is missing" in result.text


def test_pods_that_find_no_node(world):
    states(world, "", "RUNNING  0")
    world.answer("get pods", "pod/a")
    world.answer("get events", "0/9 nodes are available: insufficient google.com/tpu")
    result = world.launch("gke.sh", *FLAGS, "--start-timeout=0")
    assert result.code == 1
    assert "insufficient google.com/tpu" in result.text
    assert "only 1 of 4 pods run" in result.text
    assert "delete jobset acid" in result.text


def test_a_cluster_that_is_not_reached(world):
    states(world, {"code": 1, "err": "Unable to connect to the server\n"})
    result = world.launch("gke.sh", *FLAGS)
    assert result.code == 1
    assert "Unable to connect to the server" in result.text
    assert "get-credentials" in result.text


def test_a_look_that_fails_in_a_long_wait_is_no_end(world):
    states(world, "", "RUNNING  0", {"code": 1, "err": "TLS timeout\n"}, "RUNNING Completed 0")
    world.answer("get pods", PODS)
    result = world.launch("gke.sh", *FLAGS)
    assert result.code == 0, result.text
    assert "Cannot look at acid just now: TLS timeout" in result.text


def test_submit_status_logs_delete(world):
    states(world, "")
    assert world.launch("gke.sh", "submit", *FLAGS).code == 0
    for command, words in [
        ("status", "get jobset acid"),
        ("logs", "batch.kubernetes.io/job-completion-index=0 --tail=-1 --follow"),
        ("delete", "delete jobset acid --wait=true --timeout=600s --ignore-not-found"),
    ]:
        assert world.launch("gke.sh", command, "--name=acid").code == 0
        assert world.calls(words)


def test_ctrl_c(world):
    states(world, "", "RUNNING  0")
    world.answer("get pods", "pod/a")
    launcher = world.start("gke.sh", *FLAGS)
    world.wait_for_call("get pods")
    os.killpg(launcher.pid, signal.SIGINT)
    result = world.finish(launcher)
    assert result.code == 130
    assert "goes on and costs money" in result.text
    assert "delete jobset acid" in result.text


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--topology=4by4", "is not a topology"),
        ("--topology=1x1", "1 chips, no multiple of --chips-per-host=4"),
        ("--name=My_Run", "is not a name for Kubernetes"),
        ("--grace=2m", "not a whole number"),
    ],
)
def test_impossible_flags(world, flag, words):
    result = world.launch("gke.sh", *FLAGS, flag)
    assert result.code == 2
    assert words in result.text
    assert not world.calls()
