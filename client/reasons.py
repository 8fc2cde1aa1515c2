"""Why an image is left out: one word list for every report."""

from enum import StrEnum


class Reason(StrEnum):
    """A reason for leaving an image out, as reports spell it; reports hold counts by reason, never who."""

    MALFORMED_ROW = "row has another number of columns than the header"
    NO_FILE_NAME = "no file name"
    NO_PATIENT = "no patient id"
    OUTSIDE = "path leads outside the data folder"
    LISTED_TWICE = "file listed more than once"
    LISTED_DIFFERENTLY = "file listed more than once, with different contents"
    MISSING = "file missing"
    UNREADABLE = "file damaged or not PNG or JPEG"
    TOO_MANY_PIXELS = "image has too many pixels"
    SEVERAL_FRAMES = "file holds several frames"
    PIXEL_FORMAT = "pixel format not supported"
    FRAME_DAMAGED = "stored frame damaged or of another key"
    CONSTANT = "image is one flat grey"
    TOO_SMALL = "image too small"
    SAME_PIXELS = "same image under several patients"
    NEARLY_SAME = "nearly the same image under several patients"
    FORGOTTEN = "patient was forgotten"

    EXCLUDED = "label excluded by the study"
    NO_LABEL = "no label"
    UNKNOWN_LABEL = "label not in the study"
    SEVERAL_LABELS = "patient under several labels"
    EXAM_DISAGREES = "exam under several labels"
    NO_COLUMN = "column missing for a label of the study"
    NO_FINDING = "finding missing"
    NOT_A_FINDING = "finding is neither 0 nor 1"
    NO_VALUE = "value missing"
    NOT_A_NUMBER = "value is not a number"
    OUT_OF_RANGE = "value outside the study's range"
    TOO_MANY_IMAGES = "beyond the study's images per patient"

    NO_MASK = "no mask"
    MASK_OUTSIDE = "mask's path leads outside the data folder"
    MASK_MISSING = "mask file missing"
    MASK_UNREADABLE = "mask damaged or not PNG or JPEG"
    MASK_SIZE = "mask has another size than its image"
