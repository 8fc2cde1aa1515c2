"""The documentation is true: its commands run, its links lead somewhere, its options exist."""

import csv
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
import typer

from echofed.cli.main import app
from echofed.cli.supervisor import free_port, listens
from echofed.client.ingest.settings import IngestSettings
from echofed.client.link_settings import LinkSettings
from echofed.client.policy import SitePolicy
from echofed.protocol.document import Document
from echofed.protocol.yaml_text import read_document
from echofed.server.settings import ConsortiumSettings
from echofed.simulations.phantoms import PhantomSite
from echofed.simulations.phantoms.dicom_files import write_dicom_site
from tests.small_simulations import ECHOFED, draw_sites, environment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FASTER = {
    r"rounds: \d+": "rounds: 2",
    r"image_size_px: \d+": "image_size_px: 32",
    r"  name: scattering ": "  width: 8\n  blocks: 1\n  name: small_resnet ",
    r"centring_rounds: \d+": "centring_rounds: 0",
    r"  test_fraction: 0.2 ": "  minimum_patients: 1\n  test_fraction: 0.2 ",
}
"""A new study is there to be edited; the edits only save time."""
ADDRESS, SITE, STUDY_HASH = "fed.example.org:8443", "north-hospital", "3f9c2a1b"
"""What the pages write in place of an address, a hospital and a study's hash."""
READY_SECONDS = 60.0


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
    _prepare_export(folder)
    (sites / "north").rename(folder / "FOLDER")
    (folder / "drawn" / "north").symlink_to(folder / "FOLDER")


def _prepare_export(folder: Path) -> None:
    """Make EXPORT, a hospital's DICOM files; phantoms need no text recognition."""
    site = PhantomSite("north", "borealis", 12, (2, 3), {"benign": 0.5, "malignant": 0.5}, "linear")
    drawn = write_dicom_site(folder / "hospital", site, seed=1)
    drawn.export.rename(folder / "EXPORT")
    ingest = folder / "site" / "ingest"
    ingest.mkdir(parents=True)
    (ingest / "ingest.yaml").write_text(
        "text_check: strokes\nlabels:\n  tables:\n    - file: ../../hospital/labels.csv\n      accession: accession_number\n"
        "      labels: {normal: normal, benign: benign, malignant: malignant}\n"
    )


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


def words_after(sentence: str, text: str) -> str:
    """Return the eight words a command shows under a sentence."""
    return text.split(sentence)[1].splitlines()[1].strip()


