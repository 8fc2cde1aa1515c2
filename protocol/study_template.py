"""A study to start from, for each task: the text `echofed study new` writes."""

from echofed.protocol.errors import UnknownNameError

_HEAD = """\
# An EchoFed study: all that a consortium agrees on. Check it with: echofed study check FILE
schema_version: 1
title: {title}
purpose: >-
  Say here, in words a patient understands, why this model is trained and what it may be used for.
contact: Name, department, hospital, address

task:
  kind: {kind}
"""

_TASKS = {
    "binary": """\
  labels: [benign, malignant]      # the second is the one to find
  one_label_per_patient: true      # set aside patients found under both
  # unit: exam                     # one answer for all images of an exam
  # class_weights: [0.75, 1.5]     # against imbalance; from published prevalence, never from the sites' data
""",
    "multiclass": """\
  labels: [cyst, adenoma, angioma, metastasis, carcinoma]
  # class_weights: [1, 1, 1, 1, 1] # against imbalance; from published prevalence, never from the sites' data
""",
    "multilabel": """\
  labels: [irregular_shape, spiculated, shadowing]   # one 0/1 column each in the sites' indices
  # class_weights: [1, 4, 2]       # weight of a finding that is present; from published prevalence
""",
    "segmentation": """\
  labels: [lesion]                 # the structure outlined in the masks
""",
    "regression": """\
  labels: [size_mm]                # the column holding the value
  value_range: [0, 80]             # smallest and largest plausible value
""",
}

_FEATURES = """\

preprocessing:
  image_size_px: 96                # images are resized to a square of this side
  resize: stretch                  # pad keeps the aspect ratio

model:
  name: scattering                 # fixed wavelet features, small trained head: best for small private cohorts
"""

_UNET = """\

preprocessing:
  image_size_px: 96                # images are resized to a square of this side
  standardise: image               # subtract the image's mean, divide by its standard deviation

model:
  name: basic_unet
"""

_HEAD_TRAINING = """\

training:
  learning_rate: 1.5               # about 0.7 for epsilon 3, 0.27 for epsilon 1, 0.5 without privacy
  local_steps: 1                   # steps a site takes each round
  sampling_probability: 1.0        # each step draws each patient with this probability
  centring_rounds: 10              # first rounds, which learn the mean of the features and take it out

privacy:
  unit: patient                    # none trains without any protection of single patients
  epsilon: 8                       # for the whole study, at each site; smaller protects more
  clipping_norm: 1.2               # C, the largest gradient of one patient
"""

_UNET_TRAINING = """\

training:
  optimizer: adam
  learning_rate: 0.002
  local_steps: 10                  # steps a site takes each round
  sampling_probability: 0.1        # each step draws each patient with this probability
  augmentation: {flip: true, gain: 0.1, shift: 0.05, zoom: 0.1}

privacy:
  unit: none                       # hospitals refuse this unless their policy allows it; patient protects single patients
"""

_TAIL = """\

strategy:
  preset: FedAvg                   # FedAvgM, FedAdam, FedYogi, FedAdagrad, FedProx, FedBN
  weighting: precision             # by patients, less where a small site's privacy noise outweighs them

federation:
  rounds: 100
  minimum_sites: 2                 # sites that must take part for the study to start
  minimum_replies: 2               # updates a round needs before it is published
"""

_NOISY_EVALUATION = """\

evaluation:
  validation_fraction: 0.15        # patients on whom sites say, with noise, how the model does
  every_rounds: 25                 # the more often, the more noise
  test_fraction: 0.2               # patients kept for the final report
"""

_EVALUATION = """\

evaluation:
  validation_fraction: 0.15        # patients who choose the best round
  test_fraction: 0.2               # patients kept for the final report
"""


def study_template(kind: str) -> str:
    """Return the text of a study for one kind of task, ready to edit.

    Raises:
        UnknownNameError: there is no such kind of task.
    """
    if kind not in _TASKS:
        raise UnknownNameError(f"There is no task '{kind}'.", f"Choose one of: {', '.join(_TASKS)}.")
    head = _HEAD.format(title=f"A {kind} study of ultrasound images", kind=kind)
    if kind == "segmentation":
        return head + _TASKS[kind] + _UNET + _UNET_TRAINING + _TAIL + _EVALUATION
    return head + _TASKS[kind] + _FEATURES + _HEAD_TRAINING + _TAIL + _NOISY_EVALUATION
