"""The one tree of errors; each carries a stable code and what to do about it.

    EchoFedError
    ├── StudyError            EF-1xx  the study document is not usable
    │   ├── StudySyntaxError      EF-101
    │   ├── StudyInvalidError     EF-102
    │   ├── StudyVersionError     EF-103
    │   ├── UnknownNameError      EF-104
    │   └── NotBuiltError         EF-105
    ├── DataError             EF-2xx  a site's data are not usable
    │   ├── RegistrationError     EF-201
    │   ├── NoPatientsError       EF-202
    │   └── CacheError            EF-203
    ├── LearningError         EF-3xx  training cannot go on
    │   ├── BatchNormError        EF-301
    │   ├── NonFiniteLossError    EF-302
    │   └── ParametersError       EF-303
    ├── PrivacyError          EF-4xx  a privacy promise cannot be kept
    │   ├── PrivacyParameterError EF-401
    │   ├── CalibrationError      EF-402
    │   ├── RepeatedRoundError    EF-403
    │   ├── BudgetExceededError   EF-404
    │   ├── LedgerError           EF-405
    │   └── TooFewPatientsError   EF-406
    ├── WireError             EF-5xx  a message is refused
    │   ├── ReplyRefusedError     EF-501
    │   └── ArraysError           EF-502
    ├── RunError              EF-6xx  a run cannot go on
    │   ├── TooFewRepliesError    EF-601
    │   ├── CheckpointError       EF-602
    │   ├── SitesError            EF-603
    │   ├── InterruptedRunError   EF-604
    │   └── UnexpectedError       EF-605
    ├── TrustError            EF-7xx  it cannot be proven who someone is or what was agreed
    │   ├── KeyFileError          EF-701
    │   ├── CertificateError      EF-702
    │   ├── SignatureError        EF-703
    │   ├── EnrolmentError        EF-704
    │   ├── NotApprovedError      EF-705
    │   ├── PolicyRefusalError    EF-706
    │   ├── ReplayError           EF-707
    │   ├── AuditLogError         EF-708
    │   ├── ForeignCodeError      EF-709
    │   ├── StateFolderError      EF-710
    │   └── ClockError            EF-711
    └── LinkError             EF-8xx  the coordinator cannot be reached, or does not accept what was sent
        ├── UnreachableError      EF-801
        ├── ProxyRefusedError     EF-802
        ├── GatewayRefusedError   EF-803
        ├── PortInUseError        EF-804
        └── TooLargeError         EF-805

`docs/errors.md` has one entry per code; a test holds the two together.
"""

from typing import ClassVar


