"""Spaces of a search: what their specs mean, and what is refused before any trial begins."""

from __future__ import annotations

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tune import resolve
from pipelines.tune_space import Dimension, candidates, dimension, override, read_space
from schemas.errors import UserError
from schemas.store_urls import store_url


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("log:1e-4:1e-1", Dimension(key="k", kind="log", low=0.0001, high=0.1)),
        ("float:0:0.5", Dimension(key="k", kind="float", low=0.0, high=0.5)),
        ("float:0:0.5:0.1", Dimension(key="k", kind="float", low=0.0, high=0.5, step=0.1)),
        ("int:8:64", Dimension(key="k", kind="int", low=8, high=64)),
        ("int:8:64:8", Dimension(key="k", kind="int", low=8, high=64, step=8)),
        ("log-int:8:512", Dimension(key="k", kind="log-int", low=8, high=512)),
        ("one-of:8,16,32", Dimension(key="k", kind="one-of", choices=(8, 16, 32))),
        ("one-of:none, linear", Dimension(key="k", kind="one-of", choices=("none", "linear"))),
        ("one-of:[[64], [128, 64]]", Dimension(key="k", kind="one-of", choices=([64], [128, 64]))),
        ([True, False], Dimension(key="k", kind="one-of", choices=(True, False))),
    ],
)
def test_a_spec_says_a_range_or_choices(spec, expected):
    assert dimension("k", spec) == expected


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("lgo:1:2", "'lgo:1:2' is no spec that is known: write log:"),
        (7, "k: 7 says no range"),
        ("int:8", "needs a lowest and a highest value"),
        ("log:1:2:3", "needs a lowest and a highest value"),
        ("int:8:9.5", "holds what is no whole number"),
        ("float:a:b", "holds what is no number"),
        ("float:0.5:0.5", "goes from 0.5 to 0.5: the first must be the lower one"),
        ("float:0:inf", "the first must be the lower one"),
        ("float:nan:1", "the first must be the lower one"),
        ("log:0:1", "begins at 0: a logarithmic range begins above 0"),
        ("int:8:64:5", "64 is not reached from 8 in steps of 5"),
        ("float:0:1:2", "a step must be above 0 and fit between the ends"),
        ("one-of:8", "two or more different values, not 8"),
        ("one-of:8,8", "two or more different values, not 8, 8"),
        ("one-of:", "two or more different values, not none"),
        ("one-of:[[3", "is no list in YAML"),
    ],
)
def test_a_faulty_spec_is_named_with_its_setting(spec, says):
    with pytest.raises(UserError) as error:
        dimension("k", spec)
    assert str(error.value).startswith("k: ")
    assert says in str(error.value)


@given(
    st.one_of(
        st.integers(-(10**9), 10**9),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.sampled_from(["none", "1e-5", "yes", "a: b"]),
        st.lists(st.integers(1, 512), max_size=40),
    )
)
def test_an_override_means_the_very_value_it_was_made_of(value):
    key, _, written = override("k", value).partition("=")
    assert key == "k"
    assert yaml.safe_load(written) == value
    assert type(yaml.safe_load(written)) is type(value)
    assert "\n" not in written


def test_every_end_and_every_choice_is_tried_before_trials_begin():
    space = (dimension("a", "int:1:3"), dimension("b", "one-of:x,y,z"))
    assert candidates(space) == [["a=1", "b=x"], ["a=3", "b=x"], ["a=1", "b=y"], ["a=1", "b=z"]]


def test_lists_are_suggested_as_lists_though_stores_hold_text():
    layers = dimension("model.top", [[64], [128, 64]])
    trial = optuna.create_study().ask()
    found = layers.suggest(trial)
    assert found in ([64], [128, 64])
    assert trial.params["model.top"] in ("[64]", "[128, 64]")
    assert layers.value(trial.params["model.top"]) == found


def test_a_file_and_arguments_make_one_space(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("optimizer.learning_rate: log:1e-4:1e-1\nmodel.top: [[64], [128, 64]]\n")
    space = read_space(str(file), ["model.width=one-of:8,16"], fixed=["epochs=2"])
    assert [one.key for one in space] == ["optimizer.learning_rate", "model.top", "model.width"]
    assert space[1].choices == ([64], [128, 64])


@pytest.mark.parametrize(
    ("searches", "fixed", "says"),
    [
        ([], [], "nothing to search: give --space FILE, or --search KEY=SPEC"),
        (["model.width"], [], "--search 'model.width': write it as KEY=SPEC"),
        (["a=int:1:2", "a=int:3:4"], [], "a stands in the space twice"),
        (["a=int:1:2"], ["a=3"], "a is both searched and given by --set"),
        (["chosen_by=one-of:auc,gauc"], [], "trials judged by different metrics do not compare"),
    ],
)
def test_a_space_that_contradicts_itself_is_refused(searches, fixed, says):
    with pytest.raises(UserError) as error:
        read_space(None, searches, fixed=fixed)
    assert says in str(error.value)


@pytest.mark.parametrize(("content", "says"), [("[1]", "is no mapping"), ("a: [", "is not YAML")])
def test_a_file_that_is_no_space_is_named(tmp_path, content, says):
    (tmp_path / "space.yaml").write_text(content)
    with pytest.raises(UserError, match=says):
        read_space(str(tmp_path / "space.yaml"), [], fixed=[])
    with pytest.raises(UserError, match=r"elsewhere\.yaml cannot be read: No such file"):
        read_space(str(tmp_path / "elsewhere.yaml"), [], fixed=[])


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ("model.widht=int:4:8", "unknown key 'model.widht'; did you mean 'width'"),
        ("model.dropout=float:0:1", "model.dropout: Input should be less than 1"),
        ("precision=one-of:float32,float16", "precision: Input should be 'float32' or 'bfloat16'"),
    ],
)
def test_what_no_recipe_takes_is_named_before_any_trial(search, says):
    with pytest.raises(UserError) as error:
        resolve("dlrm", candidates(read_space(None, [search], fixed=[])))
    assert says in str(error.value)


def test_the_direction_is_that_of_the_metric_an_epoch_is_chosen_by():
    found = resolve("dlrm", [["chosen_by=log_loss"], ["chosen_by=gauc"]]) + resolve("two_tower", [[]])
    assert [(one["chosen_by"], one["more_is_better"]) for one in found] == [
        ("log_loss", False),
        ("gauc", True),
        ("ndcg@10", True),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://me:geheim@host/db",
        "postgresql://host/db?user=me&password=geheim",
        "http://me:geheim@host:5000",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(url):
    with pytest.raises(UserError, match="holds a password") as error:
        store_url(url, option="--storage", kinds=("sqlite", "postgresql", "http"))
    assert "geheim" not in str(error.value)


def test_addresses_mean_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store_url("sqlite:///a/b.db", option="x") == f"sqlite:///{tmp_path}/a/b.db"
    assert store_url("sqlite:////a/b.db", option="x") == "sqlite:////a/b.db"
    assert store_url("postgresql://me@h:1/d", option="x") == "postgresql+psycopg2://me@h:1/d"
    for wrong in ("redis://h", "sqlite://", "sqlite:///:memory:", "study.db", "http://h"):
        with pytest.raises(UserError, match="x: "):
            store_url(wrong, option="x")
