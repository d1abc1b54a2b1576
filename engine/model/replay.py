"""Decode steps without Python between their ops, where that is possible: CUDA graphs on GPUs, recordings on CPUs."""

from baton.process.settings import EngineFlags
from engine.config import EngineConfig
from engine.model.cuda_graph import CudaCapture, GraphedDecoder
from engine.model.decoder import Decoder
from engine.model.recorded import RecordedDecoder
from kernels.api import Kernels
from kernels.cpu.kernels import CPUKernels

AnyDecoder = Decoder | GraphedDecoder | RecordedDecoder


def replaying(decoder: Decoder, config: EngineConfig, kernels: Kernels, flags: EngineFlags) -> AnyDecoder:
    """Wrap the decoder in one that replays its decode steps, where that is possible."""
    if config.device.startswith("cuda") and flags.cuda_graphs:
        return GraphedDecoder(decoder, config, CudaCapture())
    if isinstance(kernels, CPUKernels) and not config.runs_ahead:  # else a step would overwrite results not yet read
        return RecordedDecoder(decoder, config, kernels)
    return decoder