class EchoFedError(Exception):
    """Base of every error EchoFed raises on purpose; says `what` happened and the `remedy`, a sentence each."""

    code: ClassVar[str] = "EF-000"
    default_remedy: ClassVar[str] = "See docs/errors.md."

    def __init__(self, what: str, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy or self.default_remedy

    def __str__(self) -> str:
        return f"[{self.code}] {self.what} {self.remedy}"


class StudyError(EchoFedError):
    """The study document is not usable."""

    code = "EF-100"


class StudySyntaxError(StudyError):
    """The file is not the plain YAML a study is written in."""

    code = "EF-101"
    default_remedy = "Correct the YAML at the line named."


class StudyInvalidError(StudyError):
    """The YAML is sound but its content does not make a study."""

    code = "EF-102"
    default_remedy = "Correct the fields named; `echofed study schema` lists what each accepts."


class StudyVersionError(StudyError):
    """The study was written for another version of the schema."""

    code = "EF-103"
    default_remedy = "Upgrade EchoFed, or write the study for this version's schema."


class UnknownNameError(StudyError):
    """A catalogue (tasks, models, metrics, strategies) has no such name."""

    code = "EF-104"
    default_remedy = "Choose one of the names listed."


class NotBuiltError(StudyError):
    """The study asks for a protection this version does not have yet."""

    code = "EF-105"
    default_remedy = "Do not run this study without it; write it off in the study or wait for the version that has it."


class DataError(EchoFedError):
    """A site's data are not usable."""

    code = "EF-200"


class RegistrationError(DataError):
    """A folder cannot be registered at all (single bad rows are quarantined instead)."""

    code = "EF-201"
    default_remedy = "Check the path, index.csv and the column names in the site's settings."


class NoPatientsError(DataError):
    """The site has no usable patient for this study."""

    code = "EF-202"
    default_remedy = "Run `echofed site check` to see why each row was left out."


class CacheError(DataError):
    """Decoded images or features cannot be kept on disk."""

    code = "EF-203"
    default_remedy = "Free some disk space and check the permissions of the state folder, then try again."


class LearningError(EchoFedError):
    """Training cannot go on."""

    code = "EF-300"


class BatchNormError(LearningError):
    """Batch normalisation mixes patients, so no per-patient guarantee can be given."""

    code = "EF-301"
    default_remedy = "Use group normalisation (torch.nn.GroupNorm) in place of the layers named."


class NonFiniteLossError(LearningError):
    """The loss or an update is NaN or infinite."""

    code = "EF-302"
    default_remedy = "Lower the learning rate or look at this site's data with `echofed site check`."


class ParametersError(LearningError):
    """Parameters do not fit the model the study names."""

    code = "EF-303"
    default_remedy = "Use the initial-parameters file written for this study (`echofed study init`)."


class PrivacyError(EchoFedError):
    """A privacy promise cannot be kept."""

    code = "EF-400"


class PrivacyParameterError(PrivacyError):
    """Epsilon, delta, noise or sampling are outside what has a meaning."""

    code = "EF-401"
    default_remedy = "Use epsilon > 0 and 0 < delta < 1 / patients."


class CalibrationError(PrivacyError):
    """No amount of noise meets the target within the search range."""

    code = "EF-402"
    default_remedy = "Use fewer steps, a lower sampling probability or a larger epsilon."


class RepeatedRoundError(PrivacyError):
    """A round would be answered twice, and cost privacy twice."""

    code = "EF-403"
    default_remedy = "Go on with the next round without this site."


class BudgetExceededError(PrivacyError):
    """A release would cost patients more privacy than the site allows."""

    code = "EF-404"
    default_remedy = "Run a shorter study or one of smaller epsilon; `echofed site budget --study` shows what fits."


class LedgerError(PrivacyError):
    """The site's ledger cannot be written or cannot be trusted; nothing private leaves until it can."""

    code = "EF-405"
    default_remedy = (
        "Restore the ledger's newest whole copy; without one run no private study; ask the data protection officer."
    )


class TooFewPatientsError(PrivacyError):
    """The site has fewer patients for this than it lets figures be made of."""

    code = "EF-406"
    default_remedy = "Register more patients, or run the study without this site."


class WireError(EchoFedError):
    """A message is refused."""

    code = "EF-500"


class ReplyRefusedError(WireError):
    """A site's reply does not have the agreed form."""

    code = "EF-501"
    default_remedy = "The reply is left out; ask the site for its log."


class ArraysError(WireError):
    """A buffer of arrays is malformed, too large or not what was agreed."""

    code = "EF-502"
    default_remedy = "Send the parameters the study's model names, in float32."


class RunError(EchoFedError):
    """A run cannot go on."""

    code = "EF-600"


class TooFewRepliesError(RunError):
    """Fewer sites answered than the study requires before anything is published."""

    code = "EF-601"
    default_remedy = "The last good model is kept; look at the sites named, then resume the run."


class CheckpointError(RunError):
    """A checkpoint cannot be written or read; the previous one stays valid."""

    code = "EF-602"
    default_remedy = "Free some disk space, then resume the run."


class SitesError(RunError):
    """The sites of a run cannot be made or do not fit the study."""

    code = "EF-603"
    default_remedy = "Check --data and the way the sites are split."


class InterruptedRunError(RunError):
    """The user stopped the run."""

    code = "EF-604"
    default_remedy = "Resume it with --resume."


class UnexpectedError(RunError):
    """EchoFed itself failed."""

    code = "EF-605"
    default_remedy = "Look at this site's log and report the fault."


class TrustError(EchoFedError):
    """It cannot be proven who someone is or what was agreed."""

    code = "EF-700"


class KeyFileError(TrustError):
    """A key or certificate file cannot be used."""

    code = "EF-701"
    default_remedy = "Use the right passphrase, and the key files `echofed site init` or `consortium init` wrote."


class CertificateError(TrustError):
    """A certificate is not accepted."""

    code = "EF-702"
    default_remedy = "Ask the coordinator whether the site is still enrolled; if so, enrol with a new invitation."


class SignatureError(TrustError):
    """A signature does not fit what it stands under."""

    code = "EF-703"
    default_remedy = "Do not use the document; ask its sender for it again."


class EnrolmentError(TrustError):
    """A site cannot be enrolled so."""

    code = "EF-704"
    default_remedy = "Ask the coordinator for a new invitation."


class NotApprovedError(TrustError):
    """The hospital has not approved this study, or has withdrawn from it."""

    code = "EF-705"
    default_remedy = "Nothing was run; `echofed site show` shows the study, `echofed site approve` approves it."


class PolicyRefusalError(TrustError):
    """The hospital's policy does not allow this."""

    code = "EF-706"
    default_remedy = "Change the study, or have the hospital change its policy.yaml."


class ReplayError(TrustError):
    """An instruction or reply is not for this consortium, site, round or time."""

    code = "EF-707"
    default_remedy = "Nothing was run; look at the audit log for who sent it."


class AuditLogError(TrustError):
    """The audit log cannot be written or cannot be trusted; nothing leaves until it can."""

    code = "EF-708"
    default_remedy = "Free some disk space or restore the newest whole copy of the log."


class ForeignCodeError(TrustError):
    """Something that is not EchoFed's was sent to run."""

    code = "EF-709"
    default_remedy = "Nothing was run; look at the audit log for who sent it."


class StateFolderError(TrustError):
    """The state folder cannot be used."""

    code = "EF-710"
    default_remedy = "Restore the folder from its newest whole copy, or upgrade EchoFed if a newer one wrote it."


class ClockError(TrustError):
    """The system's clock is off."""

    code = "EF-711"
    default_remedy = "Set the clock (e.g. with systemd-timesyncd) and start again."


class LinkError(EchoFedError):
    """The coordinator cannot be reached, or does not accept what was sent."""

    code = "EF-800"


class UnreachableError(LinkError):
    """The coordinator's server does not answer."""

    code = "EF-801"
    default_remedy = "Check address, firewall and the hospital's proxy; `echofed site doctor` tries each step."


class ProxyRefusedError(LinkError):
    """The hospital's HTTP proxy does not let the connection through."""

    code = "EF-802"
    default_remedy = "Ask the hospital's network team; write the proxy, with user and password, into link.yaml."


class GatewayRefusedError(LinkError):
    """The coordinator's gateway refused the request."""

    code = "EF-803"
    default_remedy = "Look at the reason named; ask the coordinator for the gateway's log."


class PortInUseError(LinkError):
    """Another program listens on the port."""

    code = "EF-804"
    default_remedy = "Choose another port or stop the other program."


class TooLargeError(LinkError):
    """A message is larger than was agreed."""

    code = "EF-805"
    default_remedy = "Raise the limit in the settings of the side that refused, or use a smaller model."
