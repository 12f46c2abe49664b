"""The command line as a person runs it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def estner(*arguments: str, root: Path, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("estner")), *arguments, "--project", str(root)]
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False)
