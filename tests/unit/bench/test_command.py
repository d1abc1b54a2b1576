import os
import pty
import subprocess
import sys

CODE = """
from types import SimpleNamespace
from bench import _command
from bench._turns import in_turns
with _command.progress() as progress:
    progress.add_task("a bar", total=2)
    print("a line of the report")
for server in in_turns([SimpleNamespace(name="a")], 1):
    print(server.name)
"""


def test_output_below_a_progress_bar_goes_to_standard_output():
    terminal, its_end = pty.openpty()
    environment = os.environ | {"TERM": "xterm"}
    command = [sys.executable, "-c", CODE]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=its_end, env=environment, check=True, timeout=60)
        os.close(its_end)
        shown = os.read(terminal, 2**16)
    finally:
        os.close(terminal)
    assert done.stdout == b"a line of the report\na\n"
    assert b"a bar" in shown
