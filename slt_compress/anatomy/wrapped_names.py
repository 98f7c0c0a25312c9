"""The name of a parameter without what wrappers of the model put around it."""

from __future__ import annotations

_PREFIXES = ("module.", "_orig_mod.", "base_model.model.", "base_model.", "model.")
_WRAPPERS = ((".base_layer.", "."), (".parametrizations.weight.original", ".weight"),
             (".original_module.", "."), (".orig.", "."))  # fmt: skip


def plain_name(name: str) -> str:
    """The name as data parallelism, `torch.compile`, peft and heads leave it.

    Two parameters are the same one only if these names agree; that is no proof.
    """
    for wrapper, plain in _WRAPPERS:
        name = name.replace(wrapper, plain)
    while prefix := next((each for each in _PREFIXES if name.startswith(each)), ""):
        name = name.removeprefix(prefix)
    return name
