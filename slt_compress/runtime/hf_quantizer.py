"""The door for `AutoModel….from_pretrained(DIR)`: transformers' public interface of quantizers.

This is imported in the middle of transformers' own import: what reads artifacts is imported later.

The weights of a sparse artifact are checked and decoded before transformers asks for the first of
them, so that what it loads is right or an error. A model that was opened is an ordinary dense one:
it forgets how it was stored, and saving it writes what saving any other model writes.
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

from slt_compress.artifacts.formats import FORMATS
from slt_compress.errors import ArtifactError

METHOD = "slt-compress"
WEIGHTS, INDEX = "weights.slt.safetensors", "weights.slt.safetensors.index.json"


class SltConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What `quantization_config` in the config.json of an artifact says."""

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
        self.dequantize = True  # transformers then takes all traces off the opened model


class Decoded(ConversionOps):  # type: ignore[misc]
    """A conversion of some parts into a weight that is known already."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __deepcopy__(self, memo: object) -> Decoded:
        return self  # transformers copies conversions, which must not copy the weight

    def convert(self, *args: Any, full_layer_name: str, **kwargs: Any) -> dict[str, Tensor]:
        """Give the weight, whatever parts there are."""
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
            ArtifactError: an unknown format, or a file that is none of an artifact.
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
        """Name the file, in memory only: the last hook before transformers looks for it."""
        config.transformers_weights = self.quantization_config.weights
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """Name the file for transformers before 5.20, which has this hook in that place."""
        return self.update_attn_implementation(config)

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Read the artifact; one that is a mask alone sends transformers to its origin's files."""
        from slt_compress.artifacts import read_mask_artifact, read_site_tensors
        from slt_compress.artifacts.origin import origin_of_artifact

        files: list[str] = kwargs["checkpoint_files"]
        folder = Path(files[0]).parent
        if self.quantization_config.format == "mask":
            self._mask = read_mask_artifact(folder)
            recorded = origin_of_artifact(folder, self._mask.manifest.get("provenance"), self._mask)
            files[:] = map(str, recorded.files())
            return model
        with torch.device("cpu"):  # transformers builds models without memory around this
            self._tensors, self._keys = read_site_tensors(folder, _shapes_of(model))
        self._cast()
        return model

    def _cast(self) -> None:
        """Decoded weights as the caller wants them: as they are, or in the dtype of the model."""
        dtype = self._dtype
        floats = {t.dtype for t in self._tensors.values() if t.is_floating_point()}
        if dtype is not None and floats and dtype not in floats:
            self._tensors = {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for name, tensor in self._tensors.items()
            }

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> Any:
        """Parts of a weight stay what they are; anything else gets the dtype of the model."""
        if any(isinstance(op, Decoded) for op in getattr(converter, "operations", ())):
            return None
        return super().get_new_dtype(converter, param, dtype)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> Any:
        """The parts of a site become its weight; names are those of the model already."""
        if self._mask is not None:
            return weight_conversions
        return [
            WeightConverter(
                [f"^{re.escape(key)}$" for key in self._keys[name]], name, [Decoded(tensor)]
            )
            for name, tensor in self._tensors.items()
        ]

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Put the mask on, and leave nothing in the config that belongs to the artifact."""
        config: Any = model.config
        if "transformers_weights" in vars(config):
            del config.transformers_weights
        self._tensors = {}
        # these were for this artifact's parts; saving goes by the conversions of the model's kind
        vars(model).pop("_weight_conversions", None)
        if self._mask is not None:
            from slt_compress.runtime.opening import mask_of

            mask_of(self._mask).put_on_(model)
        return model


def _shapes_of(model: nn.Module) -> Callable[[str], tuple[int, ...] | None]:
    """The shape that a model has for a name, which may be that of one with another head."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def shape_of(name: str) -> tuple[int, ...] | None:
        names = (name, prefix + name, name.removeprefix(prefix))
        return next((own[each] for each in names if each in own), None)

    return shape_of
