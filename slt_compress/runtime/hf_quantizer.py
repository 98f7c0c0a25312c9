"""Open artifacts with `AutoModel….from_pretrained(DIR)`, through transformers' quantizer interface.

This module is imported during transformers' own import, so it imports what reads artifacts later.

The weights of a sparse artifact are checked and decoded before transformers asks for the first of
them, so that it loads the right weights or fails. An opened model is an ordinary dense one: it does
not remember how it was stored, and saving it writes what saving any other model writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from slt_compress.artifacts.formats import FORMATS, MASK_FORMAT
from slt_compress.errors import ArtifactError

METHOD = "slt-compress"
WEIGHTS, INDEX = "weights.slt.safetensors", "weights.slt.safetensors.index.json"


class SltConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` in the config.json of an artifact."""

    def __init__(
        self,
        quant_method: str = METHOD,
        format: str = "",
        version: int = 1,
        weights: str = WEIGHTS,
        **unknown: object,
    ) -> None:
        self.quant_method = quant_method
        self.format = format
        self.version = version
        self.weights = weights
        self.dequantize = True  # transformers then removes every trace from the opened model


class Decoded(ConversionOps):  # type: ignore[misc]
    """A conversion of some parts into a weight that was decoded already."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __deepcopy__(self, memo: object) -> Decoded:
        return self  # transformers copies conversions; the weight must not be copied with them

    def convert(self, *args: Any, full_layer_name: str, **kwargs: Any) -> dict[str, Tensor]:
        """Return the weight, whatever the parts are."""
        return {full_layer_name: self.tensor}


class SltQuantizer(HfQuantizer):  # type: ignore[misc]
    """Opens an artifact while transformers loads it."""

    quantization_config: SltConfig

    def __init__(self, quantization_config: SltConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._tensors: dict[str, Tensor] = {}
        self._keys: Mapping[str, tuple[str, ...]] = {}
        self._mask: Any = None
        self._dtype: torch.dtype | None = None

    @property
    def is_trainable(self) -> bool:
        """An opened model is an ordinary one."""
        return True

    def is_serializable(self) -> bool:
        """An opened model is an ordinary one."""
        return True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what this version cannot open, before anything is built.

        Raises:
            ArtifactError: an unknown format, or a file that no artifact has.
        """
        config = self.quantization_config
        if config.format == "shrunk":
            raise ArtifactError("a shrunk model has other sizes than its config says: only "
                                "slt_compress.load opens it")  # fmt: skip
        if config.format not in FORMATS or not FORMATS[config.format].sparse:
            raise ArtifactError(
                f"this slt-compress has no sparse format {str(config.format)[:40]!r}; upgrade"
            )
        if config.weights not in (WEIGHTS, INDEX):
            raise ArtifactError(
                f"the weights of an artifact are not in {str(config.weights)[:80]!r}"
            )

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Remember the dtype that was asked for."""
        self._dtype = dtype
        return dtype

    def update_attn_implementation(self, config: Any) -> Any:
        """Set the file name, in memory only, in the last hook before transformers looks for it."""
        config.transformers_weights = self.quantization_config.weights
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """Set the file name for transformers before 5.20, which calls this hook instead."""
        return self.update_attn_implementation(config)

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Read the artifact; for a mask alone, point transformers to the files of its origin."""
        from slt_compress.artifacts import read_mask_artifact, read_site_tensors
        from slt_compress.artifacts.origin import origin_of_artifact

        files: list[str] = kwargs["checkpoint_files"]
        folder = Path(files[0]).parent
        if self.quantization_config.format == MASK_FORMAT:
            self._mask = read_mask_artifact(folder)
            recorded = origin_of_artifact(self._mask.artifact, self._mask)
            files[:] = map(str, recorded.files())
            return model
        with torch.device("cpu"):  # transformers builds models on the meta device here
            self._tensors, self._keys = read_site_tensors(folder, _shapes_of(model))
        self._cast()
        return model

    def _cast(self) -> None:
        """Cast the decoded weights to the dtype that was asked for, if any."""
        dtype = self._dtype
        floats = {t.dtype for t in self._tensors.values() if t.is_floating_point()}
        if dtype is not None and floats and dtype not in floats:
            self._tensors = {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for name, tensor in self._tensors.items()
            }

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> Any:
        """Parts of a weight keep their dtype; anything else gets the dtype of the model."""
        if any(isinstance(op, Decoded) for op in getattr(converter, "operations", ())):
            return None
        return super().get_new_dtype(converter, param, dtype)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> Any:
        """Convert the parts of a site to its weight; their names are already those of the model."""
        if self._mask is not None:
            return weight_conversions
        return [
            WeightConverter(
                [f"^{re.escape(key)}$" for key in self._keys[name]], name, [Decoded(tensor)]
            )
            for name, tensor in self._tensors.items()
        ]

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Put the mask on, and remove from the config what belongs to the artifact."""
        config: Any = model.config
        if "transformers_weights" in vars(config):
            del config.transformers_weights
        self._tensors = {}
        # These were for the parts in this artifact; saving uses the conversions of the model class.
        vars(model).pop("_weight_conversions", None)
        if self._mask is not None:
            from slt_compress.runtime.opening import mask_of

            mask_of(self._mask).put_on_(model)
        return model


def _shapes_of(model: nn.Module) -> Callable[[str], tuple[int, ...] | None]:
    """The shape that a model has for a name, which may come from a model with another head."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def shape_of(name: str) -> tuple[int, ...] | None:
        names = (name, prefix + name, name.removeprefix(prefix))
        return next((own[each] for each in names if each in own), None)

    return shape_of
