"""Export of models to ONNX, optionally with int8 weights, and to `torch.export`.

An exported model maps `pixel_values` (B, 3, H, W) from the image processor to `logits` (B, C_seen), for any B. It
includes the query pass and the selection of prompts for each image. The file also has the class names as a JSON list,
`labels`, and the configuration of the image processor, `preprocessor_config`. Requires the extra `[export]`.
"""

import copy
import json
from pathlib import Path

import onnx
import torch
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from torch.export import ExportedProgram

from .saved_models import SavedModel

MAX_PROTOBUF_BYTES = 2**31 - 2**24  # the weights of a larger ONNX model go into a second file


class _Logits(nn.Module):
    """A model whose output is only its logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


def export_program(saved: SavedModel) -> ExportedProgram:
    """The model as one graph on the CPU, for batches of any size."""
    crop = saved.image_processor.crop_size
    images = torch.zeros(2, 3, crop["height"], crop["width"])
    model = copy.deepcopy(saved.model.cpu()).eval()
    model.prompt_pool.fold(model.network.blocks)
    with torch.no_grad():
        program = torch.export.export(
            _Logits(model).eval(),
            (images,),
            dynamic_shapes={"pixel_values": {0: torch.export.Dim.DYNAMIC}},
        )
    # With a computed classifier nobody uses the trained head, whose region of full precision cannot be loaded again.
    program.graph_module.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def save_program(program: ExportedProgram, saved: SavedModel, path: Path) -> None:
    """Writes the graph for `torch.export.load(path, extra_files={"labels": "", "preprocessor_config": ""})`."""
    torch.export.save(program, path, extra_files=_description(saved))


def save_onnx(program: ExportedProgram, saved: SavedModel, path: Path) -> None:
    """Writes the graph as ONNX; weights of more than 2 GB go into a second file, `<name>.data`."""
    onnx_program = torch.onnx.export(
        program, input_names=["pixel_values"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert onnx_program is not None  # it is None only with dynamo=False
    # Fold large transposed weights too: quantization to int8 needs constant weights.
    optimize_ir(onnx_program.model, input_size_limit=MAX_PROTOBUF_BYTES, output_size_limit=MAX_PROTOBUF_BYTES)
    onnx_program.model.metadata_props.update(_description(saved))
    weights = sum(p.numel() * p.element_size() for p in saved.model.parameters())
    onnx_program.save(path, external_data=weights > MAX_PROTOBUF_BYTES)


def save_int8(onnx_path: Path, path: Path) -> None:
    """Writes an ONNX model with 8-bit weights in its linear layers and dynamically quantized activations."""
    model = onnx.load(onnx_path)
    del model.graph.value_info[:]  # outdated shapes from before folding, which onnxruntime would use
    quantize_dynamic(
        model,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],  # int8 convolutions are slower
        weight_type=QuantType.QInt8,
        per_channel=True,
        use_external_data_format=Path(f"{onnx_path}.data").exists(),
    )


class OnnxModel:
    """An ONNX model in onnxruntime on the CPU, with as many threads as torch: pixel values -> logits."""

    def __init__(self, path: Path):
        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, pixel_values: Tensor) -> Tensor:
        (logits,) = self.session.run(["logits"], {"pixel_values": pixel_values.numpy()})
        return torch.from_numpy(logits)


def _description(saved: SavedModel) -> dict[str, str]:
    return {
        "labels": json.dumps(saved.class_names, ensure_ascii=False),
        "preprocessor_config": json.dumps(saved.image_processor.to_dict()),
    }
