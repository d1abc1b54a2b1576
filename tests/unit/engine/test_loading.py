from baton.process.settings import EngineFlags
from engine import random_checkpoint
from engine.loading import load_engine
from kernels.reference import ReferenceKernels


def test_load_reports_progress_up_to_one(tmp_path):
    random_checkpoint.write(tmp_path)
    fractions = []
    flags = EngineFlags(model=str(tmp_path), device="cpu", kv_memory="1MiB", num_threads=1)
    load_engine(tmp_path, flags, fractions.append, ReferenceKernels())
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
