"""The snippets of docs/clusters.md do what they say: they are run, on a small series."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.program import invoke
from tests.cli.test_merge import assert_equal
from tests.divide.slurm import Slurm
from tests.helpers import entries, save_series

PAGE = (Path(__file__).resolve().parents[2] / "docs/clusters.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)\n```$", flags=re.MULTILINE | re.DOTALL)
# Where GNU parallel is not installed: the command once for each argument, one after another.
PARALLEL = """#!/bin/sh
shift 2
command=
while [ "$1" != ::: ]; do command="$command $1"; shift; done
shift
for one; do sh -c "$(printf %s "$command" | sed "s/{}/$one/g")" || exit 1; done
"""


def snippet(word: str) -> str:
    (found,) = [body for _, body in FENCE.findall(PAGE) if word in body]
    return str(found)


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, str]:
    """A working directory with test.npz and programs, and the table of a single run."""
    save_series(tmp_path / "data/run", range(9))
    points = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.savez(tmp_path / "test.npz", x=points)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "localrank").write_text(f'#!/bin/sh\nexec {sys.executable} -m localrank_cli "$@"\n')
    if shutil.which("parallel") is None:
        (folder / "parallel").write_text(PARALLEL)
    for path in folder.iterdir():
        path.chmod(0o755)
    data = ("--data", str(tmp_path / "test.npz"), "--device", "cpu")
    return tmp_path, invoke("analyze", str(tmp_path / "data/run"), *data).stdout


def sh(text: str, folder: Path, path: str) -> None:
    text = text.replace("/data/run", f"{folder}/data/run")
    environment = {"PATH": f"{folder}/bin:{path}", "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-euc", text], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.slow
def test_gnu_parallel(place: tuple[Path, str]) -> None:
    folder, single = place
    sh(snippet("parallel -j"), folder, "/usr/bin:/bin")
    assert_equal((folder / "ranks.csv").read_text(), single)


@pytest.mark.long
@pytest.mark.slow
def test_snakemake(place: tuple[Path, str]) -> None:
    """Without Snakemake: its rules are read, and their commands run as it would fill them in."""
    folder, single = place
    text = snippet("rule merge")
    (n,) = map(int, re.findall(r"^N = (\d+)$", text, re.MULTILINE))
    rules = dict(re.findall(r"^rule (\w+):\n((?: .*\n?)+)", text, re.MULTILINE))
    fields = {
        rule: dict(re.findall(r"^    (\w+): ((?:.*\n?)(?:      +.*\n?)*)", body, re.MULTILINE))
        for rule, body in rules.items()
    }
    shell = ast.literal_eval(f"({fields['shard']['shell']})")
    pattern = ast.literal_eval(fields["shard"]["output"])
    (wanted,) = map(ast.literal_eval, re.findall(r"expand\((\".*?\")", fields["merge"]["input"]))
    for index in range(n):
        output = wanted.format(i=index, n=n)
        found = re.fullmatch(re.sub(r"\{(\w)\}", r"(?P<\1>\\d+)", pattern), output)
        assert found, (pattern, output)
        command = shell.replace("{threads}", "1")
        for name, value in found.groupdict().items():
            command = command.replace(f"{{wildcards.{name}}}", value)
        sh(command, folder, "/usr/bin:/bin")
        assert (folder / output).is_file()  # or Snakemake would call it failed
    merge = ast.literal_eval(fields["merge"]["shell"])
    sh(merge.replace("{output}", "ranks.csv"), folder, "/usr/bin:/bin")
    assert_equal((folder / "ranks.csv").read_text(), single)


@pytest.mark.long
@pytest.mark.slow
def test_a_plain_array(slurm: Slurm, place: tuple[Path, str]) -> None:
    folder, single = place
    script = snippet("#SBATCH --array=0-7").replace("--cpus-per-task=4", "--cpus-per-task=1")
    assert script.startswith("#!/bin/bash\n")
    script = script.replace("/data/run", f"{folder}/data/run")
    options = f"#!/bin/bash\n#SBATCH --output=/dev/null --chdir={folder}\n"
    path = f"export PATH={folder}/bin:$PATH\n"
    head, array, rest = script.split("\n", 2)
    (folder / "array.sh").write_text(f"{options}{array}\n{path}{rest}\n")
    assert head == "#!/bin/bash"
    job = slurm.ask("sbatch", "--parsable", str(folder / "array.sh")).strip()
    slurm.wait(lambda: not slurm.jobs(job), 240)
    assert len([name for name in entries(folder / "parts") if name.endswith(".csv")]) == 8
    sh("localrank merge parts/ -o ranks.csv", folder, "/usr/bin:/bin")
    assert_equal((folder / "ranks.csv").read_text(), single)
