"""Sparse models for Equinox: masked layers, pruners, and export that really shrinks a model."""

from ._criterion import (
    AbstractCriterion as AbstractCriterion,
    GradientMagnitude as GradientMagnitude,
    Magnitude as Magnitude,
    Random as Random,
    Saliency as Saliency,
)
from ._distribution import (
    AbstractDistribution as AbstractDistribution,
    ERK as ERK,
    Global as Global,
    PerPath as PerPath,
    Uniform as Uniform,
)
from ._export import BCOOLinear as BCOOLinear, to_bcoo as to_bcoo
from ._layers import (
    AbstractMasked as AbstractMasked,
    Masked as Masked,
    MaskedConv as MaskedConv,
    MaskedConv1d as MaskedConv1d,
    MaskedConv2d as MaskedConv2d,
    MaskedConv3d as MaskedConv3d,
    MaskedConvTranspose as MaskedConvTranspose,
    MaskedConvTranspose1d as MaskedConvTranspose1d,
    MaskedConvTranspose2d as MaskedConvTranspose2d,
    MaskedConvTranspose3d as MaskedConvTranspose3d,
    MaskedEmbedding as MaskedEmbedding,
    MaskedGRUCell as MaskedGRUCell,
    MaskedLinear as MaskedLinear,
    MaskedLSTMCell as MaskedLSTMCell,
)
from ._mask import Mask as Mask
from ._model import (
    combine as combine,
    get_masks as get_masks,
    materialise as materialise,
    nbytes as nbytes,
    partition as partition,
    set_masks as set_masks,
    sparsify as sparsify,
)
from ._pruner import (
    AbstractPruner as AbstractPruner,
    AbstractTransition as AbstractTransition,
    GlobalMagnitudePruning as GlobalMagnitudePruning,
    GlobalSaliencyPruning as GlobalSaliencyPruning,
    GradualPruning as GradualPruning,
    MagnitudePruning as MagnitudePruning,
    Monotone as Monotone,
    NoPruning as NoPruning,
    PrunerState as PrunerState,
    RandomPruning as RandomPruning,
    SaliencyPruning as SaliencyPruning,
)
from ._report import Report as Report, report as report
from ._schedule import (
    AbstractSchedule as AbstractSchedule,
    NoSchedule as NoSchedule,
    OneShot as OneShot,
    Periodic as Periodic,
    Polynomial as Polynomial,
)
from ._structure import (
    AbstractPooling as AbstractPooling,
    AbstractStructure as AbstractStructure,
    Block as Block,
    Channel as Channel,
    Geometry as Geometry,
    NM as NM,
    Unstructured as Unstructured,
)
