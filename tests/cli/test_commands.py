"""The installed command: help that answers at once, templates that pass, errors with a code and what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from echofed.protocol.study import Study
from tests.small_simulations import draw_sites, echofed, environment, small_study, write_study

KINDS = ("binary", "multiclass", "multilabel", "segmentation", "regression")
HEAVY = ("torch", "flwr", "pydantic", "monai", "opacus", "numpy", "rich.progress", "matplotlib", "scipy", "PIL")

IMPORTS = f"""
import sys
import echofed.cli.main
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    said = echofed("--help").stdout
    for command in ("demo", "simulate", "report", "study", "site"):
        assert f"\n  {command} " in said
    loaded = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, env=environment())
    assert loaded.stdout == "[]\n", loaded.stderr


@pytest.mark.parametrize("command", ["demo", "simulate", "report", "study", "site", "study new", "site register"])
def test_every_command_explains_itself(command: str) -> None:
    assert "--help" in echofed(*command.split(), "--help").stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_study_passes_its_own_check(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "liver.yaml"
    assert str(file) in echofed("study", "new", file, "--task", kind).stdout.replace("\n", "")
    said = echofed("study", "check", file).stdout
    for heading in ("What is computed", "What leaves the hospital", "What it costs in privacy"):
        assert heading in said
    assert Study.model_validate_json(json.dumps(yaml.safe_load(file.read_text()))).hash in said


def test_a_study_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("mine")
    failed = echofed("study", "new", file, status=2)
    check_error(failed, "EF-600", "exists")
    assert file.read_text() == "mine"


def test_the_schema_is_a_json_schema_that_knows_every_field() -> None:
    schema = json.loads(echofed("study", "schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(schema["properties"]) == set(Study.model_fields)
    assert schema["additionalProperties"] is False
    for reference in _references(schema):
        assert reference.startswith("#/$defs/")
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in _references(value)]
    return [found for value in node for found in _references(value)] if isinstance(node, list) else []


def test_init_writes_the_parameters_beside_the_study(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    echofed("study", "new", file, "--task", "segmentation")
    said = echofed("study", "init", file, "--seed", 3).stdout
    assert "study.safetensors" in said
    digest = yaml.safe_load(file.read_text())["model"]["initial_parameters_sha256"]
    assert len(digest) == 64
    assert (tmp_path / "study.safetensors").stat().st_size > 10_000


def test_a_site_registers_and_checks_its_images(tmp_path: Path) -> None:
    data = draw_sites(tmp_path / "phantoms") / "north"
    state, study = tmp_path / "site", write_study(tmp_path / "study.yaml", small_study())
    (data / "images" / "north_p0001_1.png").write_bytes(b"not an image")
    options = ("--state", state, "--name", "north", "--column", "exam=exam_id")
    said = echofed("site", "register", data, *options).stdout
    assert "north: " in said
    assert "file damaged or not PNG or JPEG" in said
    assert "unchanged" in echofed("site", "register", data, *options).stdout
    said = echofed("site", "check", study, "--state", state).stdout
    for word in ("training", "validation", "test", "benign", "malignant", "Left out"):
        assert word in said
    assert "north_p" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("site", "register", "nowhere", "--state", "s"), "EF-201", "nowhere"),
        (("site", "register", ".", "--state", "s", "--column", "patient"), "EF-201", "NAME=HEADER"),
        (("site", "check", "study.yaml", "--state", "nowhere"), "EF-201", "holds no site"),
        (("report", "nowhere"), "EF-600", "no finished run"),
        (("study", "check", "nowhere.yaml"), "EF-101", "no file"),
        (("study", "new", "a.yaml", "--task", "detection"), "EF-104", "binary, multiclass"),
        (("study", "new", "nowhere/a.yaml"), "EF-600", "nowhere/a.yaml"),
        (("simulate", "study.yaml", "--data", "nowhere"), "EF-201", "nowhere"),
        (("simulate", "study.yaml", "--data", ".", "--engine", "fast"), "EF-600", "pool or flower"),
        (("simulate", "study.yaml", "--data", ".", "--out", "study.yaml"), "EF-600", "cannot be used"),
        (("simulate", "study.yaml", "--data", "study.yaml", "--out", "."), "EF-600", "something else"),
        (("demo", "--out", "."), "EF-600", "something else"),
    ],
)
def test_errors_have_a_code_and_what_to_do(tmp_path: Path, arguments: tuple[str, ...], code: str, says: str) -> None:
    write_study(tmp_path / "study.yaml", small_study())
    check_error(echofed(*arguments, cwd=tmp_path, status=2), code, says)


@pytest.mark.parametrize("option", [("--seed", "-1"), ("--workers", "0"), ("--label-skew", "0"), ("--seed", "x")])
def test_options_out_of_range_are_refused(tmp_path: Path, option: tuple[str, str]) -> None:
    write_study(tmp_path / "study.yaml", small_study())
    failed = echofed("simulate", "study.yaml", "--data", ".", *option, cwd=tmp_path, status=2)
    assert option[0] in failed.stderr


STUDY = yaml.safe_dump(small_study().model_dump(mode="json", exclude_none=True), sort_keys=False)
SCATTERING = yaml.safe_dump(
    small_study(model={"name": "scattering"}, preprocessing={"image_size_px": 33}).model_dump(mode="json"),
    sort_keys=False,
)
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (STUDY.replace("task:\n  kind", "task:\n\tkind"), "EF-101", "line 6"),
        (STUDY.replace("title: A test study", "title: A\ntitle: B"), "EF-101", "line 3"),
        (BOMB, "EF-101", "line 1"),
        ("- [" * 100, "EF-101", "line 1"),
        ("x" * 300_000, "EF-101", "256"),
        ("\x00\x01", "EF-101", "study.yaml"),
        ("!!python/object/apply:os.system [ls]", "EF-101", "line 1"),
        ("", "EF-10", "study.yaml"),
        (STUDY.replace("schema_version: 1", "schema_version: 2"), "EF-103", "2"),
        (STUDY.replace("name: small_resnet", "name: resnet9000"), "EF-104", "small_resnet"),
        (STUDY.replace("kind: binary", "kind: detection"), "EF-104", "segmentation"),
        (STUDY.replace("rounds: 2", "rounds: many"), "EF-102", "rounds"),
        (STUDY.replace("mode: none", "mode: required"), "EF-105", "secure aggregation"),
        (STUDY + "callback: os.system\n", "EF-102", "callback"),
        (SCATTERING.replace("image_size_px: 33", "image_size_px: 32"), "EF-102", "33 or more"),
    ],
)
def test_a_bad_study_is_named_with_its_line(tmp_path: Path, text: str, code: str, says: str) -> None:
    assert text != STUDY
    (tmp_path / "study.yaml").write_text(text)
    for arguments in (("study", "check", "study.yaml"), ("simulate", "study.yaml", "--data", "."))[
        : 1 + (code == "EF-105")
    ]:
        check_error(echofed(*arguments, cwd=tmp_path, status=2), code, says)
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def check_error(failed: "subprocess.CompletedProcess[str]", code: str, says: str) -> None:
    lines = failed.stderr.strip().splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith(f"error {code}")]
    assert len(starts) == 1, failed.stderr
    assert lines[-1].startswith("What to do: ")
    assert says in failed.stderr, failed.stderr
    assert failed.stdout == ""
