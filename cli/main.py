"""The `echofed` command."""

import errno
import os
import sys
from typing import NoReturn

import typer

import echofed.cli.audit as audit
import echofed.cli.consortium as consortium
import echofed.cli.server as server
import echofed.cli.site as site
import echofed.cli.study as study
from echofed.cli.demo import demo
from echofed.cli.runs import report, simulate
from echofed.protocol.errors import EchoFedError, InterruptedRunError, RunError

EXTRA_MODULES = frozenset({"matplotlib", "monai", "opacus", "PIL", "pydicom", "pynetdicom", "scipy", "torch"})
"""What a base install lacks."""

app = typer.Typer(
    help="Hospitals train one ultrasound model together; no patient image leaves a site.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(study.app, name="study", help="Write, publish and run studies.")
app.add_typer(consortium.app, name="consortium", help="Found a consortium, and let hospitals in and out.")
app.add_typer(server.app, name="server", help="Run the coordinator's processes.")
app.add_typer(site.app, name="site", help="A hospital: its images, its membership, its approvals, its node.")
app.add_typer(audit.app, name="audit", help="Check and read audit logs.")
app.command()(demo)
app.command()(simulate)
app.command()(report)


def main() -> None:
    """Run the command; expected errors are printed with their code and remedy, and set the exit status."""
    # Flower and Ray phone home unless told not to.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # numpy's products here are small: more threads only wait for each other (four times the work, measured on phantoms).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app()
    except InterruptedRunError as error:
        sys.stderr.write(f"\n{error.what}\n{error.remedy}\n")
        sys.exit(130)
    except EchoFedError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA_MODULES:
            raise
        remedy = "Install echofed[site] at a hospital, echofed[research] to simulate."
        _fail(RunError(f"{error.name} is not installed.", remedy))
    except OSError as error:
        # A full disk, a folder that is not there, permissions: the system's words and the file say enough.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        remedy = "Check that the path exists, its permissions and the free disk space."
        _fail(RunError(f"{error.filename or 'A file'}: {error.strerror}.", remedy))


def _fail(error: EchoFedError) -> NoReturn:
    sys.stderr.write(f"error {error.code}: {error.what}\nWhat to do: {error.remedy}\n")
    sys.exit(2)
