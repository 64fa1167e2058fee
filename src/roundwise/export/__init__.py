"""Files for other runtimes. Each export is run there, and compared with the model, before it is kept."""

from roundwise.export.onnx import OnnxExport, export_onnx

__all__ = ["OnnxExport", "export_onnx"]
