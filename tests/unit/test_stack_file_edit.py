"""A release is a small diff of the stack file: only what changes is written anew, comments and order stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from loraserve.contract.base_model import Mirror
from loraserve.contract.desired_state import Adapter
from loraserve.planning import stack_file
from loraserve.planning.settings_parser import InvalidSettings
from loraserve.planning.stack_file_edit import CannotEdit, Edit, with_adapter, with_mirror, with_setting, without_canary
from tests.stack_values import CHECKOUT

SHIPPED = (CHECKOUT / "Pulumi.dev.yaml").read_text()
OLD, NEW = (f"sha256:{digit * 64}" for digit in "12")
FAQ = f"""\
  loraserve:adapters: # one entry a version
    # asked by the help desk
    - name: faq
      version: v2 # since March
      model: mistral-faq
      digest: '{OLD}'
      rank: 8
      targetModules: [q_proj, v_proj]
      sizeBytes: 100
      prewarm: true
    # of the lawyers
    - name: legal
      model: m
      version: "1.0"
      digest: "{OLD}"
      rank: 8
      targetModules:
        - q_proj
      sizeBytes: 5
  # after the list
  loraserve:gpuMaxSize: 2
"""


def entry(name: str = "faq", version: str = "v3", **more: object) -> Adapter:
    fields = {"model": "mistral-faq", "digest": NEW, "rank": 16, "target_modules": ("q_proj", "v_proj")}
    return Adapter.model_validate({"name": name, "version": version, "size_bytes": 200} | fields | more)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    shutil.copy(CHECKOUT / "Pulumi.yaml", tmp_path)
    path = tmp_path / "Pulumi.prod.yaml"
    path.write_text(SHIPPED + FAQ)
    return path


def changed(edit: Edit) -> list[str]:
    """The lines of the diff, without its context."""
    return [line for line in edit.diff.splitlines()[2:] if line[0] in "+-"]


def test_another_version_changes_the_values_that_differ_and_nothing_else(file: Path) -> None:
    edit = with_adapter(file, entry())
    assert changed(edit) == [
        "-      version: v2 # since March",
        "+      version: v3 # since March",
        f"-      digest: '{OLD}'",
        "-      rank: 8",
        f"+      digest: '{NEW}'",
        "+      rank: 16",
        "-      sizeBytes: 100",
        "+      sizeBytes: 200",
    ]
    assert file.read_text() == edit.before, "nothing is written before it is asked for"
    edit.write()
    [faq] = [adapter for adapter in stack_file.read(file).adapters if adapter.name == "faq"]
    assert faq == entry(prewarm=True), "how it is used stays"
    assert with_adapter(file, entry()).diff == ""


def test_a_new_name_is_added_behind_the_last_one_and_before_what_follows(file: Path) -> None:
    edit = with_adapter(file, entry("wiki", "1.0"))
    assert all(line.startswith("+") for line in changed(edit))
    assert '      version: "1.0"\n' in edit.after
    assert edit.after.index('"wiki"') < edit.after.index("# after the list")


@pytest.mark.parametrize("setting", ["", "  loraserve:adapters: []\n", "  loraserve:adapters: [] # none yet\n"])
def test_the_first_adapter_makes_the_list(file: Path, setting: str) -> None:
    file.write_text(SHIPPED + setting)
    edit = with_adapter(file, entry())
    edit.write()
    assert stack_file.read(file).adapters == (entry(),)
    assert len([line for line in changed(edit) if line.startswith("-")]) == bool(setting)


def test_a_file_without_a_last_newline_is_added_to(file: Path) -> None:
    file.write_text(SHIPPED.rstrip("\n"))
    with_adapter(file, entry()).write()
    assert stack_file.read(file).adapters == (entry(),)


def test_a_canary_stands_behind_its_stable_version_until_it_takes_its_place(file: Path) -> None:
    with_adapter(file, entry(canary_percent=10)).write()
    assert [(a.version, a.canary_percent) for a in stack_file.read(file).adapters] == [
        ("v2", None),
        ("v3", 10),
        ("1.0", None),
    ]
    assert changed(with_adapter(file, entry(canary_percent=50))) == [
        "-      canaryPercent: 10",
        "+      canaryPercent: 50",
    ]

    with_adapter(file, entry()).write()

    assert [(a.name, a.version, a.canary_percent) for a in stack_file.read(file).adapters] == [
        ("faq", "v3", None),
        ("legal", "1.0", None),
    ]
    assert file.read_text().count("#") == SHIPPED.count("#") + 5, "every comment is still there"


def test_a_canary_is_taken_back_without_a_trace(file: Path) -> None:
    before = file.read_text()
    with_adapter(file, entry(canary_percent=10)).write()
    without_canary(file, "faq").write()
    assert file.read_text() == before
    with pytest.raises(CannotEdit, match="names no canary of faq"):
        without_canary(file, "faq")


def test_a_list_of_modules_keeps_its_form(file: Path) -> None:
    wider = entry("legal", "1.1", model="m", target_modules=("k_proj", "q_proj"))
    edit = with_adapter(file, wider)
    assert "      targetModules:\n        - k_proj\n        - q_proj\n      sizeBytes: 200\n" in edit.after
    assert '      version: "1.1"\n' in edit.after
    edit = with_adapter(file, entry(target_modules=("k_proj",)))
    assert "      targetModules: [k_proj]\n" in edit.after


def test_an_entry_on_one_line_is_changed_in_its_place(file: Path) -> None:
    file.write_text(
        f"{SHIPPED}  loraserve:adapters:\n"
        f'  - {{name: faq, model: mistral-faq, version: v2, digest: "{OLD}", rank: 16, targetModules: [q_proj, v_proj], sizeBytes: 200}}\n'
    )
    edit = with_adapter(file, entry())
    assert changed(edit)[1] == changed(edit)[0].replace("-", "+", 1).replace("v2", "v3").replace(OLD, NEW)
    assert with_adapter(file, entry(canary_percent=5)).after.count("\n  - ") == 2


def test_a_canary_of_nothing_is_refused(file: Path) -> None:
    with pytest.raises(CannotEdit, match="names no wiki: a canary needs a stable version"):
        with_adapter(file, entry("wiki", canary_percent=10))


def test_a_mirrored_base_model_is_set_or_added(file: Path) -> None:
    model = stack_file.read(file).base_model
    with_mirror(file, model, Mirror(version="v1", digest=OLD, size_bytes=9)).write()
    before = stack_file.read(file)
    assert (before.base_model_mirror, before.base_model) == (Mirror(version="v1", digest=OLD, size_bytes=9), model)

    edit = with_mirror(file, model, Mirror(version="v2", digest=NEW, size_bytes=9))

    assert changed(edit) == [
        '-    version: "v1"',
        f'-    digest: "{OLD}"',
        '+    version: "v2"',
        f'+    digest: "{NEW}"',
    ]


def test_what_the_settings_refuse_is_not_written(file: Path) -> None:
    file.write_text(file.read_text() + "  loraserve:gpuMaxsize: 3\n")
    with pytest.raises(InvalidSettings, match="not a known key"):
        with_adapter(file, entry())


@pytest.mark.parametrize(
    "setting", ["'{\"a\": 1}'", "'[]'", f"[{{name: faq, digest: {OLD}}}]"], ids=["text", "list as text", "flow"]
)
def test_a_list_that_is_one_text_is_left_to_a_person(file: Path, setting: str) -> None:
    file.write_text(f"{SHIPPED}  loraserve:adapters: {setting}\n")
    with pytest.raises(CannotEdit, match="write it as a list below its key"):
        with_adapter(file, entry())


def test_a_file_that_changes_meanwhile_is_not_overwritten(file: Path) -> None:
    edit = with_adapter(file, entry())
    file.write_text(file.read_text() + "# mine\n")
    with pytest.raises(CannotEdit, match="was changed meanwhile"):
        edit.write()
    assert file.read_text().endswith("# mine\n")


def test_a_number_is_set_where_it_stands_and_added_where_it_does_not(file: Path) -> None:
    changed = with_setting(file, "gpuMaxSize", 3)
    assert changed.after == changed.before.replace("gpuMaxSize: 2", "gpuMaxSize: 3")
    added = with_setting(file, "requestsPerReplica", 12)
    assert added.after.replace("  loraserve:requestsPerReplica: 12\n", "") == added.before
    assert stack_file.read(file, added.after).requests_per_replica == 12
