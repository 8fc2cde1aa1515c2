"""The documentation is true: its commands run, its links lead somewhere, its options exist."""

import csv
import re
import subprocess
from pathlib import Path

import click
import pytest
import typer

from echofed.cli.main import app
from tests.small_simulations import ECHOFED, draw_sites, environment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
COMMANDS = (
    "study new",
    "study check",
    "study init",
    "study schema",
    "site register",
    "site check",
    "site budget",
    "simulate",
    "report",
)
FASTER = {
    r"rounds: \d+": "rounds: 2",
    r"image_size_px: \d+": "image_size_px: 32",
    r"  name: scattering ": "  width: 8\n  blocks: 1\n  name: small_resnet ",
    r"centring_rounds: \d+": "centring_rounds: 0",
    r"  test_fraction: 0.2 ": "  minimum_patients: 1\n  test_fraction: 0.2 ",
}
"""A new study is there to be edited; the edits only save time."""


def blocks(page: Path) -> list[list[str]]:
    """The lines of each code block."""
    return [block.splitlines() for block in re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.M | re.S)]


def commands(page: Path) -> list[str]:
    """The `echofed` commands in a page's code blocks, without comments."""
    lines = [line.split(" #")[0].strip() for block in blocks(page) for line in block]
    return [line for line in lines if line.startswith("echofed ")]


def prepare(folder: Path) -> None:
    """Make what the pages take for granted: FOLDER, a site's images, and images.csv, with a column for the hospital."""
    sites = draw_sites(folder / "drawn")
    rows: list[dict[str, str]] = []
    for index in sorted(sites.glob("*/index.csv")):
        with index.open(newline="") as stream:
            rows += [{**row, "file": f"drawn/{index.parent.name}/{row['file']}"} for row in csv.DictReader(stream)]
    with (folder / "images.csv").open("w", newline="") as stream:
        columns = ["file", "patient_id", "label", "hospital"]
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "hospital": row["centre"]} for row in rows if row["label"] != "normal")
    (sites / "north").rename(folder / "FOLDER")
    (folder / "drawn" / "north").symlink_to(folder / "FOLDER")


def shell(line: str, folder: Path) -> str:
    environ = environment()
    environ["PATH"] = f"{ECHOFED.parent}:{environ['PATH']}"
    done = subprocess.run(["bash", "-ec", line], cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def edit(study: Path) -> None:
    text = study.read_text()
    for slow, fast in FASTER.items():
        assert re.search(slow, text)
        text = re.sub(slow, fast, text)
    study.write_text(text)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_its_order(page: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    study = tmp_path / "liver.yaml"
    for line in commands(page):
        if "study new" in line:
            study.unlink(missing_ok=True)
        elif not study.exists():
            shell("echofed study new liver.yaml", tmp_path)
            edit(study)
        said = shell(line, tmp_path)
        if "study new" in line:
            edit(study)
        if line.startswith("echofed simulate"):
            report = tmp_path / said.splitlines()[-1].removeprefix("Report: ")
            assert report.stat().st_size > 10_000
            shell(f"echofed report {report.parent} --figures figures", tmp_path)
            assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".pdf", ".svg"}


def test_the_pages_show_every_command_of_a_first_hour() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert [command for command in COMMANDS if f"echofed {command}" not in text] == []


def options() -> set[str]:
    """Every option of every command."""

    def of(command: click.Command) -> set[str]:
        own = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
        parts = command.commands.values() if isinstance(command, click.Group) else ()
        return own.union(*map(of, parts))

    return of(typer.main.get_command(app))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_options_named_exist(page: Path) -> None:
    code = re.findall(r"`([^`\n]+)`", page.read_text()) + commands(page)
    named = {
        option
        for text in code
        if "pip " not in text and "benchmarks" not in text
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", text)
    }
    assert named - options() - {"--help"} == set()


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or not target.is_relative_to(ROOT) or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_named_in_the_text_exist(page: Path) -> None:
    rooms = "cli|client|docs|learning|privacy|protocol|server|simulations|strategies|tests|benchmarks"
    named = set(re.findall(rf"`((?:{rooms})/[\w/*.]*)`", page.read_text()))
    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []


def test_make_has_the_commands_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {
        line.split()[1] for block in blocks(ROOT / "README.md") for line in block if line.startswith("make ")
    } <= targets


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
