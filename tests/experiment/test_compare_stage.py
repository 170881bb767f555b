"""`--stage=compare` on one small run: what it writes, and what it leaves alone."""

import dataclasses
import json

import pytest

from ncp_jax.comparison import protocol
from ncp_jax.errors import InputError
from ncp_jax.experiment import compare_stage, stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import config_files, presets, validation, workdir
from ncp_jax.priors import ex_post
from ncp_jax.priors.ex_post.contract import Training
from tests import tiny

SMALL = {
    "names": ("gaussian",),
    "max_steps": 20,
    "max_draws": 50,
    "max_examples": 40,
    "num_importance_samples": 5,
    "num_samples": 40,
    "num_mmd_samples": 30,
    "num_permutations": 20,
    "num_log_z_draws": 500,
    "log_z_batch_size": 500,
    "num_neighbour_queries": 10,
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of a whole run: stage 1, and this."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    stages.run(tiny.config(compare=SMALL), folder, "all")
    return folder


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_names_make_the_whole_run_a_comparison(compared):
    found = results(compared)
    assert found["run"]["wall_seconds"].keys() == {"vae", "compare"}
    assert not (compared / "ncp").exists() and not (compared / "samples").exists()
    priors = found["priors"]["priors"]
    gain = priors["gaussian"]["metrics"]["gain"]
    assert list(priors) == ["gaussian"] and (gain["value"], gain["n"]) == (0.0, 40)
    assert found["priors"]["about"]["split"] == "test"
    for page in ("priors.html", "index.html"):
        assert "<html" in (compared / "report" / page).read_text()
    lead = 'One frozen VAE. <a href="priors.html">'
    assert lead in (compared / "report" / "index.html").read_text()
    assert {p.name for p in (compared / "priors").iterdir()} == {
        *("gaussian.png", "gaussian-0", "measured")
    }


def test_all_again_measures_nothing_and_fits_nothing(compared, capsys, monkeypatch):
    monkeypatch.setattr(compare_stage, "compare", None)  # whoever calls it fails
    before = results(compared)
    stages.run(tiny.config(compare=SMALL), compared, "all")
    assert results(compared) == before and "vae: complete" in capsys.readouterr().out


@pytest.mark.slow
def test_other_settings_measure_again_and_fits_stay(compared):
    """The second time nothing is fitted."""
    names = ("ncp",)
    config = tiny.config(compare={**SMALL, "names": names})
    stages.run(config, compared, "compare")
    first = results(compared)["priors"]["priors"]
    config.compare.split = "valid"
    stages.run(config, compared, "compare")
    found = results(compared)["priors"]
    assert found["about"]["split"] == "valid" and tuple(found["priors"]) == names
    for name in names:
        before, after = (p[name]["metrics"] for p in (first, found["priors"]))
        assert before["fit_seconds"] == after["fit_seconds"]
        assert before["nll"] != after["nll"] and after["gain"]["stderr"] > 0
    assert "log_z" in found["priors"]["ncp"]["metrics"]


def test_encodings_are_resampled_by_a_prior_of_the_comparison(compared):
    changes = {**SMALL, "names": ("ncp",), "resampled_by": "ncp", "num_proposals": 4}
    config = tiny.config(compare={**changes, "num_rounds": 2})
    stages.run(config, compared, "compare")
    about = results(compared)["priors"]["about"]
    assert (about["resampled_by"], about["num_proposals"]) == ("ncp", 4)
    fits = {path.name for path in (compared / "priors").glob("ncp-*")}
    assert {"ncp-0", "ncp-round-0", "ncp-round-1"} <= fits
    config.compare.resampled_by = "npc"
    with pytest.raises(InputError, match=r"of the compared priors.*mean 'ncp'"):
        stages.run(config, compared, "compare")


def test_what_several_groups_cannot_have_is_refused_before_training(tmp_path):
    config = presets.variant(config_lib.default("ladder"), "smoke")
    config.vae.model.update(latent_dims=(2, 3), hidden_dims=(8,))
    config.compare.names = ("gaussian", "vamp")
    with pytest.raises(InputError, match="vamp is a mixture"):
        stages.run(config, tmp_path / "run", "all")
    assert not (tmp_path / "run" / "vae").exists()


def test_what_builds_on_what():
    of_energies = ["vaebm", "sirvaebm"]
    after = ["ncp", *of_energies, "sample", "evaluate", "compare"]
    assert workdir.built_on("vae") == ["vae", *after]
    assert workdir.built_on("sample") == ["sample", "evaluate"]
    assert workdir.built_on("compare") == ["compare"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("gausian",)}, r"compare\.names: .*'gausian'.*mean 'gaussian'"),
        ({"names": (3,)}, r"compare\.names: there is no prior 3"),
        ({"names": ("gmm_over_flow",)}, r"names: .*gmm reweights no other prior"),
        ({"names": ("gmm_deep",)}, r"names: .*gmm has no larger ratio"),
        ({"names": ("ncp_over_trs",)}, r"no prior 'ncp_over_trs'.* over gmm, vamp"),
        ({"names": ("ncp", "ncp")}, r"names must hold each prior once"),
        ({"split": "train"}, r"config\.compare\.split must be one of"),
        ({"num_mmd_samples": 2}, r"num_mmd_samples must be 3 or more"),
        ({"num_samples": 0}, r"config\.compare\.num_samples must be finite and pos"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        validation.validate(tiny.config(compare=changes))


@pytest.mark.parametrize(
    ("names", "priors", "message"),
    [
        ((), {"ncp": {"hiden": 3}}, r"priors\.ncp: prior 'ncp' has no setting 'hiden'"),
        (("gaussian",), {"npc": {}}, r"priors\.npc: there is no prior 'npc'"),
        ((), {"ncp": 3}, r"priors\.ncp: prior 'ncp' takes a section"),
        ((), {"ncp": {"training": 3}}, r"'ncp\.training' takes a section"),
        ((), {"ncp": {"num_negatives": "x"}}, r"'ncp\.num_negatives' takes .* got 'x'"),
        ((), {"ncp": {"num_negatives": -1}}, r"'ncp\.num_negatives' takes .* got -1"),
        ((), {"ncp": {"num_negatives": 0}}, r"takes numbers from 1 on, got 0"),
        ((), {"ncp": {"hidden_dims": (9, 0)}}, r"takes numbers from 1 on, got 0"),
        ((), {"ncp": {"ranking_weight": -1}}, r"takes numbers from 0 on, got -1"),
        ((), {"ncp": {"dropout": 1.5}}, r"'ncp\.dropout' takes a share below 1"),
        ((), {"ncp": {"hidden_dims": ()}}, r"'ncp\.hidden_dims' takes one value or"),
        ((), {"gmm": {"num_components": ()}}, r"num_components' takes one value or"),
        ((), {"lars": {"acceptance": 0}}, r"takes a share below 1, above 0, got 0"),
        ((), {"lars": {"num_attempts": 1}}, r"takes numbers from 2 on, got 1"),
        ((), {"snis": {"num_proposals": 1}}, r"takes numbers from 2 on, got 1"),
        ((), {"ebm": {"negatives": "gibbs"}}, r"'ebm\.negatives' takes one of"),
        ((), {"ncp": {"activation": "nope"}}, r"jax\.nn has no activation 'nope'"),
        ((), {"npc": {}}, r"priors\.npc: there is no prior 'npc'.*Did you mean"),
    ],
)
def test_settings_of_priors_are_checked(names, priors, message):
    config = tiny.config(compare={"names": names})
    with config.unlocked():
        config.compare.priors = priors
    with pytest.raises(InputError, match=message):
        validation.validate(config)


def test_a_command_line_names_some_of_the_priors_that_a_config_has_settings_for():
    config = config_files.load("celeba64_rae")
    assert "ncp_over_gmm" in config.compare.priors
    config.compare.names = ("gmm", "flow")
    validation.validate(config)


def test_the_settings_of_a_prior_are_changed_and_shortened():
    plain = ex_post.settings_of("ncp")
    changes = {"hidden_dims": [5, 6], "training": {"num_steps": 70}}
    found = ex_post.settings_of("ncp", changes)
    assert found.hidden_dims == (5, 6)
    assert found.training == Training(num_steps=70)
    assert found.num_negatives == plain.num_negatives
    short = ex_post.shortened(found, 30, 40)
    assert (short.training.num_steps, short.training.steps_per_eval) == (30, 30)
    assert short.sampling.num_proposals == 40 and short.hidden_dims == (5, 6)
    assert short.sampling.num_steps == found.sampling.num_steps  # of a chain
    assert ex_post.shortened(found, 0, 0) == found


def test_a_pool_need_not_be_moved():
    found = ex_post.settings_of("multistage", {"num_mala_steps": 0})
    assert found.num_mala_steps == 0
    with pytest.raises(InputError, match="numbers from 0 on"):
        ex_post.settings_of("multistage", {"num_mala_steps": -1})


def test_what_is_shortened_can_be_fitted():
    assert ex_post.shortened(ex_post.settings_of("snis"), 1, 1).num_proposals == 2
    trs = ex_post.shortened(ex_post.settings_of("trs"), 1, 1)
    assert trs.num_draws == trs.num_attempts - 1


def test_a_prior_over_another_holds_how_that_is_fitted():
    found = ex_post.settings_of("ncp_over_gmm", {"base": {"reg_covar": 0.5}})
    assert found.base == ex_post.settings_of("gmm", {"reg_covar": 0.5})
    others = {"gmm": {"num_components": (5,)}, "ncp": {"num_negatives": 2}}
    of_changed = ex_post.settings_of("ncp_over_gmm", None, others)
    assert of_changed.base == ex_post.settings_of("gmm", others["gmm"])
    assert of_changed.num_negatives == found.num_negatives


def test_all_that_have_a_ratio_have_the_same_larger_one():
    for own in ("ncp", "ncp_ranking", "snis", "lars", "trs", "his", "ebm"):
        found = ex_post.settings_of(f"{own}_deep")
        assert {name: getattr(found, name) for name in ex_post.DEEP} == ex_post.DEEP
        plain = {name: getattr(ex_post.settings_of(own), name) for name in ex_post.DEEP}
        assert dataclasses.replace(found, **plain) == ex_post.settings_of(own)
        over = ex_post.settings_of(f"{own}_deep_over_gmm")
        assert over.hidden_dims == found.hidden_dims and over.base is not None


def test_any_prior_that_reweights_may_stand_over_any_exact_one():
    config = tiny.config(compare={"names": ("snis_over_flow", "lars_over_gmm")})
    validation.validate(config)
    for own in ("ncp_ranking", "lars", "trs", "snis", "his", "ebm", "multistage"):
        for base in ex_post.BASES:
            found = ex_post.settings_of(f"{own}_over_{base}", {}, {base: {}})
            assert found.base == ex_post.settings_of(base)
            own_alone = ex_post.settings_of(own)
            assert {
                name: value
                for name, value in vars(found).items()
                if value != getattr(own_alone, name)
            }.keys() <= {"base", "sampling"}
            if hasattr(found, "sampling"):  # a base near q needs fewer proposals
                assert found.sampling == dataclasses.replace(
                    own_alone.sampling, num_proposals=200
                )


def test_another_prior_proposes_the_draws_of_a_ratio():
    others = {"autoregressive": {"num_components": 3}, "ncp_deep": {"dropout": 0.1}}
    name = "ncp_deep_from_autoregressive"
    found = ex_post.settings_of(name, {"num_proposals": 50}, others)
    assert found.num_proposals == 50
    for part, of in (("first", "ncp_deep"), ("second", "autoregressive")):
        assert getattr(found, part) == ex_post.settings_of(of, others[of])
    how = {each: ex_post.settings_of(each) for each in ("ncp_deep", name)}
    of_name = protocol._parts_first(how)[name]  # which is fitted once
    assert of_name == {"first": "ncp_deep"}
    over = ex_post.settings_of("ncp_over_gmm_from_flow")
    assert over.first == ex_post.settings_of("ncp_over_gmm")
    assert ex_post.needs_posterior("ncp_from_vamp")


def test_two_densities_are_pooled_and_a_pool_with_a_third():
    name = "ncp_deep_and_autoregressive"
    found, other = (ex_post.settings_of(f"ncp_deep_{x}_gmm") for x in ("and", "from"))
    assert found.second == other.second == ex_post.settings_of("gmm")
    assert (found.weight, other.weight) == (0.0, 1.0)  # chosen; that of the first alone
    of_three = ex_post.settings_of(f"{name}_and_gmm", {"weight": 0.5})
    assert of_three.first == ex_post.settings_of(name)
    assert of_three.weight == 0.5
    how = {n: ex_post.settings_of(n) for n in (f"{name}_and_gmm", "gmm", name)}
    of_name = protocol._parts_first(how)[f"{name}_and_gmm"]
    assert of_name == {"first": name, "second": "gmm"}
    assert ex_post.needs_posterior("ncp_and_vamp")


@pytest.mark.parametrize(
    "name", ["snis_from_gmm", "ncp_from_snis", "two_stage_and_gmm", "gmm_and_ncp"]
)
def test_only_known_densities_are_pooled_and_only_exact_ones_propose(name):
    with pytest.raises(InputError, match=r"the second is one of gmm, .* begins with"):
        ex_post.settings_of(name)


def test_the_papers_number_of_proposals_is_that_of_its_table_1():
    priors = config_files.load("celeba64_rae").compare.priors.to_dict()
    found = ex_post.settings_of("ncp_over_gmm", priors["ncp_over_gmm"])
    assert found.sampling.num_proposals == 5_000
    assert found.base.num_components == priors["gmm"]["num_components"]


@pytest.mark.parametrize("variant", ["", "fashion", "smoke"])
def test_the_config_of_all_priors(variant):
    config = config_files.load("priors_mnist", variant)
    validation.validate(config)
    assert tuple(config.compare.names) == ex_post.NAMES
    assert config.data.name == {"fashion": "fashion_mnist"}.get(variant, "mnist")
    of_vae = config_files.load("mnist_mlp", "smoke" if variant == "smoke" else "")
    of_vae.vae.num_steps = config.vae.num_steps = 200_000
    sections = ("vae",) if variant else ("seed", "data", "vae")
    lines = config_lib.differences(of_vae.to_dict(), config.to_dict(), sections)
    assert lines == []  # so that its stage 1 can be taken over
