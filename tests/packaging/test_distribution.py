"""The wheel and the sdist: what is in them, and that what was installed from them runs without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def ran(command: Sequence[str | Path], cwd: Path) -> str:
    """What a command printed; the test fails with all its output if the command did."""
    # Nothing that tells a Python where the checkout is.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def one(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def files_of_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def files_of_checkout(folder: str) -> set[str]:
    """Relative paths of all files under a folder, but for what Python compiled."""
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    # hatchling is in this environment; an isolated build would fetch it.
    ran([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that was built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    ran([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT], cwd=folder)
    return one(folder, "*.whl")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment in which nothing but the wheel is installed.

    Its dependencies are those of this environment, by a .pth file: to install them anew would take minutes and the
    network. The checkout does not come along, since .pth files are not followed from one folder to the next.
    """
    environment = tmp_path_factory.mktemp("installed") / "env"
    ran([sys.executable, "-m", "venv", "--without-pip", environment], cwd=environment.parent)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    ran([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], cwd=environment.parent)
    packages = one(environment, "lib/python*/site-packages")
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "dependencies.pth").write_text("\n".join(sorted(ours)), encoding="utf-8")
    return environment / "bin"


def test_the_wheel_holds_every_file_of_the_program_and_no_other(wheel: Path) -> None:
    sql = {f"engine/{name}" for name in files_of_checkout("sql")}
    assert files_of_wheel(wheel) == {"cli.py"} | files_of_checkout("engine") | sql


def test_the_wheel_holds_rulebook_and_every_kind_of_sql(wheel: Path) -> None:
    """The comparison above would not see that a folder is gone from the checkout too."""
    folders = {Path(name).parent.as_posix() for name in files_of_wheel(wheel)}
    expected = {"rulebook", "sql/checks", "sql/reports", "sql/results", "sql/state", "sql/views", "sql/warehouse"}
    assert {f"engine/{folder}" for folder in expected} <= folders


def test_the_sdist_gives_the_same_wheel_as_the_checkout(built: Path, wheel: Path) -> None:
    assert files_of_wheel(one(built, "*.whl")) == files_of_wheel(wheel)


def test_the_sdist_holds_the_program_and_its_papers_only(built: Path) -> None:
    with tarfile.open(one(built, "*.tar.gz")) as archive:
        names = {Path(name).parts[1] for name in archive.getnames()}
    papers = {"pyproject.toml", "PKG-INFO", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore"}
    assert names == {"cli.py", "engine", "sql"} | papers


def test_there_is_no_python_among_the_sql() -> None:
    """It would be a module of `engine` when installed, and none in a checkout."""
    assert {Path(name).suffix for name in files_of_checkout("sql")} == {".sql"}


def test_the_installed_program_runs_from_anywhere(installed: Path, tmp_path: Path) -> None:
    script = "import cli, engine.errors; print(cli.__file__); print(engine.errors.__file__)"
    for file in ran([installed / "python", "-c", script], cwd=tmp_path).split():
        assert Path(file).is_relative_to(installed.parent)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert version in ran([installed / "prorata", "--version"], cwd=tmp_path)
    assert "recalculate" in ran([installed / "prorata", "--help"], cwd=tmp_path)


def test_the_installed_program_reads_every_sql_file(installed: Path, tmp_path: Path) -> None:
    script = """
import json
from engine.sqlfiles import names, read_sql, sql_folder
kinds = [folder.name for folder in sql_folder().iterdir()]
texts = {f"sql/{kind}/{name}.sql": read_sql(kind, name) for kind in kinds for name in names(kind)}
print(json.dumps([str(sql_folder()), texts]))
"""
    folder, texts = json.loads(ran([installed / "python", "-c", script], cwd=tmp_path))
    assert Path(folder).is_relative_to(installed.parent)
    assert texts == {name: (ROOT / name).read_text(encoding="utf-8") for name in files_of_checkout("sql")}


def test_the_installed_program_executes_every_sql_file(installed: Path, tmp_path: Path) -> None:
    """A run applies the migrations of both databases and all checks; views and reports are asked for one by one."""
    example = tmp_path / "data/fixtures/aws/acme"
    shutil.copytree(ROOT / "data/fixtures/aws/acme", example)
    ran([installed / "prorata", "run", "-c", example / "prorata.yaml"], cwd=tmp_path)
    script = """
import sys
from pathlib import Path
from engine.sqlfiles import names
from engine.warehouse import open_lake, report
with open_lake(Path(sys.argv[1])) as lake:
    for name in names("views"):
        print("views", name, lake.execute(f'SELECT count(*) FROM "{name}"').fetchall()[0][0])
    for name in names("reports"):
        print("reports", name, report(lake, name, tenant_id=None, from_date=None, to_date=None).height)
"""
    printed = ran([installed / "python", "-c", script, tmp_path / "prorata-data"], cwd=tmp_path)
    rows = {f"sql/{kind}/{name}.sql": int(count) for kind, name, count in map(str.split, printed.splitlines())}
    asked = {name for name in files_of_checkout("sql") if name.startswith(("sql/views/", "sql/reports/"))}
    assert set(rows) == asked
    assert rows["sql/views/chargeback.sql"] > 0
    assert rows["sql/reports/cost_by_identity.sql"] > 0
