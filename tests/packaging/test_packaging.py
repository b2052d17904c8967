"""What is built and shipped: one version, files that name what is there, steps of the container, lower bounds."""

import re
import sys
import tomllib
from pathlib import Path

import yaml

import jepakit

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from oldest import oldest
from try_container import instructions

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def test_the_version_stands_in_one_place_and_is_what_other_files_say() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/jepakit/__init__.py"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == jepakit.__version__ and citation["cff-version"] == "1.2.0"
    assert {"title", "authors", "message", "license"} <= citation.keys()
    assert f"## {jepakit.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_ci_runs_what_everybody_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    made = set(re.findall(r"make (?:-\S+ (?:\d+ )?)*(\w+)", (ROOT / ".ci/run").read_text()))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert made and made <= targets


def test_hooks_before_a_commit_are_those_of_make_lint() -> None:
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]]
    lint = (ROOT / "Makefile").read_text().partition("lint:")[2].partition("\n\n")[0]
    commands = {" ".join(hook["entry"].replace(" --force-exclude", "").split()) for hook in hooks}
    wanted = {line.strip().replace("$(VENV)", ".venv").removesuffix(" .") for line in lint.splitlines() if "$(VENV)/bin" in line}
    assert commands == wanted


def test_the_containers_steps_name_files_and_extras_that_are_there() -> None:
    steps = list(instructions((ROOT / "Containerfile").read_text()))
    words = [word for word, _ in steps]
    assert words[0] == "FROM" and words[-1] == "CMD"
    assert set(words) <= {"FROM", "ARG", "COPY", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"}
    for word, rest in steps:
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
        if word == "RUN":
            assert all(name in EXTRAS for given in re.findall(r"\[([\w,]+)\]", rest) for name in given.split(",")), rest
            assert "pip install" not in rest or "--no-cache-dir" in rest
    assert words.index("COPY") < words.index("RUN")


def test_every_package_that_users_get_has_a_lower_bound_and_a_pin_at_or_above_it() -> None:
    named = [*PROJECT["project"]["dependencies"], *(line for name, lines in EXTRAS.items() if name != "dev" for line in lines)]
    assert all(re.match(r"[\w.-]+>=\d", line) for line in named), "a bound below, none above"
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for name, least in oldest("2.10").items():
        pin = pins.get(name.lower().replace("_", "-"))
        assert pin is not None, name
        assert _numbers(pin) >= _numbers(least), (name, pin, least)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)][:3]
