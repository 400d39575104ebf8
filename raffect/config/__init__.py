"""Every setting of every command, a module a group of commands.

tyro turns these classes into flags; the text below a field is its help. All are frozen and checked
on construction, so that a wrong value is one line at the start and not an error hours later.
"""

from raffect.config.bank import (
    BankExportConfig,
    BankImportConfig,
    BankInfoConfig,
    BankJoinConfig,
    BankRejectsConfig,
    BankVerifyConfig,
    ExtractConfig,
)
from raffect.config.common import MayChange, count_cores, may_change, require_types
from raffect.config.compare import CompareConfig
from raffect.config.data import PackConfig, PrepareConfig, SynthConfig
from raffect.config.encoders import (
    EMBEDDED_MODEL,
    TIMM_PREFIX,
    EncoderConfig,
    ModelsListConfig,
    ModelsPathConfig,
    ModelsPullConfig,
    ModelsVerifyConfig,
)
from raffect.config.export import ExportConfig
from raffect.config.faces import FacesConfig
from raffect.config.language import (
    CaptionsConfig,
    ImportEmoclipConfig,
    LearnPromptsConfig,
    ProbeConfig,
    ZeroshotConfig,
)
from raffect.config.learn import LearnConfig, TrainConfig, TuneConfig
from raffect.config.machine import DemoConfig, DoctorConfig
from raffect.config.results import (
    CORRUPTION_NAMES,
    EvaluateConfig,
    PostprocessConfig,
    PredictConfig,
    ReportConfig,
    RobustConfig,
    SubmitConfig,
)

__all__ = [
    "CORRUPTION_NAMES",
    "EMBEDDED_MODEL",
    "TIMM_PREFIX",
    "BankExportConfig",
    "BankImportConfig",
    "BankInfoConfig",
    "BankJoinConfig",
    "BankRejectsConfig",
    "BankVerifyConfig",
    "CaptionsConfig",
    "CompareConfig",
    "DemoConfig",
    "DoctorConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ExtractConfig",
    "FacesConfig",
    "ImportEmoclipConfig",
    "LearnConfig",
    "LearnPromptsConfig",
    "MayChange",
    "ModelsListConfig",
    "ModelsPathConfig",
    "ModelsPullConfig",
    "ModelsVerifyConfig",
    "PackConfig",
    "PostprocessConfig",
    "PredictConfig",
    "PrepareConfig",
    "ProbeConfig",
    "ReportConfig",
    "RobustConfig",
    "SubmitConfig",
    "SynthConfig",
    "TrainConfig",
    "TuneConfig",
    "ZeroshotConfig",
    "count_cores",
    "may_change",
    "require_types",
]
