"""The package imports light, and its names are where `_HOME` has them."""

import ast
import configparser
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import efficientat_plugin

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))


HEAVY = "torch datasets matplotlib onnx onnxruntime openvino transformers speechbrain"
HEAVY += " huggingface_hub scipy pandas pyarrow requests urllib.request http.client"
# Prints what was loaded, and what was touched beside Python's own and the package's.
WATCH = """
import os, sys, sysconfig

seen = []
sys.addaudithook(lambda event, arguments: seen.append((event, arguments)))
import efficientat_plugin

exec(sys.argv[2])
seen = list(seen)
own = [*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))]
own = [os.path.realpath(path) for path in (*own, *efficientat_plugin.__path__)]
print("loaded", [name for name in sys.argv[1].split() if name in sys.modules])
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FORBIDDEN = ("socket.", "urllib.", "http.", "subprocess.", "shutil.", "tempfile.")
FORBIDDEN += ("os.fork", "os.posix_spawn", "os.exec", "os.system", "os.mkdir")
FORBIDDEN += ("os.remove", "os.rename", "os.chdir")
for event, arguments in seen:
    if event in ("open", "os.listdir", "os.scandir"):
        writes = event == "open" and arguments[2] & WRITES
        path = os.path.realpath(arguments[0] or ".")
        is_own = any(os.path.commonpath([path, folder]) == folder for folder in own)
        is_own |= event != "open" and path in map(os.path.realpath, sys.path)
        if writes or not is_own:
            print(event, arguments)
    elif event.startswith(FORBIDDEN):
        print(event, arguments)
"""


@pytest.mark.parametrize(
    "code, may_load",
    [
        ("dir(efficientat_plugin)", ""),
        ("import efficientat_plugin.cli as c; c.main(['--help'])", ""),
        ("import efficientat_plugin.cli as c; c.main(['--version'])", ""),
        ("import efficientat_plugin.cli as c; c.main(['tag', '--help'])", ""),
        ("import efficientat_plugin.cli as c; c.main(['list'])", ""),
        ("import efficientat_plugin.runtime", "numpy soundfile soxr"),
    ],
)
def test_importing_is_light(code, may_load):
    """No network, nothing written, nothing read beside Python's own and the package."""
    heavy = f"{HEAVY} numpy soundfile soxr tqdm".split()
    watched = " ".join(name for name in heavy if name not in may_load.split())
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, watched, code],
        capture_output=True,
        text=True,
        check=True,
    )
    *_, found = done.stdout.partition("loaded ")
    assert found.strip() == "[]"


@pytest.mark.parametrize("name", efficientat_plugin.__all__)
def test_public_names_resolve(name):
    assert getattr(efficientat_plugin, name).__name__ == name


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = efficientat_plugin.nothing


def test_what_only_reports_need_is_imported_for_them():
    """matplotlib where a figure is drawn, Triton where a student's work is counted."""
    code = (
        "import sys, efficientat_plugin.evaluation.report;"
        "import efficientat_plugin.cost.complexity;"
        "print([name for name in ('matplotlib', 'triton') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_loading_a_network_does_not_import_the_compiler_of_torch():
    """Which takes longer than all else that a tagger needs to load."""
    code = (
        "import sys, efficientat_plugin as e;"
        "from efficientat_plugin.pretrained.weights import _built;"
        "_built(e.PaSST, {});"
        "[_built(each, {'width': 0.1}) for each in (e.MN, e.DyMN, e.FrameMN)];"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def _plain(name):
    return re.sub("[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared_and_nothing_else():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    extras = config["options.extras_require"]
    needed = [config["options"]["install_requires"]]
    of_use = ("teachers", "export", "openvino", "containers", "hdf5", "litert")
    needed += [extras[name] for name in of_use]
    lines = [line for text in needed for line in text.splitlines()]
    declared = {_plain(re.match(r"[\w.-]*", line)[0]) for line in lines} - {""}
    modules = set()
    for path in (REPOSITORY / "efficientat_plugin").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    imported = modules - sys.stdlib_module_names - {"efficientat_plugin"}
    owners = packages_distributions() | {"ruamel": ["ruamel.yaml"]}
    found = {_plain(owners.get(name, [name])[0]) for name in imported}
    assert found == declared


def test_datasets_are_as_new_as_what_is_tested():
    """What older ones take for a loader of theirs, such as a folder ``pandas``."""
    setup, pinned = (
        (REPOSITORY / name).read_text() for name in ("setup.cfg", "constraints.txt")
    )
    oldest = re.search(r"^ +datasets>=([\d.]+)$", setup, re.MULTILINE)
    tested = re.search(r"^datasets==([\d.]+)$", pinned, re.MULTILINE)
    assert tested[1].startswith(f"{oldest[1]}.")


def test_every_file_is_small():
    """Nothing over 1 MB goes in."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        assert (REPOSITORY / name).stat().st_size <= 2**20, name


def test_the_package_has_fifteen_rooms_and_no_file_name_twice():
    package = REPOSITORY / "efficientat_plugin"
    private = {"__init__.py", "py.typed", "__pycache__"}
    rooms = {path.name for path in package.iterdir()} - private
    assert len(rooms) <= 15, rooms
    names = [path.name for path in package.rglob("*.py")]
    often = {name for name in names if names.count(name) > 1}
    assert often <= {"__init__.py", "__main__.py"}
    ours = {name.removesuffix(".py") for name in names}
    assert not ours & (sys.stdlib_module_names - {"__main__"})


@pytest.mark.parametrize("folder", ["tests", "campaigns"])
def test_files_of_tests_are_short(folder):
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines())
        for path in (REPOSITORY / folder).rglob("*.py")
    }
    assert {name for name, length in lengths.items() if length > 500} == set()


@pytest.mark.parametrize("yaml", sorted(REPOSITORY.glob("hparams/**/*.yaml")), ids=str)
def test_yamls_use_public_names_alone(yaml):
    named = re.findall(r"!\w+:(efficientat_plugin[\w.]*)", yaml.read_text())
    assert {name.count(".") for name in named} <= {1}
    for name in named:
        assert name.partition(".")[2] in efficientat_plugin.__all__


def test_the_reference_has_every_public_name():
    text = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    found = re.findall(r"^::: (\S+)$", text, re.M)
    homes = efficientat_plugin._HOME
    assert set(found) == {
        f"efficientat_plugin.{home}.{name}" for name, home in homes.items()
    }


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *DOCS])
def test_what_a_page_links_to_is_there(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    headings = {}
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[\w-]+)?\)", text):
        if "://" not in target and target:
            assert ((REPOSITORY / page).parent / target).exists(), target
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([\w-]+)\)", text):
        place = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        if place not in headings:
            lines = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.M)
            headings[place] = {_anchor(line) for line in lines}
        assert anchor in headings[place], (target, anchor)
    if page == "README.md":
        assert len(text.splitlines()) <= 150


def _anchor(heading):
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
