"""`scripts/release.py`: what it refuses to release."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from raffect.errors import RaffectError

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import release

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMMITTED = [*release.REQUIRED, "raffect/__init__.py", "tests/test_a.py", "README.md", "LICENSE"]
INFO = [f"raffect-1.2.0.dist-info/{name}" for name in release.DIST_INFO]
WHEEL = [*(name for name in COMMITTED if name.startswith("raffect/")), *INFO]
ARCHIVE = [f"raffect-1.2.0/{name}" for name in [*COMMITTED, "PKG-INFO"]]
FILES = {
    "pyproject.toml": '[project]\nversion = "1.2.0"\n',
    "raffect/__init__.py": '"""raffect"""\n__version__ = "1.2.0"\n',
    "CHANGELOG.md": "# Changelog\n\n## 1.2.0 (2026-12-01)\n- New.\n\n## 1.1.0 (2026-11-01)\n",
    "CITATION.cff": "cff-version: 1.2.0\nversion: 1.2.0\ndate-released: 2026-12-01\n",
}


def checkout(folder: Path, **changes) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name, (old, new) in changes.items():
        file = next(folder / known for known in FILES if name in known)
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    return folder


def test_this_checkout_agrees_on_its_version():
    version, date = release.agreed_version(ROOT)
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert date == release.UNRELEASED or re.fullmatch(r"\d{4}-\d\d-\d\d", date)


def test_version_and_date_are_those_of_the_newest_section(tmp_path):
    assert release.agreed_version(checkout(tmp_path)) == ("1.2.0", "2026-12-01")


def test_a_section_without_a_date_goes_with_a_citation_without_one(tmp_path):
    changes = {"CHANGELOG": ("2026-12-01", "unreleased"), "CITATION": ("date-released:", "x:")}
    assert release.agreed_version(checkout(tmp_path, **changes)) == ("1.2.0", "unreleased")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("init", "1.2.0", "1.2.1", "__init__.py: version 1.2.1, but 1.2.0 in pyproject.toml"),
        ("init", "__version__", "version", "__init__.py: nothing matches"),
        ("pyproject", "1.2.0", "1.3.0", "version 1.2.0, but 1.3.0 in pyproject.toml"),
        ("CHANGELOG", "## 1.2.0", "## 1.2.1", "CHANGELOG.md: version 1.2.1, but 1.2.0"),
        # A section that was forgotten: the newest one is that of the last release
        ("CHANGELOG", "## 1.2.0 (2026-12-01)\n", "", "CHANGELOG.md: version 1.1.0, but 1.2.0"),
        ("CHANGELOG", " (2026-12-01)", "", "expected `## VERSION (YYYY-MM-DD)`"),
        ("CHANGELOG", "2026-12-01", "December", "expected `## VERSION (YYYY-MM-DD)`"),
        ("CITATION", "\nversion: 1.2.0", "\nversion: 1.1.0", "CITATION.cff: version 1.1.0"),
        ("CITATION", "\nversion: 1.2.0", "", "CITATION.cff: version None"),
        ("CITATION", "2026-12-01", "2026-12-02", "date-released is 2026-12-02, but 2026-12-01"),
        ("CITATION", "date-released", "date", "date-released is unreleased, but 2026-12-01"),
    ],
)
def test_another_version_or_date_in_one_file_is_refused(tmp_path, file, old, new, message):
    with pytest.raises(RaffectError, match=re.escape(message)):
        release.agreed_version(checkout(tmp_path, **{file: (old, new)}))


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """A checkout without changes, for what is checked after them."""
    monkeypatch.setattr(release, "ROOT", checkout(tmp_path))
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        author = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
        subprocess.run(["git", *author, *words], cwd=tmp_path, check=True)
    return tmp_path


def test_a_tag_of_another_version_is_refused(clean):
    assert release.check_checkout("v1.2.0", unreleased=False) == "1.2.0"
    with pytest.raises(RaffectError, match=r"tag v1.2: pyproject.toml has 1.2.0"):
        release.check_checkout("v1.2", unreleased=False)


def test_changes_that_are_not_committed_are_refused_new_files_too(clean):
    (clean / "raffect" / "forgotten.py").touch()
    with pytest.raises(RaffectError, match=r"1 files are not committed, .*forgotten.py"):
        release.check_checkout("", unreleased=True)


def test_an_unreleased_section_is_not_released(clean, monkeypatch):
    monkeypatch.setattr(release, "git", lambda *words: "")
    changes = {"CHANGELOG": ("2026-12-01", "unreleased"), "CITATION": ("date-released:", "x:")}
    checkout(clean, **changes)
    assert release.check_checkout("", unreleased=True) == "1.2.0"
    with pytest.raises(RaffectError, match="1.2.0 has no date"):
        release.check_checkout("", unreleased=False)


def test_what_is_committed_and_whole_is_accepted():
    release.check_wheel(WHEEL, COMMITTED, "1.2.0")
    release.check_archive(["raffect-1.2.0", *ARCHIVE], COMMITTED, "1.2.0")


@pytest.mark.parametrize("missing", WHEEL)
def test_a_wheel_that_lacks_a_file_is_refused(missing):
    with pytest.raises(RaffectError, match=re.escape(f"1 files are missing, such as ['{missing}'")):
        release.check_wheel([name for name in WHEEL if name != missing], COMMITTED, "1.2.0")


@pytest.mark.parametrize("name", release.REQUIRED)
def test_a_file_that_git_lost_is_missed_all_the_same(name):
    kept = [other for other in COMMITTED if other != name]
    wheel = [other for other in WHEEL if other != name]
    with pytest.raises(RaffectError, match=re.escape(name)):
        release.check_wheel(wheel, kept, "1.2.0")


@pytest.mark.parametrize(
    "more",
    [
        "tests/test_a.py",
        "raffect/tests/test_b.py",
        "raffect/__pycache__/cli.cpython-311.pyc",
        "raffect/weights/ViT-L-14.pt",
        "setup.py",
        "../outside.py",
        "/etc/passwd",
        "raffect-1.2.0.data/scripts/evil",
        "raffect-1.1.0.dist-info/METADATA",
    ],
)
def test_a_wheel_with_anything_else_is_refused(more):
    with pytest.raises(RaffectError, match=re.escape(f"too many, such as ['{more}'")):
        release.check_wheel([*WHEEL, more], COMMITTED, "1.2.0")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("raffect-1.2.0/bank/shards/0.parquet", "too many, such as ['bank/shards/0.parquet'"),
        ("raffect-1.2.0/.env", "too many, such as ['.env'"),
        ("elsewhere/file", "lies outside raffect-1.2.0/"),
        ("/raffect-1.2.0/file", "lies outside raffect-1.2.0/"),
    ],
)
def test_an_archive_with_what_git_does_not_know_is_refused(more, message):
    with pytest.raises(RaffectError, match=re.escape(message)):
        release.check_archive([*ARCHIVE, more], COMMITTED, "1.2.0")


def test_an_archive_that_lacks_a_committed_file_is_refused():
    names = [name for name in ARCHIVE if "test_a" not in name]
    with pytest.raises(RaffectError, match=r"missing, such as \['tests/test_a.py'"):
        release.check_archive(names, COMMITTED, "1.2.0")


def test_an_error_of_a_command_is_one_line_with_its_last_words():
    code = "import sys; print('first', file=sys.stderr); sys.exit('last')"
    with pytest.raises(RaffectError, match=r"ended with status 1: last$"):
        release.run(sys.executable, "-c", code)
    with pytest.raises(RaffectError, match="no-such-command"):
        release.run("no-such-command")
    with pytest.raises(RaffectError, match=r"timed out after 0\.2 seconds"):
        release.run("sleep", "20", timeout=0.2)


def test_an_environment_does_not_see_the_checkout_and_its_packages_are_compiled(monkeypatch):
    leads = {"PYTHONPATH": str(ROOT), "VIRTUAL_ENV": "/v", "PYTHONDONTWRITEBYTECODE": "1"}
    for name, value in leads.items():
        monkeypatch.setenv(name, value)
    found = release.environment()
    assert not leads.keys() & found.keys()
    assert (found["UV_COMPILE_BYTECODE"], found["PATH"]) == ("1", os.environ["PATH"])


@pytest.mark.cluster
def test_what_this_checkout_builds_is_what_is_committed(tmp_path):
    release.run("uv", "build", "--quiet", "--out-dir", tmp_path, ROOT)
    committed = release.git("ls-files").splitlines()
    version, _ = release.agreed_version(ROOT)
    (wheel,), (archive,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    release.check_wheel(release.names_in(wheel), committed, version)
    release.check_archive(release.names_in(archive), committed, version)


# Files beside the code


def test_the_citation_has_what_its_format_requires_and_names_the_paper():
    """Keys and kinds of Citation File Format 1.2.0; benchmarks/results says who else read it."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["license"] == project["license"]
    assert cited["repository-code"] == project["urls"]["Repository"]
    (paper,) = cited["references"]
    assert paper.keys() >= {"type", "title", "authors", "year"}
    assert [each["value"] for each in paper["identifiers"]] == ["arXiv:2403.09915"]


MAY_WRITE = {
    "publish": {"id-token": "write"},
    "deploy": {"id-token": "write", "pages": "write"},
}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_pins_every_action_to_a_commit_and_may_read_alone(file):
    flow = yaml.safe_load(file.read_text())
    assert flow["permissions"] == {"contents": "read"}
    used = re.findall(r"uses: (.+)", file.read_text())
    assert used
    for line in used:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    for name, job in flow["jobs"].items():
        assert job["timeout-minutes"] <= 240, name
        assert job.get("permissions") == MAY_WRITE.get(name), name


def test_ci_runs_what_contributors_run_and_a_release_what_is_described():
    text = {file.stem: file.read_text() for file in WORKFLOWS}
    assert text.keys() >= {"ci", "release"}
    assert "run: bash .ci/run\n" in text["ci"]
    assert 'run: python scripts/release.py --tag "$GITHUB_REF_NAME" --out dist\n' in text["release"]
