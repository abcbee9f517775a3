"""What zoo verify, picklescan, modelscan and fickling say of the hostile PyTorch files, as a table.

    pip install picklescan modelscan fickling
    cargo run --release -p zoo-checkpoint --example hostile -- --write FOLDER > FOLDER/names
    python scanners.py FOLDER path/to/zoo
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

folder, zoo = Path(sys.argv[1]), sys.argv[2]


def run(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def of_zoo(path):
    code, _ = run(zoo, "verify", path)
    return {0: "sound", 1: "refused", None: "**hangs**"}.get(code, f"exit {code}")


def of_picklescan(path):
    code, text = run("picklescan", "--path", path)
    if code == 1:
        return "dangerous"
    if code is None:
        return "**hangs**"
    suspicious = any(line.startswith("Suspicious globals: ") and not line.endswith(" 0") for line in text.splitlines())
    return "error" if code == 2 else "suspicious" if suspicious else "nothing found"


def of_modelscan(path):
    code, text = run("modelscan", "-p", path, "-r", "json")
    if code is None:
        return "**hangs**"
    try:
        # Its lines are broken wherever they are long.
        found = json.loads(text[text.index("{") :].replace("\n", ""))
    except ValueError:
        return "error"
    if found["summary"]["total_issues"] > 0:
        return "issues"
    if found.get("errors"):
        return "error"
    return "nothing found" if found["summary"]["scanned"]["total_scanned"] > 0 else "skipped"


def of_fickling(path):
    program = (
        "import sys\nfrom fickling.pytorch import PyTorchModelWrapper\nfrom fickling.analysis import check_safety\n"
        "print(check_safety(PyTorchModelWrapper(sys.argv[1]).pickled).severity.name)"
    )
    code, text = run(sys.executable, "-c", program, path)
    if code is None:
        return "**hangs**"
    said = text.strip().splitlines()[-1].lower().replace("_", " ") if code == 0 else "error"
    return "warning" if said.startswith("warning") else said


names = dict(line.split("\t", 1) for line in (folder / "names").read_text().splitlines())
print(f"| a file with | zoo verify | picklescan {version('picklescan')} | modelscan {version('modelscan')} | fickling {version('fickling')} |")
print("| --- | --- | --- | --- | --- |")
for file, name in names.items():
    if file.endswith(".pt"):
        path = str(folder / file)
        verdicts = [of(path) for of in (of_zoo, of_picklescan, of_modelscan, of_fickling)]
        print(f"| {name} | {' | '.join(verdicts)} |".replace("\n", " "), flush=True)
