"""Layers a site keeps for itself (FedBN's normalisation), one small file a round.

A round reads the layers of the rounds before it and writes its own, so a round that is repeated after a crash starts
from the same layers as the first time.
"""

from pathlib import Path

from echofed.protocol.arrays import Parameters, decode_parameters, encode_parameters
from echofed.protocol.durable import replace_file
from echofed.protocol.study import Study


def write_personal(state_folder: Path, study: Study, round_number: int, parameters: Parameters) -> None:
    """Keep the site's own layers as they are after a round."""
    path = _folder(state_folder, study) / f"{round_number:05d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, encode_parameters(parameters))


def read_personal(state_folder: Path, study: Study, round_number: int) -> Parameters | None:
    """Return the site's own layers as they were after `round_number`, or after the last round it took part in before.

    None if it has not taken part yet.
    """
    rounds = sorted(_folder(state_folder, study).glob("*.safetensors"))
    earlier = [path for path in rounds if int(path.stem) <= round_number]
    if not earlier:
        return None
    raw = earlier[-1].read_bytes()
    return decode_parameters(raw, len(raw))


def _folder(state_folder: Path, study: Study) -> Path:
    return state_folder / "personal" / study.hash