@dataclass
class Reader:
    """Somebody who follows a page in a folder, and the party at the other end of the line: a coordinator or a hospital.

    Args:
        folder: where the page's commands run; the other party's state folders are `their-consortium` and `their-site`.
        port: of the consortium's server, whoever runs it.
        study_hash: of the study the page is about, once it is published.
        running: commands that run until they are stopped.
    """

    folder: Path
    port: int
    study_hash: str = ""
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def follow(self, line: str) -> str:
        """Run a line of the page, after what the other party would have done before it, and return what it says."""
        self._before(line)
        if line.startswith("echofed consortium init"):
            self.port = free_port()  # where the other party's server, of an earlier part of the page, does not listen
        line = line.replace(ADDRESS, f"127.0.0.1:{self.port}").replace(STUDY_HASH, self.study_hash[:8])
        if line.startswith("echofed consortium enrol"):
            said = shell(f"echofed site init {SITE}.invitation --state their-site", self.folder)
            line = re.sub('--words "[^"]*"', f'--words "{words_after("read out yours:", said)}"', line)
        if line.split()[2:] == ["start"]:
            return self.start(line)
        if line.split()[1:3] in (["site", "review"], ["site", "receive"]):
            return self.look(line)
        said = shell(line, self.folder)
        if line.startswith("echofed site init"):
            words = words_after("read out yours:", said)
            shell(f'echofed consortium enrol {SITE}.request --state their-consortium --words "{words}"', self.folder)
        if line.startswith("echofed study publish"):
            self.study_hash = said.splitlines()[1].strip()
        return said

    def start(self, line: str) -> str:
        """Start a party's processes, and wait until all of them have been started."""
        words = line.split()
        state = (
            words[words.index("--state") + 1] if "--state" in words else {"server": "consortium"}.get(words[1], "site")
        )
        self.running.append(
            subprocess.Popen(
                [str(ECHOFED), *words[1:]],
                cwd=self.folder,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        deadline = time.monotonic() + READY_SECONDS
        processes = self.folder / state / "run" / "processes"
        while not (processes.exists() and len(processes.read_text().splitlines()) == 3 and listens(self.port)):
            assert time.monotonic() < deadline, line
            assert self.running[-1].poll() is None, line
            time.sleep(0.1)
        return ""

    def look(self, line: str) -> str:
        """Run a command that goes on until Ctrl-C, and press that once it says that it is there."""
        process = subprocess.Popen(
            [str(ECHOFED), *shlex.split(line)[1:]],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0, line
        return said + rest

    def _before(self, line: str) -> None:
        invitation, theirs = self.folder / f"{SITE}.invitation", "--state their-consortium"
        if line.startswith("echofed site init") and not invitation.exists():
            shell(f"echofed consortium init Theirs --address 127.0.0.1:{self.port} {theirs}", self.folder)
            shell(f"echofed consortium invite {SITE} {theirs}", self.folder)
        if line.startswith("echofed site join"):
            shell(f"echofed study init liver.yaml; echofed study publish liver.yaml {theirs} > published", self.folder)
            self.study_hash = (self.folder / "published").read_text().splitlines()[1].strip()
            self.start(f"echofed server start {theirs}")


@contextmanager
def reader(folder: Path) -> Iterator[Reader]:
    """Give somebody who follows a page, and stop what the page has started."""
    one = Reader(folder, free_port())
    try:
        yield one
    finally:
        for process in one.running[::-1]:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_its_order(page: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    study = tmp_path / "liver.yaml"
    with reader(tmp_path) as one:
        for line in commands(page):
            if "study new" in line:
                study.unlink(missing_ok=True)
            elif not study.exists():
                shell("echofed study new liver.yaml", tmp_path)
                edit(study)
            said = one.follow(line)
            if "study new" in line:
                edit(study)
            if line.startswith("echofed simulate"):
                report = tmp_path / said.splitlines()[-1].removeprefix("Report: ")
                assert report.stat().st_size > 10_000
                shell(f"echofed report {report.parent} --figures figures", tmp_path)
                assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".pdf", ".svg"}


def every_command(command: click.Command, name: str) -> list[str]:
    if not isinstance(command, click.Group):
        return [name]
    return [found for part, one in command.commands.items() for found in every_command(one, f"{name} {part}")]


def test_the_pages_show_every_command() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in every_command(typer.main.get_command(app), "echofed") if name not in text] == []


@pytest.mark.parametrize(
    ("page", "file", "settings"),
    [
        ("hospital.md", "policy.yaml", SitePolicy),
        ("hospital.md", "link.yaml", LinkSettings),
        ("coordinator.md", "consortium.yaml", ConsortiumSettings),
        ("ingest.md", "ingest.yaml", IngestSettings),
    ],
)
def test_a_file_of_settings_is_shown_whole_with_its_defaults(
    page: str, file: str, settings: type[Document], tmp_path: Path
) -> None:
    (shown,) = [block for block in blocks(ROOT / "docs" / page) if block[0] == f"# {file}"]
    (tmp_path / file).write_text("\n".join(shown))
    read = read_document(tmp_path / file, settings)
    given = {name for name, one in settings.model_fields.items() if one.is_required()} - {"bind_port"}
    kept = {name: getattr(read, name) for name in given}
    assert read == settings.model_validate(kept)
    names = {
        name for one in (read, *vars(read).values()) if isinstance(one, Document) for name in type(one).model_fields
    }
    assert {line.split(":")[0].strip() for line in shown[1:]} == names


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
