"""Published architectures as ONNX files, with random weights that are calibrated: what the import from ONNX is tested
and measured on.

Small networks for tests have the structure of the full ones; full ones have the published depth and width (CNNs, 224
pixels), or 6 layers that are 384 wide with 128 tokens (transformers, LSTM). Freshly initialised networks are a poor
test: biases are zero, norms are the identity, residual branches are scaled by 1e-6, and deep ones give nearly the same
output whatever they see. So `calibrated` sets what initialisation leaves trivial and scales each layer by what it
gives on example inputs. Nothing is downloaded.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIZES = ("small", "full")
OPSETS = (18, 20)
CALIBRATION_BATCH = {"small": 64, "full": 16}  # the last norm of a small CNN sees 4 positions of each image
RESERVED = 3  # token ids that mean something to the models


@dataclass(frozen=True)
class Architecture:
    """One entry of the zoo.

    Arguments:
        module: builds it, uncalibrated, given whether it is the full one.
        inputs: makes inputs, given whether for the full one, the batch and a generator.
        names: of the inputs.
        dynamo: whether torch.export can make a graph of it for ONNX; the TorchScript exporter is used otherwise.
    """

    module: Callable[[bool], nn.Module]
    inputs: Callable[[bool, int, torch.Generator], tuple[Tensor, ...]]
    names: tuple[str, ...] = ("image",)
    dynamo: bool = True


# --- convolutional networks, after the papers and torchvision's module structure


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (ResNet)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + shortcut)


def resnet18(full: bool) -> nn.Module:
    """ResNet-18."""
    widths = (64, 128, 256, 512) if full else (8, 12, 16, 24)
    blocks = []
    inputs = widths[0]
    for stage, width in enumerate(widths):
        blocks += [BasicBlock(inputs, width, 2 if stage else 1), BasicBlock(width, width, 1)]
        inputs = width
    return nn.Sequential(
        nn.Conv2d(3, widths[0], 7, 2, 3, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, _classes(full)),
    )


def _classes(full: bool) -> int:
    return 1000 if full else 10


def _width(channels: float) -> int:
    """The multiple of 8 that is nearest, and not more than a tenth below (MobileNet's rule)."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Convolution, norm and activation."""
    parts: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=eps),
    ]
    return nn.Sequential(*parts, *([activation()] if activation else []))


