"""Registries: the names that configs may use, and the way from `dict(type=...)` to an object.

A config is data. Its names are looked up in a registry and nowhere else; nothing it names is imported, evaluated or executed.
What stands in it is checked against the signature of the class it is for, and every problem is reported at once.
The built-in entries below are imported when they are first asked for.
"""

from __future__ import annotations

__all__ = (
    "AVERAGERS",
    "HOOKS",
    "HOOK_ADAPTERS",
    "LOOPS",
    "METRICS",
    "OPTIMIZERS",
    "PARAM_SCHEDULERS",
    "WRITERS",
    "Registry",
)

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast, overload

from hookbus._config import Constructor, copied, place, refuse, shown
from hookbus.errors import ConfigError, HookbusError, choices, describe_error, nearest

T = TypeVar("T")
_NOTHING: Mapping[str, object] = MappingProxyType({})


class Registry:
    """Classes by name, for the `type` of a config.

    `builtin` maps names to `package.module:Class`, imported on first use; `extra` is the extra of hookbus that installs it.
    """

    def __init__(self, name: str, builtin: Mapping[str, str] = MappingProxyType({}), *, extra: str | None = None) -> None:
        self.name = name
        self._entries: dict[str, type | str] = dict(builtin)
        self._extra = extra

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"Registry({self.name!r}, {len(self._entries)} entries)"

    def names(self) -> tuple[str, ...]:
        """Return every registered name, the built-in ones first."""
        return tuple(self._entries)

    def get(self, name: str) -> type:
        """Return the class registered under a name.

        Raises:
            ConfigError: the name is unknown, or the package that its class lives in is not installed.
        """
        if not isinstance(name, str) or name not in self._entries:
            raise ConfigError(f"no {self.name} is registered as {shown(name)}; {choices(str(name)[:100], self._entries)}")
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = self._imported(name, entry)
        return entry

    @overload
    def register_module(self, name: type[T], /) -> type[T]: ...
    @overload
    def register_module(self, name: str | None = None, *, force: bool = False) -> Callable[[type[T]], type[T]]: ...
    @overload
    def register_module(self, name: str | None = None, *, force: bool = False, module: type[T]) -> type[T]: ...
    def register_module(self, name: str | type | None = None, *, force: bool = False, module: type | None = None) -> object:
        """Register a class, as a decorator (with or without brackets) or at once with `module=`; its own name is the default.

        A class that is defined again, as when a notebook cell runs twice, replaces its former self.

        Raises:
            ConfigError: the name belongs to another class and `force` is not set, it is no text, or this is no class.
        """
        if isinstance(name, type):
            return self._add(None, name, force)
        if module is not None:
            return self._add(name, module, force)
        return lambda cls: self._add(name, cls, force)

    def build(
        self,
        config: object,
        *,
        path: str = "config",
        given: Mapping[str, object] = _NOTHING,
        extra_keys: Collection[str] = (),
    ) -> Any:
        """Build what a config describes; the config itself is left as it is.

        `given` are arguments that the caller adds and that may not stand in the config. `extra_keys` are keys that the caller
        reads itself: they may stand in the config, and the constructor gets one only if it has a parameter of that name.

        Raises:
            ConfigError: the config does not fit; names every problem with its path, value and what was expected. Or the
                constructor raised a TypeError or a ValueError, which is then its cause.
        """
        cls, arguments, problems = self._read(config, path, given, extra_keys)
        refuse(problems)
        try:
            return cls(**arguments)
        except Exception as error:
            if isinstance(error, TypeError | ValueError) and not isinstance(error, HookbusError):
                raise ConfigError(f"{path}: {cls.__qualname__} refuses its options: {describe_error(error)}") from error
            error.add_note(f"while building {cls.__qualname__} from {path}")
            raise

    def check(
        self,
        config: object,
        *,
        path: str = "config",
        given: Collection[str] = (),
        extra_keys: Collection[str] = (),
    ) -> list[str]:
        """Return everything that `build` would refuse about a config, one sentence each, without building it.

        Here `given` are only the names of the arguments that the caller will add.
        """
        return self._read(config, path, dict.fromkeys(given), extra_keys)[2]

    def _read(
        self, config: object, path: str, given: Mapping[str, object], extra_keys: Collection[str]
    ) -> tuple[type, dict[str, Any], list[str]]:
        """Return the class, the arguments for it, and what is wrong."""
        if not isinstance(config, Mapping):
            return object, {}, [f"{path} = {shown(config)}: expected a dict whose 'type' names a {self.name}"]
        problems = [f"{path} has the key {shown(key)}: expected text" for key in config if not isinstance(key, str)]
        options = {key: value for key, value in config.items() if isinstance(key, str)}
        try:
            cls = self._class_of(options, path)
            options = {key: copied(value, place(path, key)) for key, value in options.items() if key != "type"}
        except ConfigError as error:
            return object, {}, [*problems, str(error)]
        arguments, wrong = Constructor.of(cls).fit(options, path, given=given, extra_keys=extra_keys)
        return cls, arguments, problems + wrong

    def _class_of(self, options: Mapping[str, Any], path: str) -> type:
        where = place(path, "type")
        if "type" not in options:
            close = nearest("type", options)
            hint = f"the key {close!r} looks like it; " if close else ""
            raise ConfigError(f"{where} is missing: it says which {self.name} to build; {hint}{choices('', self.names())}")
        named = options["type"]
        if isinstance(named, type):
            return named
        if not isinstance(named, str):
            raise ConfigError(f"{where} = {shown(named)}: expected the name of a {self.name}, or a class")
        try:
            return self.get(named)
        except ConfigError as error:
            raise ConfigError(f"{where} = {shown(named)}: {error}") from error

    def _add(self, name: str | None, cls: type, force: bool) -> type:
        if not isinstance(cls, type):
            raise ConfigError(f"only a class can be registered as a {self.name}, got {shown(cls)}")
        if not isinstance(name, str | None) or name == "":
            raise ConfigError(f"the name of a {self.name} must be a text, got {shown(name)}")
        name = name or cls.__name__
        known = self._entries.get(name, cls)
        if not force and known is not cls and _target(known) != _target(cls):
            raise ConfigError(
                f"two classes are registered as the {self.name} {name!r}: {_target(known)} and {_target(cls)}; "
                f"give one of them another name, or pass force=True to replace the first"
            )
        self._entries[name] = cls
        return cls

    def _imported(self, name: str, target: str) -> type:
        module, _, qualname = target.partition(":")
        package = module.partition(".")[0]
        try:
            return cast(type, getattr(importlib.import_module(module), qualname))
        except ModuleNotFoundError as error:
            if self._extra is None or sys.modules.get(package) is not None:
                raise
            raise ConfigError(f"the {self.name} {name!r} needs {package}: pip install 'hookbus[{self._extra}]'") from error
        except AttributeError as error:
            raise ConfigError(f"the installed {package} has no {self.name} {name!r}: not found in {module}") from error


