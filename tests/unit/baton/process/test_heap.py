import subprocess
import sys


def test_settle_freezes_loaded_objects_and_enables_the_collector():
    code = (
        "from baton.process import heap; import gc; print(gc.isenabled()); "
        "heap.settle(); print(gc.isenabled(), gc.get_freeze_count() > 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "True", "True"]
