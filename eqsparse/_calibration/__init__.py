"""What flows into the weights of a trained model, and pruning by it."""

from .calibrate import calibrate as calibrate
from .statistics import SiteStatistics as SiteStatistics, Statistics as Statistics
from .tap import weighted as weighted
