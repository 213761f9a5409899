"""The verifier: a converted model against its source, judged by the source's own run in float64.

report = verify(source, model, backends=("jax", "onnxruntime"))
report.passed; report.raise_if_failed(); report.to_html("report.html")
"""

from .report import Report
from .source import ModelSource, Source
from .verify import verify

__all__ = ["ModelSource", "Report", "Source", "verify"]
