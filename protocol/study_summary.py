"""A study on one page, in words for a hospital's data protection officer."""

import textwrap

from echofed.protocol.study import Study

_WIDTH = 96
_WEAK_EPSILON = 10.0
_WEAK_DELTA = 1e-2
_METRIC_WORDS = {"auc": "AUC", "dice": "Dice", "mean_absolute_error": "mean absolute error"}
_TASK_WORDS = {
    "binary": "tells {labels} apart",
    "multiclass": "tells {labels} apart",
    "multilabel": "says which of these findings are present: {labels}",
    "segmentation": "outlines the {labels}",
    "regression": "estimates {labels}",
}


def summary(study: Study) -> str:
    """Return the page: what is computed, on which exams, what leaves, and what it costs in privacy."""
    sections = (
        ("Why, in the words of the study's author", f"“{study.purpose}”"),
        ("Who answers questions", f"“{study.contact}”"),
        ("What is computed", _computed(study)),
        ("On which exams", _exams(study)),
        ("What leaves the hospital", _leaves(study)),
        ("What it costs in privacy", _privacy(study)),
        ("When it runs", _runs(study)),
    )
    blocks = [f"{study.title}\n{'=' * min(len(study.title), _WIDTH)}"]
    for heading, text in sections:
        blocks.append(f"{heading}\n" + "\n".join(_filled(line) for line in text.split("\n")))
    blocks.append(f"Approving this study approves exactly this hash:\n  {study.hash}")
    return "\n\n".join(blocks)


def _filled(line: str) -> str:
    return textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="    " if line.startswith("- ") else "  ")


def _computed(study: Study) -> str:
    task, training = study.task, study.training
    says = _TASK_WORDS[task.kind].format(labels=", ".join(task.labels))
    unit = "exam" if task.unit == "exam" else "image"
    return (
        f"A model ({study.model.name}) that {says}, one answer an {unit}. In each of {study.federation.rounds} rounds the "
        f"hospital's own EchoFed takes {training.local_steps} training steps on its own machine, each on "
        f"{_drawn(training.sampling_probability)} of its training patients. No code comes with the study: it can only name "
        "what the hospital has installed."
    )


def _drawn(probability: float) -> str:
    return "all" if probability == 1 else f"a random {100 * probability:.3g}%"


def _exams(study: Study) -> str:
    task, size = study.task, study.preprocessing
    label = {
        "segmentation": "ultrasound images with an outline of the structure",
        "regression": f"ultrasound images with a value for {task.labels[0]}",
        "multilabel": "ultrasound images with a yes or no for each finding",
    }.get(task.kind, f"ultrasound images labelled {', '.join(task.labels)}")
    left_out = f" Exams labelled {', '.join(task.excluded_labels)} are left out." if task.excluded_labels else ""
    kept = study.evaluation.validation_fraction + study.evaluation.test_fraction
    return (
        f"On registered {label}, reduced to {size.image_size_px} x {size.image_size_px} grey pixels, at most "
        f"{size.max_images_per_patient} a patient.{left_out} {kept:.0%} of the patients are never trained on: they are kept "
        "to judge the model. The images stay where they are."
    )


def _leaves(study: Study) -> str:
    minimum = study.evaluation.minimum_patients
    noise = "with noise that hides each patient" if study.is_private else "WITHOUT noise to hide single patients"
    lines = [f"- each round, one update of the model's numbers, {noise};"]
    if study.is_private:
        lines.append("- each round, the noise multiplier, sampling probability, steps so far and delta;")
        lines.append(
            f"- the number of training patients, once, with noise of standard deviation {study.privacy.count_noise:g}, and "
            f"never less than {minimum};"
        )
    else:
        lines.append("- each round, the mean training loss and how long training took;")
        lines.append(f"- the number of training, validation and test patients, where it is {minimum} or more;")
    if study.strategy.weighting != "uniform" and not study.is_private:
        lines.append(
            f"- each round, the number of training patients, or {minimum} if it is less: updates are weighted by it;"
        )
    if study.evaluation.figures == "sent":
        lines.append(_figures(study))
    lines.append("- the name under which the hospital is enrolled; an error's code, if it cannot answer.")
    if study.strategy.shared_layers == "all_but_normalisation":
        lines.append("The model's normalisation layers stay at the hospital.")
    lines.append("No image and no patient identifier leaves.")
    return "\n".join(lines)


def _figures(study: Study) -> str:
    minimum, count = study.evaluation.minimum_patients, study.evaluations
    rounds = "once" if count == 1 else f"{count} times"
    if study.is_private:
        said = "sums of how the model does on them, with noise that hides each"
    else:
        said = f"their number, the mean loss and the {_METRIC_WORDS[study.metric]}, without noise"
    return f"- {rounds}, from a hospital with {minimum} validation patients or more: {said};"


def _privacy(study: Study) -> str:
    privacy = study.privacy
    if not study.is_private:
        return (
            "NOTHING PROTECTS SINGLE PATIENTS. The updates are exact, and something about a single patient may be read "
            "from them. Approve only if the coordinator and every other site may be trusted with that. A hospital's policy "
            "refuses such a study unless it says otherwise."
        )
    delta = f"{privacy.delta:g}" if privacy.delta else "1 / (10 x that noisy number of training patients)"
    assert privacy.epsilon is not None
    return (
        f"epsilon {privacy.epsilon:g}, delta {delta}, for the whole study, for each patient with all exams (add or remove "
        "one patient): updates, number of patients and figures together. In words: whoever sees all of them, and guesses "
        f"with even odds whether a patient took part, can be right at most {_best_guess(privacy.epsilon)} of the time, but for "
        "a failure of probability delta. Not covered: that the hospital takes part, which tells of "
        f"{study.evaluation.minimum_patients} training patients or more; whether it sends figures; error codes. The hospital's "
        "own ledger refuses what would exceed its budget."
        + (" THIS IS WEAK: so large an epsilon bounds little." if privacy.epsilon > _WEAK_EPSILON else "")
        + (
            " THIS IS WEAK: so large a delta allows whole records to leave."
            if (privacy.delta or 0) > _WEAK_DELTA
            else ""
        )
    )


def _best_guess(epsilon: float) -> str:
    # e^eps / (1 + e^eps): the success of the best test between two neighbours (Kairouz et al. (2015)).
    return f"{100 / (1 + 2.718281828459045**-epsilon):.4g}%"


def _runs(study: Study) -> str:
    federation = study.federation
    secure = (
        "The coordinator sees each hospital's update (secure aggregation: none)."
        if study.secure_aggregation.mode == "none"
        else "The coordinator sees only the sum of the updates."
    )
    return (
        f"The study starts with at least {federation.minimum_sites} hospitals; a round is published only if at least "
        f"{federation.minimum_replies} answered. A hospital may refuse or stop at any time. {secure}"
    )
