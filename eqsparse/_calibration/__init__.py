"""What flows into the weights of a trained model, and pruning by it."""

from .calibrate import calibrate as calibrate
from .criteria import (
    AbstractInputCriterion as AbstractInputCriterion,
    InputMagnitude as InputMagnitude,
    RelativeImportance as RelativeImportance,
    RemovalError as RemovalError,
)
from .gradients import rms_gradients as rms_gradients
from .owl import OWL as OWL
from .pruners import AbstractPostTraining as AbstractPostTraining, RIA as RIA, Wanda as Wanda
from .reconstruct import reconstruct as reconstruct
from .sequential import prune_sequentially as prune_sequentially
from .sparse_gpt import SparseGPT as SparseGPT
from .statistics import SiteStatistics as SiteStatistics, Statistics as Statistics
from .tap import weighted as weighted
