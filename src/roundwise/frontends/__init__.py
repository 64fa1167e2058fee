"""From a model to a graph: one front end for each form in which models come, and one line here."""

from roundwise.errors import ModelError
from roundwise.frontends.interface import Facts, Frontend, Signature
from roundwise.frontends.torch_export import TorchExport

FRONTENDS: dict[str, Frontend] = {
    "torch-export": TorchExport(),
}

__all__ = ["FRONTENDS", "Facts", "Frontend", "Signature", "TorchExport", "frontend_for"]


def frontend_for(model: object) -> Frontend:
    """The front end that reads a model.

    Raises:
        ModelError: there is none for models of this kind.
    """
    for frontend in FRONTENDS.values():
        if frontend.accepts(model):
            return frontend
    kinds = ", or ".join(frontend.reads for frontend in FRONTENDS.values())
    raise ModelError(
        f"the model is a {type(model).__name__}; it must be {kinds}. (A dict of weights needs its "
        "module: build it and call `load_state_dict`.)"
    )
