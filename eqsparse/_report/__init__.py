"""What became of a model: tables and figures."""

from .report import Report as Report, report as report
from .sensitivity import Sensitivity as Sensitivity, sensitivity as sensitivity