def _target(entry: type | str) -> str:
    return entry if isinstance(entry, str) else f"{entry.__module__}:{entry.__qualname__}"


def _table(module: str, names: str, prefix: str = "") -> dict[str, str]:
    return {f"{prefix}{name}": f"{module}:{prefix}{name}" for name in names.split()}


_CLASSIFICATION = """
    AUROC Accuracy AveragePrecision ConfusionMatrix EER F1Score FBetaScore HammingDistance JaccardIndex MatthewsCorrCoef
    NegativePredictiveValue Precision PrecisionRecallCurve ROC Recall Specificity StatScores
"""
_BINARY = f"{_CLASSIFICATION} CalibrationError CohenKappa HingeLoss"
_MULTICLASS = f"{_BINARY} ExactMatch"
_MULTILABEL = f"{_CLASSIFICATION} CoverageError ExactMatch RankingAveragePrecision RankingLoss"
_REGRESSION = """
    ConcordanceCorrCoef CosineSimilarity ExplainedVariance KLDivergence KendallRankCorrCoef LogCoshError MeanAbsoluteError
    MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogError MinkowskiDistance NormalizedRootMeanSquaredError
    PearsonCorrCoef R2Score RelativeSquaredError SpearmanCorrCoef SymmetricMeanAbsolutePercentageError TweedieDevianceScore
    WeightedMeanAbsolutePercentageError
"""

