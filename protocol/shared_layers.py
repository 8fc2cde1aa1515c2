"""Which parameters travel: all that learn, or all but normalisation (FedBN, Li et al. (2021))."""

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.arrays import Parameters
from echofed.protocol.errors import ParametersError
from echofed.protocol.study import Study

Arrays = Mapping[str, NDArray[np.float32]]


def trainable_names(initial: Arrays, metadata: Mapping[str, str]) -> frozenset[str]:
    """Return the names of the parameters that learn, as the metadata of the initial-parameters file list them.

    Raises:
        ParametersError: the metadata do not name parameters of the file.
    """
    return _names("trainable", initial, metadata)


def shared_parameters(study: Study, initial: Arrays, metadata: Mapping[str, str]) -> Parameters:
    """Return the part of the initial parameters that is trained and shared, by name.

    Args:
        study: says which layers are shared.
        initial: every parameter and fixed buffer of the model.
        metadata: of the initial-parameters file; "trainable" and "normalisation" are JSON lists of names.

    Raises:
        ParametersError: the metadata do not name parameters of the file, or nothing is left to share.
    """
    names = trainable_names(initial, metadata)
    if study.strategy.shared_layers == "all_but_normalisation":
        names -= _names("normalisation", initial, metadata)
    if not names:
        raise ParametersError("No parameter is both trained and shared.")
    return {name: initial[name] for name in sorted(names)}


def _names(key: str, initial: Arrays, metadata: Mapping[str, str]) -> frozenset[str]:
    try:
        names = frozenset(json.loads(metadata[key]))
    except (KeyError, ValueError, TypeError) as error:
        raise ParametersError(f"The initial-parameters file does not say which parameters are {key}.") from error
    if not names <= initial.keys():
        raise ParametersError(f"The initial-parameters file names {key} parameters that it does not hold.")
    return names
