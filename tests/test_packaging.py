"""The package list, the wheel, and what each part of it needs to be imported."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
PACKAGE_DIR: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
ROOMS = ("cli", "client", "learning", "privacy", "protocol", "server", "simulations", "strategies")
MAX_LINES = 400


def source_files() -> list[Path]:
    """Every Python file of the project, tests and benchmarks included."""
    return sorted(path for room in (*ROOMS, "benchmarks") for path in (ROOT / room).rglob("*.py"))


def test_the_package_list_is_what_is_on_disk() -> None:
    folders = {path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert {f"echofed.{'.'.join(folder.parts)}" for folder in folders} == set(PACKAGES)
    assert {name: str(folder) for folder in folders for name in [f"echofed.{'.'.join(folder.parts)}"]} == PACKAGE_DIR
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_no_file_is_longer_than_agreed() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in source_files()}
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_absolute_import_of_a_room_by_its_bare_name() -> None:
    for room in ROOMS:
        done = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert f"ImportError: import echofed.{room}, not {room}" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for room in (*ROOMS, "benchmarks"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("echofed-*.whl")
    return built


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    modules = {path for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    page = [path for path in (ROOT / "client/ingest/review").iterdir() if path.suffix in (".css", ".html", ".js")]
    data = {ROOT / "simulations/report/style.css", *(ROOT / "simulations/studies").glob("*.yaml"), *page}
    assert inside == {f"echofed/{path.relative_to(ROOT)}" for path in modules | data}
    assert len(data) >= 5
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


BASE_INSTALL = """
import importlib, pkgutil, sys

BLOCKED = {"torch", "monai", "opacus", "PIL", "scipy", "matplotlib", "ray", "pfl"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv.pop(1))
imported = []
for room in ("protocol", "strategies", "server"):
    package = importlib.import_module(f"echofed.{room}")
    for found in pkgutil.walk_packages(package.__path__, f"echofed.{room}."):
        importlib.import_module(found.name)
        imported.append(found.name)
assert len(imported) > 20, imported
for arguments in (["study", "new", "base.yaml"], ["study", "check", "base.yaml"], ["study", "schema"]):
    from echofed.cli.main import main
    sys.argv = ["echofed", *arguments]
    try:
        main()
    except SystemExit as done:
        assert not done.code, done.code
assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
"""


def test_a_base_install_needs_no_torch(wheel: Path, tmp_path: Path) -> None:
    # Unpacked, the wheel is what pip installs; the checkout is out of sight.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    script = tmp_path / "base_install.py"
    script.write_text(BASE_INSTALL)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path / "installed")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    assert "What leaves the hospital" in done.stdout
    assert (tmp_path / "base.yaml").is_file()


def test_the_command_says_what_to_install_when_an_extra_is_missing(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    script = tmp_path / "base_install.py"
    start = BASE_INSTALL[: BASE_INSTALL.index("imported = []")]
    script.write_text(start + "from echofed.cli.main import main\nmain()\n")
    for arguments in (
        ["demo"],
        ["simulate", "s.yaml", "--data", "."],
        ["study", "init", "s.yaml"],
        ["site", "register", "."],
    ):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(script), str(tmp_path / "installed"), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error EF-600: "), done.stderr
        assert "Install echofed[" in done.stderr