class Excitation(nn.Module):
    """Squeeze and excitation: channels scaled by a function of their means."""

    def __init__(self, channels: int, hidden: int, activation: type[nn.Module], gate: type[nn.Module]):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.activation = activation()
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.activation(self.fc1(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, excitation and projection (MobileNet V2 and V3, EfficientNet)."""

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        excitation: nn.Module | None,
        eps: float = 1e-5,
    ):
        super().__init__()
        parts: list[nn.Module] = []
        if expanded != inputs:
            parts.append(_conv(inputs, expanded, 1, activation=activation, eps=eps))
        parts.append(_conv(expanded, expanded, kernel, stride, expanded, activation, eps))
        if excitation is not None:
            parts.append(excitation)
        parts.append(_conv(expanded, outputs, 1, eps=eps))
        self.block = nn.Sequential(*parts)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


# kernel, expanded channels, output channels, excitation, Hardswish, stride
_MOBILENET = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


def mobilenet_v3_small(full: bool) -> nn.Module:
    """MobileNetV3-Small."""
    scale = 1.0 if full else 0.25
    inputs = _width(16 * scale)
    parts: list[nn.Module] = [_conv(3, inputs, 3, 2, activation=nn.Hardswish, eps=1e-3)]
    for kernel, expanded, outputs, excited, hard, stride in _MOBILENET:
        inner, outer = _width(expanded * scale), _width(outputs * scale)
        excitation = Excitation(inner, _width(inner / 4), nn.ReLU, nn.Hardsigmoid) if excited else None
        activation = nn.Hardswish if hard else nn.ReLU
        parts.append(InvertedResidual(inputs, inner, outer, kernel, stride, activation, excitation, 1e-3))
        inputs = outer
    last, hidden = _width(576 * scale), _width(1024 * scale)
    return nn.Sequential(
        *parts,
        _conv(inputs, last, 1, activation=nn.Hardswish, eps=1e-3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(last, hidden),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(hidden, _classes(full)),
    )


# expansion, kernel, stride of the first, output channels, how many
_EFFICIENTNET = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def efficientnet_b0(full: bool) -> nn.Module:
    """EfficientNet-B0."""
    scale = 1.0 if full else 0.25
    inputs = _width(32 * scale)
    parts: list[nn.Module] = [_conv(3, inputs, 3, 2, activation=nn.SiLU)]
    for expansion, kernel, stride, channels, count in _EFFICIENTNET:
        outputs = _width(channels * scale)
        for i in range(count):
            expanded = inputs * expansion
            excitation = Excitation(expanded, max(1, inputs // 4), nn.SiLU, nn.Sigmoid)
            parts.append(InvertedResidual(inputs, expanded, outputs, kernel, 1 if i else stride, nn.SiLU, excitation))
            inputs = outputs
    last = _width(1280 * scale)
    return nn.Sequential(
        *parts,
        _conv(inputs, last, 1, activation=nn.SiLU),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(last, _classes(full)),
    )


class DenseLayer(nn.Module):
    """Norm, 1 x 1 and 3 x 3 convolution; gives its input with the new channels behind."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.new = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.new(x)), 1)


def densenet121(full: bool) -> nn.Module:
    """DenseNet-121."""
    growth, counts = (32, (6, 12, 24, 16)) if full else (4, (2, 3, 4, 3))
    channels = 2 * growth
    parts: list[nn.Module] = [_conv(3, channels, 7, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    for stage, count in enumerate(counts):
        if stage:
            parts += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            parts.append(nn.AvgPool2d(2))
            channels //= 2
        for _ in range(count):
            parts.append(DenseLayer(channels, growth))
            channels += growth
    return nn.Sequential(
        *parts,
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, _classes(full)),
    )


# --- sequences


class BiLSTM(nn.Module):
    """Two bidirectional layers between an embedding and a head that reads the last step."""

    def __init__(self, vocabulary: int, width: int, outputs: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        steps, _ = self.lstm(self.embedding(tokens))
        return self.head(steps[:, -1] + steps.mean(1))


def bilstm(full: bool) -> nn.Module:
    """A bidirectional LSTM that classifies texts."""
    return BiLSTM(_vocabulary(full), 384, 10) if full else BiLSTM(_vocabulary(full), 24, 5)


# --- transformers


class Positional(nn.Module):
    """A model of transformers, called by position, that returns one tensor."""

    def __init__(self, model: nn.Module, names: Sequence[str], output: str, **options: Any):
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.output = output
        self.options = options

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.model(**dict(zip(self.names, inputs, strict=True)), **self.options), self.output)


def _vocabulary(full: bool) -> int:
    return 4096 if full else 99


def _sizes(full: bool) -> dict[str, Any]:
    width = 384 if full else 32
    return {
        "hidden_size": width,
        "num_hidden_layers": 6 if full else 2,
        "num_attention_heads": 6 if full else 4,
        "intermediate_size": 4 * width,
    }


def _transformer(model: str, config: str, names: Sequence[str], output: str, **sizes: Any) -> nn.Module:
    import transformers

    options = {"use_cache": False} if sizes.pop("decoder", False) else {}
    configuration = getattr(transformers, config)(**sizes, return_dict=True)
    return Positional(getattr(transformers, model)(configuration), names, output, **options)


def bert(full: bool) -> nn.Module:
    """BERT with a mask of the padding; gives the states of the last layer."""
    sizes = _sizes(full) | {"vocab_size": _vocabulary(full), "max_position_embeddings": 128}
    names = ("input_ids", "attention_mask")
    return _transformer("BertModel", "BertConfig", names, "last_hidden_state", **sizes)


def gpt2(full: bool) -> nn.Module:
    """GPT-2; gives the logits."""
    sizes = {"n_embd": 384, "n_layer": 6, "n_head": 6} if full else {"n_embd": 32, "n_layer": 2, "n_head": 4}
    tokens = {"vocab_size": _vocabulary(full), "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2}
    return _transformer("GPT2LMHeadModel", "GPT2Config", ("input_ids",), "logits", decoder=True, **sizes, **tokens)


def llama(full: bool) -> nn.Module:
    """Llama with grouped queries; gives the logits."""
    sizes = _sizes(full) | {"vocab_size": _vocabulary(full), "num_key_value_heads": 2}
    sizes["intermediate_size"] = 1024 if full else 88
    return _transformer("LlamaForCausalLM", "LlamaConfig", ("input_ids",), "logits", decoder=True, **sizes)


def vit(full: bool) -> nn.Module:
    """Vision transformer."""
    sizes = _sizes(full) | {"image_size": _pixels(full), "patch_size": 16 if full else 8, "num_labels": _classes(full)}
    return _transformer("ViTForImageClassification", "ViTConfig", ("pixel_values",), "logits", **sizes)


def swin(full: bool) -> nn.Module:
    """Swin-T."""
    tiny = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    sizes: dict[str, Any] = {"image_size": _pixels(full) if full else 32, "patch_size": 4, "num_labels": _classes(full)}
    sizes |= {} if full else tiny
    sizes["attn_implementation"] = "eager"  # the exporter cannot decompose the other one's views
    return _transformer("SwinForImageClassification", "SwinConfig", ("pixel_values",), "logits", **sizes)


def convnext(full: bool) -> nn.Module:
    """ConvNeXt-T."""
    sizes: dict[str, Any] = {"num_labels": _classes(full)}
    sizes |= {} if full else {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
    return _transformer("ConvNextForImageClassification", "ConvNextConfig", ("pixel_values",), "logits", **sizes)


# --- inputs


def _pixels(full: bool) -> int:
    return 224 if full else 64


def _images(batch: int, pixels: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Images with structure of several sizes: means over white noise hardly differ between images."""
    image = 0.3 * torch.randn(batch, 3, pixels, pixels, generator=generator)
    for cells in (2, 5, 14):
        noise = torch.randn(batch, 3, cells, cells, generator=generator)
        image += nn.functional.interpolate(noise, (pixels, pixels), mode="bilinear", align_corners=False)
    return (image,)


def _photos(full: bool, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return _images(batch, _pixels(full), generator)


def _thumbnails(full: bool, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return _images(batch, 224 if full else 32, generator)


def _tokens(full: bool, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randint(RESERVED, _vocabulary(full), (batch, 128 if full else 12), generator=generator),)


def _masked(full: bool, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    (tokens,) = _tokens(full, batch, generator)
    lengths = torch.randint(tokens.shape[1] // 2, tokens.shape[1] + 1, (batch, 1), generator=generator)
    return tokens, (torch.arange(tokens.shape[1]) < lengths).to(torch.int64)


ARCHITECTURES = {
    "resnet18": Architecture(resnet18, _photos),
    "mobilenet_v3_small": Architecture(mobilenet_v3_small, _photos),
    "efficientnet_b0": Architecture(efficientnet_b0, _photos),
    "densenet121": Architecture(densenet121, _photos),
    "convnext": Architecture(convnext, _photos),
    "vit": Architecture(vit, _photos),
    "swin": Architecture(swin, _thumbnails),
    "bert": Architecture(bert, _masked, ("tokens", "mask")),
    "gpt2": Architecture(gpt2, _tokens, ("tokens",)),
    "llama": Architecture(llama, _tokens, ("tokens",)),
    "bilstm": Architecture(bilstm, _tokens, ("tokens",)),
}


def inputs_of(name: str, size: str, batch: int, seed: int = 1) -> tuple[Tensor, ...]:
    """Inputs of a model: images (batch, 3, pixels, pixels) float32, or tokens and mask (batch, length) int64."""
    generator = torch.Generator().manual_seed(seed)
    return ARCHITECTURES[name].inputs(size == "full", batch, generator)


def module_of(name: str, size: str) -> nn.Module:
    """A calibrated model in evaluation mode; the same at every call."""
    torch.manual_seed(0)
    with _quiet():
        module = ARCHITECTURES[name].module(size == "full")
        return calibrated(module, inputs_of(name, size, CALIBRATION_BATCH[size], seed=0))


# --- calibration


def calibrated(module: nn.Module, inputs: tuple[Tensor, ...], seed: int = 0) -> nn.Module:
    """Gives a freshly initialised module weights that a trained one could have, in place.

    Each linear and convolutional layer is scaled so that its channels vary by about 1 over the inputs, and its bias
    centres them around random means (LSUV, Mishkin and Matas 2016, by channel); batch norms get the statistics of the
    inputs; what is initialised to a constant (norms, layer scales, class tokens, tables of positions) becomes random.

    Arguments:
        module: any module; layers of it that are called twice are scaled by their first call.
        inputs: of its forward.
        seed: of the random numbers.

    Returns:
        The module, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    module.eval()
    hooks = []
    with torch.no_grad():
        for layer in module.modules():
            _randomise(layer, generator)
        tables = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.train()
                layer.momentum = 1.0  # running statistics are those of this batch
            elif _is_linear(layer) and id(layer.weight) not in tables:  # not what is tied to an embedding
                hooks.append(layer.register_forward_hook(_Scaling(generator)))
        module(*inputs)
    for hook in hooks:
        hook.remove()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1
    return module.eval()


def _is_linear(layer: nn.Module) -> bool:
    """Linear, Conv2d, or GPT-2's Conv1D, which is a Linear with its weight transposed."""
    return isinstance(layer, nn.Linear | nn.Conv2d) or type(layer).__name__ == "Conv1D"


class _Scaling:
    """Forward hook that scales a layer by its first output."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.done = False

    def __call__(self, layer: Any, _: Any, output: Tensor) -> Tensor | None:
        if self.done:
            return None
        self.done = True
        dimension = 1 if isinstance(layer, nn.Conv2d) else -1
        rows = output.movedim(dimension, -1).flatten(0, -2)
        scale = 1 / rows.std(0).mean().clamp(min=1e-3)
        layer.weight.mul_(scale)
        if layer.bias is None:
            return output * scale
        means = 0.3 * torch.randn(rows.shape[1], generator=self.generator)
        shift = means - scale * rows.mean(0)
        layer.bias.copy_(scale * layer.bias + shift)
        return (scale * output.movedim(dimension, -1) + shift).movedim(-1, dimension)


def _randomise(layer: nn.Module, generator: torch.Generator) -> None:
    """Random numbers for what this layer itself, without its children, initialises to constants."""
    if _is_linear(layer):
        return
    kind = type(layer).__name__
    for name, parameter in layer.named_parameters(recurse=False):
        if isinstance(layer, nn.LSTM):
            scale = 0.3 if name.startswith("bias") else parameter.shape[1] ** -0.5
            parameter.normal_(0, scale, generator=generator)
        elif isinstance(layer, nn.Embedding):
            parameter.normal_(0, 0.25, generator=generator)
        elif "Norm" in kind and name == "bias":
            parameter.normal_(0, 0.2, generator=generator)
        elif "Norm" in kind or "scale" in name:
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:  # class tokens, positions
            parameter.normal_(0, 0.5, generator=generator)


# --- files


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log messages of the exporters, which are about the exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def file_of(name: str, size: str, opset: int, folder: Path) -> Path:
    """The path of a model's file in a folder."""
    return folder / (f"{name}.onnx" if name.startswith("light_") else f"{name}_{size}_opset{opset}.onnx")


def export(name: str, module: nn.Module, size: str, opset: int, path: Path) -> None:
    """Writes a module of the zoo as an ONNX file with a dynamic batch, by PyTorch's own exporter.

    Arguments:
        name: in ARCHITECTURES.
        module: of `module_of(name, size)`.
        size: small or full.
        opset: of the file.
        path: of the file; all weights are inside.
    """
    entry = ARCHITECTURES[name]
    inputs = inputs_of(name, size, 2)
    with _quiet():
        if entry.dynamo:
            shapes: Any = tuple({0: torch.export.Dim("batch", min=1, max=1024)} for _ in inputs)
            if isinstance(module, Positional):
                shapes = (shapes,)  # they are one parameter of forward, *inputs
            torch.onnx.export(
                module,
                inputs,
                path,
                opset_version=opset,
                dynamo=True,
                external_data=False,
                dynamic_shapes=shapes,
                input_names=list(entry.names),
                output_names=["output"],
                verbose=False,
            )
        else:
            torch.onnx.export(
                module,
                inputs,
                path,
                opset_version=opset,
                dynamo=False,
                dynamic_axes={n: {0: "batch"} for n in (*entry.names, "output")},
                input_names=list(entry.names),
                output_names=["output"],
            )


def made(name: str, size: str, opset: int, folder: Path) -> Path:
    """The path of a model's file, which is written if it is not there.

    Arguments:
        name: in ARCHITECTURES or LIGHT.
        size: small or full; those of LIGHT have one size.
        opset: of the file; those of LIGHT have theirs.
        folder: where the files are.
    """
    path = file_of(name, size, opset, folder)
    if not path.exists():
        partial = path.with_suffix(".partial.onnx")
        if name in LIGHT:
            onnx.save(lit(name), partial)
        else:
            export(name, module_of(name, size), size, opset, partial)
        partial.replace(path)
    return path


# --- the CNNs of ONNX's own test suite

LIGHT_FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
LIGHT = tuple(
    f"light_{name}"
    for name in (
        "bvlc_alexnet",
        "densenet121",
        "inception_v1",
        "inception_v2",
        "resnet50",
        "shufflenet",
        "squeezenet",
        "vgg19",
        "zfnet512",
    )
)


def light_inputs(model: onnx.ModelProto, seed: int | None = None) -> tuple[str, np.ndarray]:
    """Name and value of the one input, (1, 3, 224, 224) float32: the suite's ramp, or an image by seed."""
    stored = {tensor.name for tensor in model.graph.initializer}
    (value,) = (v for v in model.graph.input if v.name not in stored)
    shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    if seed is None:
        size = int(np.prod(shape))
        return value.name, (np.arange(size).reshape(shape) / size).astype(np.float32)
    return value.name, _images(shape[0], shape[2], torch.Generator().manual_seed(seed))[0].numpy()


def light_file(name: str) -> Path:
    """The suite's own file of a model in LIGHT. All its weights are 0.02, so that it is of use as a first test only."""
    return LIGHT_FOLDER / f"{name}.onnx"


def lit(name: str) -> onnx.ModelProto:
    """A model in LIGHT with weights: calibrated random tensors in place of nodes that make constant ones."""
    return _Lighting(onnx.load(light_file(name))).model()


class _Lighting:
    """Runs a graph node by node on two images and draws each weight when its node comes up."""

    def __init__(self, model: onnx.ModelProto):
        self.source = model
        self.generator = np.random.default_rng(0)
        stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        constants = [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
        self.shapes = {name: array.shape for name, array in stored.items() if array.dtype == np.float32}
        self.shapes |= {node.output[0]: tuple(stored[node.input[0]]) for node in constants}
        self.weights = {name: array for name, array in stored.items() if array.dtype != np.float32}
        self.values: dict[str, tuple[np.ndarray, ...]] = {}  # one for each image
        self.input, first = light_inputs(model, 0)
        self.values[self.input] = first, light_inputs(model, 1)[1]

    def model(self) -> onnx.ModelProto:
        graph = self.source.graph
        nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
        readers = {name: node.op_type for node in nodes for name in node.input}
        for node in nodes:
            if node.input[0] in self.shapes:  # a weight in another shape: a view, so that scaling it scales the weight
                self._draw(node.input[0], readers[node.output[0]])
                drawn = self.weights[node.input[0]]
                shape = self.weights[node.input[1]] if node.op_type == "Reshape" else (-1, 1, 1)
                self.weights[node.output[0]] = drawn.reshape(shape)
            elif node.op_type in ("Conv", "Gemm"):
                self._linear(node)
            elif node.op_type == "BatchNormalization":
                self._norm(node)
            else:
                self._run(node)
        initialisers = [
            numpy_helper.from_array(self.weights[name], name)
            for name in dict.fromkeys(name for node in nodes for name in node.input)
            if name in self.weights and not any(name in node.output for node in nodes)
        ]
        inputs = [value for value in graph.input if value.name == self.input]
        lit = onnx.helper.make_graph(nodes, graph.name, inputs, graph.output, initialisers)
        return onnx.helper.make_model(lit, opset_imports=self.source.opset_import, ir_version=4)

    def _draw(self, name: str, role: str) -> None:
        if name in self.weights:
            return
        shape = self.shapes[name]
        if role in ("Mul", "factor"):
            self.weights[name] = self.generator.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            self.weights[name] = np.float32(0.2) * self.generator.standard_normal(shape, np.float32)

    def _linear(self, node: onnx.NodeProto) -> None:
        """Much as _Scaling does it; two images are too few for the channels of a fully connected layer one by one."""
        for name in node.input[1:]:
            self._draw(name, node.op_type)
        bias = self.weights[node.input[2]] if len(node.input) > 2 else np.zeros((), np.float32)
        means = np.float32(1.5) * bias
        bias[...] = 0
        self._run(node)
        rows = self._rows(node.output[0])
        spread = rows.std(0).mean() if node.op_type == "Conv" else rows.std()
        scale = np.float32(1 / max(spread, 1e-3))
        if bias.ndim:
            bias[:] = means - scale * rows.mean(0) if node.op_type == "Conv" else means
        self.weights[node.input[1]] *= scale
        column = (-1, 1, 1) if node.op_type == "Conv" else -1
        self.values[node.output[0]] = tuple(scale * y + bias.reshape(column) for y in self.values[node.output[0]])

    def _norm(self, node: onnx.NodeProto) -> None:
        rows = self._rows(node.input[0])
        self._draw(node.input[1], "factor")
        self._draw(node.input[2], "any")
        self.weights[node.input[3]] = rows.mean(0).astype(np.float32)
        self.weights[node.input[4]] = rows.var(0).astype(np.float32)
        self._run(node)

    def _rows(self, name: str) -> np.ndarray:
        """Samples and positions by channels."""
        return np.concatenate([np.moveaxis(y, 1, -1).reshape(-1, y.shape[1]) for y in self.values[name]])

    def _run(self, node: onnx.NodeProto) -> None:
        import onnxruntime

        given = [name for name in dict.fromkeys(node.input) if name]
        kinds = [(self.values.get(name) or (self.weights[name],))[0] for name in given]
        inputs = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(given, kinds, strict=True)
        ]
        output = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
        graph = onnx.helper.make_graph([node], "node", inputs, [output])
        model = onnx.helper.make_model(graph, opset_imports=self.source.opset_import, ir_version=4)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.values[node.output[0]] = tuple(
            session.run(
                node.output[:1], {n: self.values[n][i] if n in self.values else self.weights[n] for n in given}
            )[0]
            for i in range(2)
        )
