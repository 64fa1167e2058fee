"""Files for other runtimes. Each export is run there, and compared with the model, before it is kept."""

from roundwise.exporters.onnx import OnnxExport, export

__all__ = ["OnnxExport", "export"]
