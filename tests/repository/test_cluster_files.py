"""The files in `cluster/`, as far as they can be judged without a container engine and without Kubernetes."""

import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
MANIFEST = (ROOT / "cluster" / "rayjob.yaml").read_text(encoding="utf-8")


def structure(required=(), **properties):
    """Return the schema of an object that has these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, FLAG, OBJECT = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
# Names, types and what is required as in the reference of KubeRay's API, version v1 (KubeRay 1.6). What a pod may have
# is Kubernetes' own; of that, what the manifest uses.
RESOURCES = structure(("cpu", "memory"), cpu=TEXT, memory={"type": "string", "pattern": r"^\d+[KMGT]i$"})
CONTAINER = structure(
    ("name", "image", "resources"),
    name=TEXT,
    image=TEXT,
    env={"type": "array", "items": structure(("name", "value"), name=TEXT, value=TEXT)},
    resources=structure(("requests", "limits"), requests=RESOURCES, limits=RESOURCES),
    volumeMounts={"type": "array", "items": structure(("name", "mountPath"), name=TEXT, mountPath=TEXT)},
)
VOLUME = structure(("name",), name=TEXT, persistentVolumeClaim=structure(("claimName",), claimName=TEXT))
POD = structure(
    ("containers",),
    securityContext=structure(runAsNonRoot=FLAG, runAsUser=COUNT, fsGroup=COUNT),
    containers={"type": "array", "items": CONTAINER, "minItems": 1},
    volumes={"type": "array", "items": VOLUME},
)
TEMPLATE = structure(("spec",), metadata=OBJECT, spec=POD)
HEAD = structure(
    ("template",),
    serviceType=TEXT,
    headService=OBJECT,
    enableIngress=FLAG,
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
WORKERS = structure(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    numOfHosts=COUNT,
    suspend=FLAG,
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=TEMPLATE,
    scaleStrategy=OBJECT,
)
CLUSTER = structure(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=structure(mode={"enum": ["disabled", "token"]}, secretName=TEXT, enableK8sTokenAuth=FLAG),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=OBJECT,
    gcsFaultToleranceOptions=OBJECT,
    headServiceAnnotations=TEXTS,
    managedBy=TEXT,
    suspend=FLAG,
    upgradeStrategy=OBJECT,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAYJOB = structure(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=structure(("name",), name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}),
    spec=structure(
        activeDeadlineSeconds=COUNT,
        backoffLimit=COUNT,
        clusterSelector=TEXTS,
        deletionStrategy=OBJECT,
        entrypoint=TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=TEXT,
        jobId=TEXT,
        managedBy=TEXT,
        metadata=TEXTS,
        rayClusterSpec=CLUSTER,
        runtimeEnvYAML=TEXT,
        shutdownAfterJobFinishes=FLAG,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterConfig=OBJECT,
        submitterPodTemplate=TEMPLATE,
        suspend=FLAG,
        ttlSecondsAfterFinished=COUNT,
    ),
)


@pytest.fixture
def manifest():
    """What the manifest says."""
    return YAML(typ="safe", pure=True).load(MANIFEST)


def pods(manifest):
    """Return the pods of head and workers."""
    described = manifest["spec"]["rayClusterSpec"]
    return [each["template"]["spec"] for each in (described["headGroupSpec"], *described["workerGroupSpecs"])]


def test_the_schema_is_one():
    Draft202012Validator.check_schema(RAYJOB)


def test_the_manifest_is_a_ray_job(manifest):
    assert [error.message for error in Draft202012Validator(RAYJOB).iter_errors(manifest)] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec.update(entrypiont="dvc repro"), "'entrypiont' was unexpected"),
        (lambda spec: spec.update(submissionMode="Job"), "'Job' is not one of"),
        (lambda spec: spec["rayClusterSpec"].pop("headGroupSpec"), "'headGroupSpec' is a required property"),
        (lambda spec: spec["rayClusterSpec"].update(rayVersion=2.6), "2.6 is not of type 'string'"),
    ],
)
def test_what_is_no_ray_job(manifest, change, message):
    change(manifest["spec"])

    (error,) = Draft202012Validator(RAYJOB).iter_errors(manifest)
    assert message in error.message


def test_manifest_and_pins_name_one_version_of_ray(manifest):
    (pinned,) = re.findall(
        r"^ray==(\S+)", (ROOT / "requirements" / "run.txt").read_text(encoding="utf-8"), re.MULTILINE
    )

    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def test_all_pods_have_one_image_one_user_and_what_is_shared_at_one_path(manifest):
    found = [
        (pod["containers"][0]["image"], str(pod["securityContext"]), str(pod["volumes"]), mount["mountPath"])
        for pod in pods(manifest)
        for mount in pod["containers"][0]["volumeMounts"]
    ]

    assert len(found) == 2
    assert len(set(found)) == 1
    assert f"cd {found[0][-1]} " in manifest["spec"]["entrypoint"]
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods(manifest))


def test_nobody_without_a_token_is_served(manifest):
    assert manifest["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_MODE=token" in DOCKERFILE


def test_the_image_holds_the_pins_and_ends_as_a_user():
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)[0].split()
    let_in = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()

    assert all((ROOT / name).is_file() for name in copied)
    assert [f"!{name}" for name in copied] == [line for line in let_in if line.startswith("!")]
    assert DOCKERFILE.count("--require-hashes") == len(copied)
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1] != "root"
    assert {int(uid) for uid in re.findall(r"UID=(\d+)", DOCKERFILE)} == {
        pod["securityContext"]["runAsUser"] for pod in pods(YAML(typ="safe", pure=True).load(MANIFEST))
    }


def test_what_must_be_changed_is_marked():
    for text, values in (
        (MANIFEST, ["image:", "claimName:", "value: http", "runAsUser:", "replicas:"]),
        (DOCKERFILE, ["ARG "]),
    ):
        lines = text.splitlines()
        for value in values:
            first = next(number for number, line in enumerate(lines) if value in line)
            assert any("# CHANGE" in line for line in lines[max(0, first - 3) : first]), value
