"""Where instances come from: folders, DICOMweb, DIMSE and a receiver, one module each."""
