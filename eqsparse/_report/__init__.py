"""What became of a model: tables and figures."""

from .history import History as History
from .report import Report as Report, report as report
from .sensitivity import Sensitivity as Sensitivity, sensitivity as sensitivity