HOOKS = Registry(
    "hook",
    {
        "RuntimeInfoHook": "hookbus.hooks.runtime_info:RuntimeInfoHook",
        "IterTimerHook": "hookbus.hooks.iter_timer:IterTimerHook",
        "DistSamplerSeedHook": "hookbus.hooks.dist_sampler_seed:DistSamplerSeedHook",
        "LoggerHook": "hookbus.hooks.logger:LoggerHook",
        "ParamSchedulerHook": "hookbus.hooks.param_scheduler:ParamSchedulerHook",
        "CheckpointHook": "hookbus.hooks.checkpoint:CheckpointHook",
        "InvalidLossHook": "hookbus.hooks.invalid_loss:InvalidLossHook",
        "EarlyStoppingHook": "hookbus.hooks.early_stopping:EarlyStoppingHook",
        "EMAHook": "hookbus.hooks.ema:EMAHook",
        "EmptyCacheHook": "hookbus.hooks.empty_cache:EmptyCacheHook",
        "ProfilerHook": "hookbus.hooks.profiler:ProfilerHook",
        "SyncBuffersHook": "hookbus.hooks.sync_buffers:SyncBuffersHook",
        "NaiveVisualizationHook": "hookbus.hooks.naive_visualization:NaiveVisualizationHook",
    },
)
"""What may stand in `default_hooks` and `custom_hooks`."""

HOOK_ADAPTERS = Registry("hook adapter", {"mmengine.hooks.hook:Hook": "hookbus.integrations.mmengine:MMEngineHook"})
"""What is called in the place of hooks that were written for another library, by the module and name of their base class."""

LOOPS = Registry(
    "loop",
    {
        "EpochBasedTrainLoop": "hookbus.loops.epoch_based:EpochBasedTrainLoop",
        "IterBasedTrainLoop": "hookbus.loops.iter_based:IterBasedTrainLoop",
        "ValLoop": "hookbus.loops.val:ValLoop",
        "TestLoop": "hookbus.loops.test:TestLoop",
    },
)
"""What may stand as `type` in `train_cfg`, `val_cfg` and `test_cfg`."""

WRITERS = Registry(
    "writer",
    {
        "terminal": "hookbus.writers.terminal:TerminalWriter",
        "jsonl": "hookbus.writers.jsonl:JsonlWriter",
        "tensorboard": "hookbus.writers.tensorboard:TensorboardWriter",
        "csv": "hookbus.writers.csv:CSVWriter",
        "wandb": "hookbus.writers.wandb:WandbWriter",
        "mlflow": "hookbus.writers.mlflow:MLflowWriter",
    },
)
"""Where `LoggerHook` can write its records to."""

OPTIMIZERS = Registry(
    "optimizer",
    _table(
        "torch.optim",
        "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop Rprop SGD SparseAdam",
    ),
)
"""The optimizers of torch."""

PARAM_SCHEDULERS = Registry(
    "param scheduler",
    _table(
        "torch.optim.lr_scheduler",
        "ChainedScheduler ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LambdaLR LinearLR"
        " MultiStepLR MultiplicativeLR OneCycleLR PolynomialLR ReduceLROnPlateau SequentialLR StepLR",
    ),
)
"""The learning rate schedulers of torch."""

METRICS = Registry(
    "metric",
    _table("torchmetrics.classification", _MULTICLASS)
    | _table("torchmetrics.classification", _BINARY, "Binary")
    | _table("torchmetrics.classification", _MULTICLASS, "Multiclass")
    | _table("torchmetrics.classification", _MULTILABEL, "Multilabel")
    | _table("torchmetrics.regression", _REGRESSION)
    | _table("torchmetrics.aggregation", "CatMetric MaxMetric MeanMetric MinMetric SumMetric"),
    extra="metrics",
)
"""The metrics of torchmetrics for classification, for regression, and for averages of what a model returns."""

AVERAGERS = Registry(
    "averager",
    _table("hookbus.averaging.averagers", "ExponentialMovingAverage StochasticWeightAverage MomentumAnnealingEMA"),
)
"""Ways to average the weights of a model."""
