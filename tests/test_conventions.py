"""Rules of the house that no single room can check: who may import whom, what the shipped files say."""

import ast
import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.people_base import write_people_base

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "promptnet"
MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
OVERLAYS = ROOT / "configs" / "trainer"

# Imports run downwards only: a room imports from those on its left; rooms between bars do not see each other.
ROOMS = "io, images, models, datasets, inference, metrics, export|serve|baselines, training, evaluation, commands, cli"
LEVELS = {name.strip(): level for level, names in enumerate(ROOMS.split(",")) for name in names.split("|")}
# What the lean installation lacks, by the package that imports it.
EXTRAS = {
    "lightning",
    "pytorch_lightning",
    "datasets",
    "tensorboard",
    "dicebear",
    "resvg_py",
    "facenet_pytorch",
    "matplotlib",
    "fastapi",
    "starlette",
    "uvicorn",
    "pydantic",
    "dbos",
    "sqlalchemy",
    "limits",
    "prometheus_client",
    "cryptography",
    "c2pa",
    "lycoris",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "ray",
    "pyarrow",
}
# Rooms that may import some of these all the same, inside the functions that need them.
OF_ROOMS = {
    "images": {"facenet_pytorch"},
    "export": {"lycoris", "onnx", "onnxruntime", "onnxscript"},
    "serve": EXTRAS - {"lightning", "pytorch_lightning", "datasets", "tensorboard", "matplotlib"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def of_rooms(*, but: str) -> list[Path]:
    return [path for path in MODULES if room_of(path) != but]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports anywhere in it, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def front_door() -> dict[str, str]:
    import promptnet

    return promptnet._HOMES


def rooms_used(path: Path) -> set[str]:
    """Rooms of ours that a module imports from; a name of the package's front door counts as its home."""
    rooms = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "promptnet" and len(parts) > 1:
            home = front_door().get(parts[1], name).split(".")
            rooms.add(home[1] if home[0] == "promptnet" else "")
    return rooms & set(LEVELS)


def is_downward(room: str, other: str) -> bool:
    return other == room or LEVELS[other] < LEVELS[room]


def test_the_rule_itself_can_fail() -> None:
    assert is_downward("training", "inference")
    assert is_downward("models", "models")
    assert not is_downward("inference", "training")
    assert not is_downward("datasets", "inference")
    assert not is_downward("export", "serve")


@pytest.mark.parametrize("path", of_rooms(but="__init__"), ids=name_of)  # the front door names rooms lazily
def test_imports_run_downwards(path: Path) -> None:
    room = room_of(path)
    assert room in LEVELS, f"'{room}' is not a room of design"
    upward = [other for other in rooms_used(path) if not is_downward(room, other)]
    assert not upward, f"{path.relative_to(ROOT)} imports from {upward}"


PACKS = sorted((ROOT / "integrations").rglob("*.py"))


@pytest.mark.parametrize("path", PACKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_integrations_use_public_names_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "promptnet":
            front = importlib.import_module(node.module or "")
            assert {alias.name for alias in node.names} <= set(front.__all__), node.module
        elif isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith("promptnet")]


def test_the_package_knows_no_integration() -> None:
    assert not [path for path in MODULES if any(name.startswith("integrations") for name in imported(path))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(paths: Sequence[Path]) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports anywhere in it, lazy imports included; room fronts stand aside."""
    modules = {module_of(path): path for path in paths if path.name != "__init__.py"}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = set(imported(path))
        graph[module] = {other for other in modules if other != module and any(_is_in(name, other) for name in names)}
    return graph


def _is_in(name: str, module: str) -> bool:
    """Whether an imported dotted name is the module or something in it."""
    return name == module or name.rpartition(".")[0] == module


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Some modules that import one another in a circle, or nothing."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert circle(import_graph(MODULES)) == []


def at_the_top(path: Path) -> set[str]:
    """Packages that importing the module imports."""
    body = ast.parse(path.read_text("utf-8")).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in imports if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


LEAN = [name for name in LEVELS if LEVELS[name] <= LEVELS["export"] and name not in {"datasets", "metrics"}]


@pytest.mark.parametrize("room", LEAN)
def test_the_lean_install_is_enough_to_customise_and_draw(room: str) -> None:
    elsewhere = EXTRAS - OF_ROOMS.get(room, set())
    for path in (PACKAGE / room).rglob("*.py"):
        assert not at_the_top(path) & (EXTRAS if room != "serve" else elsewhere), path.relative_to(ROOT)
        found = {name.split(".")[0] for name in imported(path)} & elsewhere
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_importing_the_pipeline_loads_no_trainer() -> None:
    code = (
        "import sys, promptnet; promptnet.PromptNetPipeline;"
        "print([name for name in ('lightning', 'dicebear') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def strings(path: Path) -> list[str]:
    """String constants that a module uses: docstrings and other bare strings left out."""
    tree = ast.parse(path.read_text("utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in bare]
    return [node.value for node in constants if isinstance(node.value, str)]


def judge_folders(path: Path) -> list[str]:
    """Strings from which the test judge's folder could be made: they name judges, and not the validation judge."""
    return [text for text in strings(path) if re.search(r"\bjudges\b(?!/validation\b)", text)]


@pytest.mark.parametrize("path", of_rooms(but="evaluation"), ids=name_of)
def test_the_test_judge_is_found_by_the_evaluation_alone(path: Path) -> None:
    assert not judge_folders(path)


def test_the_evaluation_does_find_it() -> None:
    assert any(judge_folders(path) for path in (PACKAGE / "evaluation").rglob("*.py"))


def test_no_recipe_but_the_test_judges_own_names_the_test_judge() -> None:
    naming = [path.name for path in CONFIGS if re.search(r"judges?[/-]test", path.read_text("utf-8"))]
    assert [name for name in naming if "judge" not in name] == []


@pytest.mark.parametrize("folder", ["promptnet", "tests", "configs", "docs", "benchmarks", "integrations"])
def test_no_file_names_a_machine_path_or_an_index(folder: str) -> None:
    forbidden = re.compile(r"(?<![\w.])/(work|root|tmp|home)/|--(extra-)?index-url|://\S+/simple")
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in {".py", ".yaml", ".md", ".json", ".toml"} and path != Path(__file__):
            assert not forbidden.search(path.read_text("utf-8")), path


def test_the_lock_has_hashes_and_no_addresses() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|index-url|find-links", text)
    pinned = re.split(r"\n(?=[a-z0-9])", text.split("\n", 2)[2])
    assert len(pinned) > 50
    for requirement in pinned:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


def test_the_lock_covers_what_pyproject_asks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    unlocked = ("deepspeed", "8bit", "wandb")  # they need a GPU or an account, which no test has
    wanted = [
        *project["dependencies"],
        *(line for extra, lines in project["optional-dependencies"].items() if extra not in unlocked for line in lines),
    ]
    locked = set(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==", (ROOT / "requirements.lock").read_text(), re.M))
    assert {re.match(r"[A-Za-z0-9_-]+", line)[0].lower() for line in wanted} <= locked  # type: ignore[index]


def test_withdrawn_trainers_are_refused() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    trainer = next(
        Requirement(line) for line in project["optional-dependencies"]["train"] if line.startswith("lightning")
    )
    assert "2.6.2" not in trainer.specifier
    assert "2.6.3" not in trainer.specifier


def test_the_version_is_said_once() -> None:
    import promptnet

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert promptnet.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


# --- what the pages tell people to type ---------------------------------------------------------------------------

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[str]:
    """Lines of the page's shell blocks, continuations joined, comments dropped."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text("utf-8"), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


ALL_COMMANDS = [(page.name, line) for page in PAGES if page.exists() for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), ALL_COMMANDS, ids=[f"{page}: {line}" for page, line in ALL_COMMANDS])
def test_commands_on_our_pages_exist(page: str, line: str) -> None:
    from promptnet.cli import build_parser

    words = shlex.split(line)
    if words[0] == "promptnet":
        build_parser().parse_args(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert next(word for word in words[1:] if "=" not in word and not word.startswith("-")) in targets
    elif words[0] in {"python", "torchrun"} and "train.py" in words:
        parse_training(words[words.index("train.py") + 1 :])
    elif words[0] == "python":
        check_script(words[1:])
    else:
        known = {"git", "cd", "cp", "pip", "mkdir", "export", "source", "eval"}
        assert words[0] in known, f"{page}: what is {words[0]}?"


def check_script(words: list[str]) -> None:
    """A script that is there and knows the options; those with a dot go to LightningCLI."""
    text = (ROOT / words[0]).read_text("utf-8")
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    assert [option for option in options if "." not in option and f'"{option}"' not in text] == []


def scripts_in_text() -> Iterator[str]:
    """Calls of scripts of ours within a line of a page, and in the scripts' own words."""
    for page in (*PAGES, *sorted((ROOT / "benchmarks").glob("*.py"))):
        text = page.read_text("utf-8")
        yield from re.findall(r"`python (benchmarks/[^`]+)`", text)
        yield from re.findall(r"^    python (benchmarks/.+)$", text, re.M)


@pytest.mark.parametrize("line", sorted(set(scripts_in_text())))
def test_scripts_that_are_mentioned_know_their_options(line: str) -> None:
    check_script(shlex.split(re.sub(r"[\[\]]", "", line), comments=True))


def test_readme_has_the_commands_people_start_with() -> None:
    assert {"make demo", "make test"} <= set(commands(ROOT / "README.md"))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "ARCHITECTURE.md"], ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


# --- configs ------------------------------------------------------------------------------------------------------


def test_there_are_configs() -> None:
    assert CONFIGS


def parse_training(args: list[str], *, build: bool = False) -> Any:
    """What `python train.py <args>` does before it builds anything, or before it trains."""
    from promptnet.training.cli import TrainingCLI

    class NotRun(TrainingCLI):
        def instantiate_classes(self) -> None:
            if build:
                super().instantiate_classes()

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])  # LightningCLI warns where it finds both
        patch.chdir(ROOT)
        return NotRun(args=args)


def parse_config(*paths: Path) -> None:
    parse_training(["fit", *(f"--config={path}" for path in paths)])


def name_in_configs(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs").with_suffix(""))


OF_BASELINES = ROOT / "configs" / "baselines"  # parsed by tests/baselines
OF_EVALUATION = ROOT / "configs" / "evaluate"  # parsed by tests/evaluation/papers
RECIPES = [path for path in CONFIGS if not {OVERLAYS, OF_BASELINES, OF_EVALUATION} & set(path.parents)]
PRETRAINING = [path for path in RECIPES if path.parent.name == "pretrain"]
OF_EARLIER_STAGES = {"tiny/unet", "pretrain/tiny", "pretrain/tiny-published"}  # start from what these wrote
OF_NETWORKS_TO_FETCH = {"disentangle/as-published"}  # its parts have no shapes without their files: it parses


@pytest.mark.parametrize("overlay", sorted(OVERLAYS.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("config", PRETRAINING, ids=lambda path: path.stem)
def test_every_overlay_parses_over_every_pretraining_config(config: Path, overlay: Path) -> None:
    parse_config(config, overlay)


@pytest.mark.parametrize("config", RECIPES, ids=name_in_configs)
def test_every_config_builds_trainer_data_and_stage(config: Path, tmp_path: Path) -> None:
    """What would be downloaded is built at its true shapes, without weights."""
    from promptnet.models.base_model import shapes_only

    given = [f"--config={config}", f"--run_dir={tmp_path}", "--trainer.accelerator=cpu"]
    if config.parent.name == "disentangle":
        given.append(f"--model.init_args.out={tmp_path / 'card.safetensors'}")
    if config.stem == "tiny-prepared":
        given.append("--model.init_args.base_dir=checkpoints/tiny")  # of which it takes a copy
    if name_in_configs(config) in OF_EARLIER_STAGES:
        given.append(f"--model.init_args.base_dir={write_people_base(tmp_path / 'base')}")
    if name_in_configs(config) in OF_NETWORKS_TO_FETCH:
        parse_training(["fit", *given])
        return
    with shapes_only():
        built = parse_training(["fit", *given], build=True)
    named = yaml.safe_load(config.read_text("utf-8"))
    assert type(built.model).__name__ == named["model"]["class_path"].rpartition(".")[2]
    assert type(built.datamodule).__name__ == named["data"]["class_path"].rpartition(".")[2]
    callbacks = {type(callback).__name__ for callback in built.trainer.callbacks}
    assert {entry["class_path"].rpartition(".")[2] for entry in named["trainer"].get("callbacks", [])} <= callbacks
    assert {"MetricsFile", "SaveState"} <= callbacks


def test_an_unknown_option_in_a_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(RECIPES[0].read_text() + "\nno_such_option: 3\n")
    with pytest.raises(SystemExit) as refusal:
        parse_config(broken)
    assert refusal.value.code == 2
    assert "no_such_option" in capsys.readouterr().err


# --- the table of parameters -------------------------------------------------------------------------------------


def test_the_table_of_knobs_says_what_the_code_does() -> None:
    from promptnet.inference.sampling.config import PUBLISHED, SamplingConfig

    rows = re.findall(
        r"^\| `(\w+)` \| ([^`|]+) \| ([^`|]+) \|", (ROOT / "docs" / "customise.md").read_text("utf-8"), re.M
    )
    defaults, published = (dataclasses.asdict(config) for config in (SamplingConfig(), PUBLISHED))
    assert rows == [(name, str(defaults[name]), str(published[name])) for name in defaults]


def test_the_table_of_tuning_knobs_says_what_the_code_does() -> None:
    from promptnet.inference.tuning.config import TuningConfig

    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", (ROOT / "docs" / "customise.md").read_text("utf-8"), re.M)
    assert rows == [(name, repr(value)) for name, value in dataclasses.asdict(TuningConfig()).items()]
