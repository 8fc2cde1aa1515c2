"""Fetching from a PACS beside raw transfer of the same files from the same PACS, in turn, in one run.

    python -m benchmarks.ingest_sources [--quick]

Raw DICOMweb: plain requests for the same addresses on kept connections, thrown away. Raw C-GET: a plain SCU as pynetdicom's own,
one context for each transfer syntax, files thrown away. Both know what to ask for; ours also searches for it, checks what
arrives and writes it to the spool. Needs root, Orthanc and the real files.
"""

import argparse
import base64
import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import build_context

from echofed.client.ingest.sources.dicomweb import ACCEPT
from echofed.client.ingest.sources.fetching import fetch_all
from echofed.client.ingest.sources.filters import Filters
from echofed.client.ingest.sources.find import identifier
from echofed.client.ingest.sources.item import Fetched
from echofed.client.ingest.sources.politeness import Politeness
from echofed.client.ingest.sources.settings import DicomWebSource, DimseSource, MoveSettings, Source
from echofed.client.ingest.sources.storage import storage_classes, storage_contexts
from tests.client.ingest import orthanc
from tests.client.ingest.sources.samples import real_instances

INSTANCES, CONCURRENCY = 120, 2
REPEATS, QUICK_REPEATS = 15, 3
GET = "1.2.840.10008.5.1.4.1.2.2.3"
Place = tuple[str, str]
"""An instance's study and series."""


def main() -> None:
    """Print megabytes a second, medians of the repeats, and ours as a fraction of raw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    repeats = QUICK_REPEATS if parser.parse_args().quick else REPEATS
    shared = Path(os.environ.get("ECHOFED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    files = real_instances(shared, INSTANCES)
    os.environ["ECHOFED_BENCHMARK_PASSWORD"] = orthanc.PASSWORD
    web = DicomWebSource(url=orthanc.URL, user=orthanc.USER, password_env="ECHOFED_BENCHMARK_PASSWORD")
    get = DimseSource(host="127.0.0.1", port=orthanc.DICOM_PORT, ae_title=orthanc.AE_TITLE)
    move = get.model_copy(update={"move": MoveSettings(ae_title=orthanc.OUR_AE_TITLE, port=orthanc.RECEIVER_PORT)})
    with tempfile.TemporaryDirectory() as folder, orthanc.running(Path(folder)) as pacs, pacs.inside():
        pacs.upload(files.values())
        spool = Path(folder, "spool")
        places = {uid: _place(int(uid.rpartition(".")[2])) for uid in files}
        ways: dict[str, Callable[[], int]] = {
            "raw DICOMweb": lambda: raw_web(places),
            "our DICOMweb": lambda: _ours(web, spool, len(files)),
            "raw C-GET": lambda: raw_get(places),
            "our C-GET": lambda: _ours(get, spool, len(files)),
            "our C-MOVE": lambda: _ours(move, spool, len(files)),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                size = way()
                rates[name].append(size / (time.perf_counter() - start) / 1e6)
    medians = {name: statistics.median(some) for name, some in rates.items()}
    print(f"{len(files)} files, {sum(map(len, files.values())) / 1e6:.0f} MB, {CONCURRENCY} transfers at once")
    for name, some in rates.items():
        print(f"{name:13} {medians[name]:6.1f} MB/s ({min(some):.1f}-{max(some):.1f})")
    for ours, raw in (("our DICOMweb", "raw DICOMweb"), ("our C-GET", "raw C-GET"), ("our C-MOVE", "raw C-GET")):
        print(f"{ours} / {raw}: {medians[ours] / medians[raw]:.2f}")


def _place(number: int) -> Place:
    patient = (number - 1_000) % 3 + 1
    return f"2.25.{patient}", f"2.25.{patient}.1"


def _ours(source: Source, spool: Path, count: int) -> int:
    politeness = Politeness(concurrency=CONCURRENCY, per_second=10_000.0)
    size = fetched = 0
    for outcome in fetch_all(source, spool, lambda key: False, Filters(), politeness, lambda progress: None):
        assert isinstance(outcome, Fetched), outcome
        with outcome:
            size, fetched = size + outcome.size_bytes, fetched + 1
    assert fetched == count
    return size


def raw_web(places: dict[str, Place]) -> int:
    """Ask for instances by study and series over DICOMweb, throw them away and return their bytes."""
    token = base64.b64encode(f"{orthanc.USER}:{orthanc.PASSWORD}".encode()).decode()

    def fetch(some: list[str]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", orthanc.HTTP_PORT)
        size = 0
        for uid in some:
            study, series = places[uid]
            path = f"/dicom-web/studies/{study}/series/{series}/instances/{uid}"
            connection.request("GET", path, headers={"Accept": ACCEPT, "Authorization": f"Basic {token}"})
            response = connection.getresponse()
            assert response.status == 200
            while piece := response.read(2**20):
                size += len(piece)
        connection.close()
        return size

    return _shared_out(list(places), fetch)


def raw_get(places: dict[str, Place]) -> int:
    """Ask for instances by study and series with C-GET, throw them away and return their bytes."""
    sizes: list[int] = []

    def take(event: evt.Event) -> int:
        sizes.append(len(event.request.DataSet.getvalue()))
        return 0x0000

    def fetch(some: list[str]) -> int:
        entity = AE(orthanc.OUR_AE_TITLE)
        entity.requested_contexts = [build_context(GET), *storage_contexts()]
        roles = [build_role(one, scp_role=True) for one in storage_classes()]
        association = entity.associate(
            "127.0.0.1",
            orthanc.DICOM_PORT,
            ae_title=orthanc.AE_TITLE,
            ext_neg=roles,
            evt_handlers=[(evt.EVT_C_STORE, take)],
        )
        for place in sorted({places[uid] for uid in some}):
            keys = [uid for uid in some if places[uid] == place]
            values = {"StudyInstanceUID": place[0], "SeriesInstanceUID": place[1], "SOPInstanceUID": keys}
            for status, _ in association.send_c_get(identifier("IMAGE", values), GET):
                assert status.Status in (0x0000, 0xFF00)
        association.release()
        return 0

    _shared_out(list(places), fetch)
    assert len(sizes) == len(places)
    return sum(sizes)


def _shared_out(uids: list[str], fetch: Callable[[list[str]], int]) -> int:
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return sum(pool.map(fetch, [uids[start::CONCURRENCY] for start in range(CONCURRENCY)]))


if __name__ == "__main__":
    main()
