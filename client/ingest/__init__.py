"""From DICOM files to a training set: sources, reading, de-identification, review, storage, quality."""
