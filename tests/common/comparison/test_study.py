"""Studies are read strictly, and every training has a key of what the study and the recipe say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from common.comparison.study import StudyError, load, pairs

STUDY: dict[str, Any] = {
    "title": "A study",
    "seeds": [0, 1],
    "rates": [0.1, 0.01],
    "epochs": 2,
    "data": {"a": {"demo": "digits --size 8"}, "b": {"options": "--data.root 'my clips'"}},
    "methods": {
        "one": {"recipe": "recipe.yaml", "options": "--model.x 1", "data": ["a"]},
        "two": {"recipe": "recipe.yaml", "bound": {"a": 0.5}},
        "three": {"recipe": "recipe.yaml", "starts_from": "two", "options": "--start {start}/last.ckpt", "steps": 5},
    },
    "claims": [{"id": "c", "claim": "One is better.", "comparisons": [{"better": "one", "than": ["two", "three"]}]}],
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "recipe.yaml").write_text("model: {}\n")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


def test_arguments_of_a_training(tmp_path: Path) -> None:
    study = load(write(tmp_path, options="--data.num_workers 0"))
    recipe = str(tmp_path / "recipe.yaml")
    assert study.arguments("b", "two", 0.1) == [
        *("--config", recipe, "--data.num_workers", "0", "--data.root", "my clips"),
        *("--trainer.max_epochs", "2", "--model.learning_rate", "0.1"),
    ]
    words = study.arguments("a", "three", 0.1, "runs/x")
    assert words[words.index("--start") + 1] == "runs/x/last.ckpt"
    assert words[-6:] == ["--trainer.max_epochs", "-1", "--trainer.max_steps", "5", "--model.learning_rate", "0.1"]
    assert study.demo_folder("a") == "digits_size_8"
    assert (study.methods["two"].bound_on("a"), study.methods["two"].bound_on("b")) == (0.5, 1.0)


def test_a_comparison_is_made_where_both_methods_are(tmp_path: Path) -> None:
    study = load(write(tmp_path))
    found = list(pairs(study, study.claims[0].comparisons[0]))
    assert found == [("a", "one", "two"), ("a", "one", "three")]


def test_the_key_follows_all_that_a_training_depends_on(tmp_path: Path) -> None:
    study = load(write(tmp_path))
    key, continued = study.key("a", "two", 0.1), study.key("a", "three", 0.1)
    assert key != study.key("a", "two", 0.01)
    assert key != study.key("b", "two", 0.1)
    assert load(write(tmp_path, title="Other", claims=[])).key("a", "two", 0.1) == key
    assert load(write(tmp_path, epochs=3)).key("a", "two", 0.1) != key
    longer = load(write(tmp_path, epochs=3))
    assert longer.key("a", "three", 0.1) != continued, "what it continues from is trained for longer"
    wider = load(write(tmp_path, widen=1))
    assert wider.key("a", "two", 0.1) == key
    assert wider.key("a", "three", 0.1) != continued, "what it continues from may have another rate"
    path = write(tmp_path)
    (tmp_path / "recipe.yaml").write_text("model: {class_path: other}\n")
    assert load(path).key("a", "two", 0.1) != key


def test_the_full_size_replaces_keys(tmp_path: Path) -> None:
    path = write(tmp_path, full={"epochs": 90, "seeds": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]})
    assert load(path).epochs == 2
    assert (load(path, "full").epochs, len(load(path, "full").seeds)) == (90, 10)
    with pytest.raises(StudyError, match="no part `full`"):
        load(write(tmp_path), "full")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "unknown key 'sedes'.* Did you mean seeds"),
        ({"seeds": [0, 0]}, "each seed once"),
        ({"seeds": ["a"]}, "expected int, found 'a'"),
        ({"seeds": [-1]}, "must not be negative"),
        ({"widen": -1}, "widen is -1; give a number from 0 to 9"),
        ({"methods": {"x": {"recipe": "recipe.yaml", "widen": 10}}}, "widen is 10"),
        ({"data": {"a": {"demo": "digits", "seeds": [1, 1]}}}, "each seed once"),
        ({"rates": [0.1, float("nan")]}, "a rate is nan; it must be positive"),
        ({"options": "--help"}, "options: --help cannot be given"),
        ({"options": "--name 'x"}, "options: No closing quotation"),
        ({"data": {"a": {}}}, "a needs demo, or options"),
        ({"data": {"a": {"demo": " "}}}, "a needs demo, or options"),
        ({"data": {"a": {"demo": "digits --out /tmp/x"}}}, "demo: --out cannot be given"),
        ({"data": {"../a": {"demo": "digits"}}}, "'../a' is no name"),
        ({"methods": {"x": {"recipe": "recipe.yaml", "bound": [1]}}}, r"bound is \[1\]; give a number"),
        ({"data": {"a": {"demo": "digits", "rates_of": "z"}}}, "there is no data z"),
        ({"methods": {"x": {"recipe": "no.yaml"}}}, "there is no recipe .*no.yaml"),
        ({"methods": {"x": {"recipe": "recipe.yaml", "starts_from": "y"}}}, "there is no method y before"),
        ({"methods": {"x": {"recipe": "recipe.yaml", "options": "{start}"}}}, "go together"),
        ({"methods": {"x": {"recipe": "recipe.yaml", "data": ["z"]}}}, "there is no 'z'; there are a, b"),
        ({"epochs": None}, "has no budget"),
        (
            {"claims": [{"id": "c", "claim": "x", "comparisons": [{"better": "one", "than": ["ten"]}]}]},
            "there is no 'ten'",
        ),
        (
            {"claims": [{"id": "c", "claim": "x", "comparisons": [{"better": "one", "than": [], "measure": "joy"}]}]},
            "unknown measure 'joy'",
        ),
    ],
)
def test_a_wrong_study_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message) as error:
        load(write(tmp_path, **changes))
    assert "study.yaml:" in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml")
