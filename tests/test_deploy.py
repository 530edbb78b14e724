"""deploy/: files for tools that are not here. Their structure, their promises and the options that they name.

The schemas are our own and cover what the files use: the official ones of Compose and KubeRay are not in any package.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

DEPLOY = Path(__file__).parents[1] / "deploy"


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
ENV = {"type": "object", "additionalProperties": TEXT}
SERVICE = closed(
    ["image", "restart"],
    image=TEXT,
    user={"const": "10001:10001"},
    read_only={"const": True},
    cap_drop={"const": ["ALL"]},
    security_opt={"const": ["no-new-privileges:true"]},
    tmpfs=TEXTS,
    restart={"const": "unless-stopped"},
    environment=ENV,
    volumes=TEXTS,
    entrypoint=TEXTS,
    command=TEXTS,
    ports=TEXTS,
    stop_grace_period={"type": "string", "pattern": r"^\d+s$"},
    depends_on={
        "type": "object",
        "additionalProperties": closed(["condition"], condition={"const": "service_healthy"}),
    },
    healthcheck={
        "oneOf": [
            closed(["disable"], disable={"const": True}),
            closed(["test"], test=TEXTS, interval=TEXT, timeout=TEXT, retries={"type": "integer"}),
        ]
    },
    deploy=closed(["replicas"], replicas=TEXT),
)
COMPOSE = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "services": closed(["api", "worker", "postgres"], api=SERVICE, worker=SERVICE, postgres=SERVICE),
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
    },
    "required": ["name", "services", "volumes"],
    "patternProperties": {"^x-": {}},
    "additionalProperties": False,
}
QUANTITY = {"type": ["string", "integer"], "pattern": r"^\d+(m|Mi|Gi)?$"}
RESOURCES = {"type": "object", "additionalProperties": QUANTITY, "required": ["cpu", "memory"]}
CONTAINER = closed(
    ["name", "image", "env", "resources", "securityContext", "volumeMounts"],
    name={"type": "string", "pattern": "^[a-z0-9-]+$"},
    image=TEXT,
    env={"type": "array", "items": closed(["name", "valueFrom"], name=TEXT, valueFrom={"type": "object"})},
    ports={"type": "array", "items": closed(["containerPort", "name"], containerPort={"type": "integer"}, name=TEXT)},
    resources=closed(["requests", "limits"], requests=RESOURCES, limits=RESOURCES),
    securityContext=closed(
        ["readOnlyRootFilesystem", "allowPrivilegeEscalation", "capabilities"],
        readOnlyRootFilesystem={"const": True},
        allowPrivilegeEscalation={"const": False},
        capabilities={"const": {"drop": ["ALL"]}},
    ),
    volumeMounts={"type": "array", "items": closed(["name", "mountPath"], name=TEXT, mountPath=TEXT, readOnly={})},
)
POD = closed(
    ["spec"],
    spec=closed(
        ["securityContext", "containers", "volumes"],
        securityContext={
            "type": "object",
            "properties": {"runAsNonRoot": {"const": True}},
            "required": ["runAsNonRoot"],
        },
        containers={"type": "array", "items": CONTAINER, "minItems": 1},
        volumes={"type": "array", "items": {"type": "object", "required": ["name"]}},
    ),
)
PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 1}
RAY_SERVICE = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=closed(["name"], name=TEXT),
    spec=closed(
        ["serveConfigV2", "rayClusterConfig"],
        serveConfigV2=TEXT,
        rayClusterConfig=closed(
            ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
            rayVersion=TEXT,
            headGroupSpec=closed(["rayStartParams", "template"], rayStartParams=PARAMS, template=POD),
            workerGroupSpecs={
                "type": "array",
                "items": closed(
                    ["groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=PARAMS,
                    template=POD,
                ),
            },
        ),
    ),
)
SCHEMAS = {"compose.yaml": COMPOSE, "rayservice.yaml": RAY_SERVICE}


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_files_have_the_structure_that_their_tools_want(name: str) -> None:
    assert [error.message for error in Draft202012Validator(SCHEMAS[name]).iter_errors(read(name))] == []


def test_the_schemas_can_fail() -> None:
    broken = read("compose.yaml")
    broken["services"]["api"]["read_only"] = False
    broken["services"]["worker"]["comand"] = ["x"]
    assert len(list(Draft202012Validator(COMPOSE).iter_errors(broken))) == 2
    other = read("rayservice.yaml")
    del other["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["securityContext"]["runAsNonRoot"]
    assert list(Draft202012Validator(RAY_SERVICE).iter_errors(other))


@pytest.mark.parametrize("name", ["api", "worker"])
def test_our_containers_are_locked_down_and_their_commands_exist(name: str) -> None:
    from promptnet.cli import build_parser

    service = read("compose.yaml")["services"][name]
    assert {"user", "read_only", "cap_drop", "security_opt", "tmpfs"} <= set(service)
    words = shlex.split(service["command"][0].replace("$$", "$"))
    assert words[:2] == ["exec", "promptnet"]
    build_parser().parse_args(words[2:])
    used = set(re.findall(r"\$\$(\w+)", service["command"][0]))
    assert used <= set(service["environment"])


def test_every_variable_of_compose_is_explained() -> None:
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    wanted = set(re.findall(r"(?<!\$)\$\{(\w+)", code))
    assert wanted == set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text("utf-8"), re.M))
    assert re.search(r"^POSTGRES_PASSWORD=$", (DEPLOY / ".env.example").read_text("utf-8"), re.M)


def test_the_ray_service_names_arguments_that_the_application_knows() -> None:
    from promptnet.serve.ray import parse

    (application,) = yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "promptnet.serve.ray:app"
    settings, own = parse(application["args"])
    assert settings.max_queued_requests == 500
    assert own["workers"] == 8
    groups = read("rayservice.yaml")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert sum(group["replicas"] for group in groups) == own["workers"]


def test_the_image_is_for_cpu_and_cuda_non_root_and_healthy() -> None:
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    assert re.search(r"^ARG BASE=.*\nFROM \$\{BASE\}$", text, re.M)
    assert text.index("USER 10001:10001") < text.index("ENTRYPOINT")
    assert "HEALTHCHECK" in text
    assert "/healthz" in text
    copied = re.findall(r"^COPY (.+) \S+$", text, re.M)
    assert all((DEPLOY.parent / name).exists() for names in copied for name in names.split())


def test_the_image_starts_a_command_that_exists() -> None:
    import json

    from promptnet.cli import build_parser

    command = re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text("utf-8"), re.M)[-1]
    assert build_parser().parse_args(json.loads(command)).serve.run.host == "0.0.0.0"


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "rayservice.yaml", ".env.example"])
def test_each_file_says_what_was_not_run(name: str) -> None:
    assert "NOT RUN" in (DEPLOY / name).read_text("utf-8")
