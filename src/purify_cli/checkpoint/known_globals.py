"""The globals that ordinary pickles name: torch's weights-only list, pinned, and what else is known harmless, and how.

Pinned so that the verdict does not hang on what is installed; a test holds it against torch
(`torch._weights_only_unpickler._get_allowed_globals`).
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Use(Enum):
    """In which way a harmless global may be used."""

    CALL = "any call with harmless arguments"
    CREATE = "created without a call of its own, or kept as a value"
    MEMBER = "called with one constant: the lookup of an Enum's member"
    MEMBER_BY_NAME = "only as getattr(an Enum, the name of a member)"
    NESTED = "only with constant bytes, which are examined in turn"


def _dotted(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


_TENSOR_TYPES = "BFloat16 Bool Byte Char Double Float Half Int Long Short"

WEIGHTS_ONLY: Final[frozenset[str]] = frozenset(
    _dotted("collections", "Counter OrderedDict")
    | _dotted("builtins", "bytearray complex set")
    | {"_codecs.encode", "torch.nn.parameter.Parameter", "torch.serialization._get_layout"}
    | {"torch._tensor._rebuild_from_type_v2", "torch.storage.TypedStorage", "torch.storage.UntypedStorage"}
    | _dotted("torch", "Size Tensor device")
    | _dotted("torch", "bfloat16 bool complex128 complex32 complex64 float16 float32 float64 float4_e2m1fn_x2")
    | _dotted("torch", "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu")
    | _dotted("torch", "bits16 bits1x8 bits2x4 bits4x2 bits8 qint32 qint8 quint2x4 quint4x2 quint8")
    | {f"torch.{sign}int{bits}" for sign in ("", "u") for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)}
    | _dotted("torch", "per_channel_affine per_channel_affine_float_qparams per_channel_symmetric")
    | _dotted("torch", "per_tensor_affine per_tensor_symmetric")
    | _dotted(
        "torch._utils",
        "_rebuild_device_tensor_from_cpu_tensor _rebuild_device_tensor_from_numpy _rebuild_meta_tensor_no_storage "
        "_rebuild_nested_tensor _rebuild_parameter _rebuild_parameter_with_state _rebuild_qtensor "
        "_rebuild_sparse_tensor _rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_wrapper_subclass",
    )
    | {f"{place}.{kind}Tensor" for place in ("torch", "torch.cuda") for kind in _TENSOR_TYPES.split()}
    | {
        f"{place}.sparse.{kind}Tensor"
        for place in ("torch", "torch.cuda")
        for kind in _TENSOR_TYPES.split()
        if kind != "Bool"
    }
    | {
        f"{place}.{kind}Storage"
        for place in ("torch", "torch.cuda")
        for kind in (*_TENSOR_TYPES.split(), "ComplexDouble", "ComplexFloat")
    }
    | _dotted("torch", "QInt32Storage QInt8Storage QUInt2x4Storage QUInt4x2Storage QUInt8Storage")
)

# In Python's and numpy's own pickles of plain data. None of them imports, calls or opens what its arguments name.
_PLAIN_DATA = (
    _dotted("collections", "defaultdict deque")
    | _dotted("builtins", "bool bytes dict float frozenset int list object range slice str tuple")
    | _dotted("copyreg", "_reconstructor __newobj__ __newobj_ex__")
    | _dotted("datetime", "date datetime time timedelta timezone")
    | _dotted("pathlib", "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath")
    | _dotted("pathlib._local", "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath")
    | {"decimal.Decimal", "fractions.Fraction", "types.SimpleNamespace", "torch.torch_version.TorchVersion"}
    | {
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    }
    | _dotted("numpy", "ndarray dtype bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 intc longlong")
    | _dotted(
        "numpy", "float16 float32 float64 float128 longdouble complex64 complex128 str_ bytes_ datetime64 timedelta64"
    )
    | {
        f"numpy.dtypes.{kind}DType"
        for kind in (
            "Bool",
            "Int8",
            "Int16",
            "Int32",
            "Int64",
            "UInt8",
            "UInt16",
            "UInt32",
            "UInt64",
            "Float16",
            "Float32",
            "Float64",
            "LongDouble",
            "Complex64",
            "Complex128",
            "Str",
            "Bytes",
            "Object",
            "DateTime64",
            "TimeDelta64",
        )
    }
    | _dotted("numpy.random._pickle", "__randomstate_ctor __bit_generator_ctor __generator_ctor")
    | {"numpy.random._mt19937.MT19937", "numpy.random._pcg64.PCG64", "numpy.random._pcg64.PCG64DXSM"}
    | {"numpy.random._philox.Philox", "numpy.random._sfc64.SFC64"}
    | _dotted("numpy.random.bit_generator", "SeedSequence __pyx_unpickle_SeedSequence")
    | {"ml_dtypes.bfloat16"}
)

# Settings that trainers pickle beside the weights (training_args.bin and their like).
_SETTINGS = (
    {"argparse.Namespace", "typing.Any"}
    | {"transformers.training_args.TrainingArguments", "transformers.training_args_seq2seq.Seq2SeqTrainingArguments"}
    | {"transformers.training_args_tf.TFTrainingArguments", "transformers.trainer_pt_utils.AcceleratorConfig"}
    | {"transformers.sagemaker.training_args_sm.SageMakerTrainingArguments"}
    | {"transformers.generation.configuration_utils.GenerationConfig", "transformers.generation_utils.GenerationConfig"}
    | {"transformers.generation.configuration_utils.CompileConfig"}
    | _dotted("transformers.deepspeed", "HfDeepSpeedConfig HfTrainerDeepSpeedConfig")
    | _dotted("transformers.integrations.deepspeed", "HfDeepSpeedConfig HfTrainerDeepSpeedConfig")
    | {"accelerate.utils.deepspeed.HfDeepSpeedConfig", "accelerate.parallelism_config.ParallelismConfig"}
    | _dotted("accelerate.state", "PartialState AcceleratorState GradientState")
    | _dotted(
        "accelerate.utils.dataclasses", "DeepSpeedPlugin FullyShardedDataParallelPlugin GradientAccumulationPlugin"
    )
    | _dotted("accelerate.utils.dataclasses", "DataLoaderConfiguration InitProcessGroupKwargs TorchDynamoPlugin")
    | {
        f"trl.trainer.{name.lower()}_config.{name}Config"
        for name in ("SFT", "DPO", "ORPO", "KTO", "CPO", "PPO", "PPOv2", "GRPO", "RLOO", "BCO", "GKD", "PRM", "Reward")
    }
    | _dotted("sentence_transformers.training_args", "SentenceTransformerTrainingArguments")
    | {"sentence_transformers.sentence_transformer.training_args.SentenceTransformerTrainingArguments"}
    | {"sentence_transformers.cross_encoder.training_args.CrossEncoderTrainingArguments"}
    | {"sentence_transformers.sparse_encoder.training_args.SparseEncoderTrainingArguments"}
    | {"setfit.training_args.TrainingArguments", "span_marker.training_args.TrainingArguments"}
    | _dotted("llamafactory.hparams.training_args", "TrainingArguments")
    | _dotted("llmtuner.hparams.training_args", "TrainingArguments")
    | _dotted("deepspeed.runtime.fp16.loss_scaler", "LossScaler DynamicLossScaler")
    | {"deepspeed.utils.tensor_fragment.fragment_address"}
    | {
        f"{package}.{name}"
        for package in ("pytorch_lightning", "lightning.pytorch")
        for name in (
            "callbacks.model_checkpoint.ModelCheckpoint",
            "callbacks.early_stopping.EarlyStopping",
            "utilities.parsing.AttributeDict",
        )
    }
    | {"lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict"}
    | {"omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"}
    | _dotted("omegaconf.base", "ContainerMetadata Metadata")
    | _dotted("omegaconf.nodes", "AnyNode BooleanNode FloatNode IntegerNode StringNode ValueNode")
)

_ENUMS = (
    _dotted("transformers.trainer_utils", "IntervalStrategy EvaluationStrategy SaveStrategy SchedulerType HubStrategy")
    | _dotted("transformers.trainer_utils", "ShardedDDPOption FSDPOption")
    | _dotted("transformers.training_args", "OptimizerNames ParallelMode")
    | {"transformers.debug_utils.DebugOption", "transformers.utils.quantization_config.QuantizationMethod"}
    | _dotted(
        "accelerate.utils.dataclasses",
        "DistributedType PrecisionType RNGType ComputeEnvironment DynamoBackend LoggerType",
    )
    | _dotted("accelerate.utils.dataclasses", "SageMakerDistributedType")
    | _dotted("torch.distributed.fsdp.api", "BackwardPrefetch ShardingStrategy StateDictType")
    | _dotted("torch.distributed.fsdp.fully_sharded_data_parallel", "BackwardPrefetch ShardingStrategy StateDictType")
    | _dotted("sentence_transformers.training_args", "BatchSamplers MultiDatasetBatchSamplers")
    | _dotted("sentence_transformers.base.training_args", "BatchSamplers MultiDatasetBatchSamplers")
    | {"trl.trainer.dpo_config.FDivergenceType", "trl.trainer.dpo_config.FDivergenceConstants"}
    | _dotted("deepspeed.runtime.zero.config", "ZeroStageEnum")
    | _dotted("deepspeed.runtime.zero.offload_config", "OffloadDeviceEnum")
    | {"megatron.core.enums.ModelType", "megatron.model.enums.ModelType"}
    | _dotted("megatron.core.transformer.enums", "AttnBackend AttnMaskType AttnType LayerType ModelType")
)

HARMLESS: Final[dict[str, Use]] = {
    **dict.fromkeys(WEIGHTS_ONLY | _PLAIN_DATA, Use.CALL),
    **dict.fromkeys(_SETTINGS, Use.CREATE),
    **dict.fromkeys(_ENUMS, Use.MEMBER),
    "builtins.getattr": Use.MEMBER_BY_NAME,
    "torch.storage._load_from_bytes": Use.NESTED,
}

# Bytes per element of the storages that torch's legacy format writes behind its pickles.
STORAGE_BYTES: Final[dict[str, int]] = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "ShortStorage", "BFloat16Storage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage", "UntypedStorage"), 1),
    **dict.fromkeys(("QInt8Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage"), 1),
    "ComplexDoubleStorage": 16,
}
