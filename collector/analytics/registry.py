"""All analyses: a new one is a file of its own and a name here."""

from collector.analytics import (
    anomalies,
    correlations,
    forecast,
    maintenance,
    patterns,
    risk,
    sequences,
    threats,
    trends,
)
from collector.analytics.answer import Analysis

_MODULES = (patterns, anomalies, correlations, sequences, trends, risk, maintenance, threats, forecast)
ANALYSES: dict[str, Analysis] = {module.ANALYSIS.name: module.ANALYSIS for module in _MODULES}
