"""Bad data and bad arguments: what each message says."""

import pytest
import torch

from pyro_vae.likelihoods import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    DiscretizedGaussian,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gaussian,
    GaussianDecoderScale,
    GaussianLowRank,
    GaussianOutputScale,
    GaussianSharedScale,
    Laplace,
    MixtureOfGaussians,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("likelihood", "value", "words"),
    [
        pytest.param(
            Bernoulli(), 0.25, ["Bernoulli()", "= 0.25", 'binarize="fixed"', "--data.binarize fixed"], id="gray"
        ),
        pytest.param(Bernoulli(), 2.0, ["zeros and ones", "= 2", "Binomial"], id="count to Bernoulli"),
        pytest.param(Bernoulli(), NAN, ["= nan", "mask=True"], id="NaN to Bernoulli"),
        pytest.param(Binomial(16), 17.0, ["Binomial(16)", "= 17", "from 0 to 16", "total_count"], id="count too large"),
        pytest.param(Binomial(16), -1.0, ["= -1"], id="negative count"),
        pytest.param(Binomial(16), 3.5, ["= 3.5", "whole numbers"], id="fraction of a count"),
        pytest.param(Binomial(16), NAN, ["= nan", "mask=True"], id="NaN to Binomial"),
        pytest.param(Gaussian(), NAN, ["Gaussian(scale=1)", "= nan", "Missing", "mask=True"], id="NaN to Gaussian"),
        pytest.param(Gaussian(), INF, ["= inf", "finite", "infinite values"], id="infinity to Gaussian"),
        pytest.param(GaussianSharedScale(), -INF, ["GaussianSharedScale", "= -inf"], id="infinity to shared scale"),
        pytest.param(GaussianOutputScale(3), INF, ["GaussianOutputScale(3, ", "= inf"], id="infinity to output scale"),
        pytest.param(GaussianDecoderScale(), NAN, ["GaussianDecoderScale", "= nan"], id="NaN to decoder scale"),
        pytest.param(GaussianLowRank(rank=3), INF, ["GaussianLowRank(rank=3, ", "= inf"], id="infinity to low rank"),
        pytest.param(Laplace(), INF, ["Laplace", "finite real numbers"], id="infinity to Laplace"),
        pytest.param(StudentT(), -INF, ["StudentT(df=4, ", "finite real numbers"], id="infinity to Student"),
        pytest.param(MixtureOfGaussians(), INF, ["MixtureOfGaussians(num_components=3, "], id="infinity to mixture"),
        pytest.param(
            ContinuousBernoulli(), 1.5, ["numbers from 0 to 1", "= 1.5", "Rescale", "Gaussian"], id="beyond 1"
        ),
        pytest.param(ContinuousBernoulli(), -0.5, ["= -0.5"], id="below 0"),
        pytest.param(
            Beta(), 0.0, ["above 0 and below 1", "= 0.", "ContinuousBernoulli", "Discretized", "Bernoulli"], id="black"
        ),
        pytest.param(Beta(), 1.0, ["Beta(floor=0.01)", "= 1.", "ContinuousBernoulli"], id="white"),
        pytest.param(Poisson(), -1.0, ["Poisson()", "whole numbers from 0", "= -1", "Gaussian"], id="negative rate"),
        pytest.param(Poisson(), 0.5, ["Poisson()", "= 0.5", "DiscretizedLogistic"], id="half a count"),
        pytest.param(Poisson(), INF, ["= inf"], id="infinite count"),
        pytest.param(NegativeBinomial(), 1.5, ["NegativeBinomial()", "= 1.5"], id="fraction to negative binomial"),
        pytest.param(ZeroInflatedPoisson(), -2.0, ["ZeroInflatedPoisson()", "= -2"], id="negative to zero inflated"),
        pytest.param(ZeroInflatedNegativeBinomial(), 0.1, ["ZeroInflatedNegativeBinomial()", "= 0.1"], id="zinb"),
        pytest.param(
            DiscretizedGaussian(17, 1.0), 0.5, ["DiscretizedGaussian(17, 1, ", "0, 1, ..., 16", "= 0.5"], id="off grid"
        ),
        pytest.param(DiscretizedLogistic(17, 1.0), 17.0, ["DiscretizedLogistic(17", "= 17", "levels"], id="above grid"),
        pytest.param(DiscretizedLogistic(17, 1.0), -1.0, ["= -1", "Gaussian"], id="below grid"),
        pytest.param(
            DiscretizedLogisticMixture(256, 1 / 255), 0.5, ["0, 0.00392157, ..., 1", "= 0.5"], id="between gray levels"
        ),
        pytest.param(Categorical(3, 0.5), 1.5, ["Categorical(3, 0.5)", "= 1.5"], id="fourth of three"),
        pytest.param(Categorical(3, 0.5), NAN, ["= nan", "mask=True"], id="NaN to Categorical"),
    ],
)
def test_check_names_the_value_and_where_it_is(likelihood, value, words):
    x = torch.full((4, 3), 0.5) if isinstance(likelihood, Beta) else torch.ones(4, 3)
    likelihood.check(x)
    x[2, 1] = value
    with pytest.raises(ValueError) as error:
        likelihood.check(x)
    for word in [*words, type(likelihood).__name__, "x[2, 1]", "expected"]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "likelihood",
    [Bernoulli(), ContinuousBernoulli(), Beta(), Binomial(3), DiscretizedLogistic(4, 1.0), Categorical(4, 1.0)],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_the_advice_for_counts_is_a_likelihood_of_counts(likelihood):
    with pytest.raises(ValueError, match="NegativeBinomial or Poisson") as error:
        likelihood.check(torch.tensor([[0.0, 1.0], [5.0, 2.0]]))
    assert "Gaussian" not in str(error.value)
    with pytest.raises(ValueError) as error:
        likelihood.check(torch.tensor([[0.0, 1.0], [-5.0, 2.5]]))
    assert "Gaussian" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_levels", [2, 17, 256, 65_536])
def test_levels_are_accepted_however_they_were_computed(num_levels, dtype):
    likelihood = Categorical(num_levels, 1 / (num_levels - 1))
    levels = torch.arange(num_levels)
    likelihood.check(levels.to(dtype) / (num_levels - 1))
    likelihood.check(levels.to(dtype) * likelihood.level_step)
    likelihood.check((levels.double() / (num_levels - 1)).to(dtype))
    for off in (0.25, -0.25, num_levels):
        with pytest.raises(ValueError, match="expected levels"):
            likelihood.check((levels[-1:].to(dtype) + off) * likelihood.level_step)


def test_levels_may_be_integers():
    Categorical(5, 1).check(torch.arange(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Binomial(0), "total_count: expected a positive integer; got 0", id="no trials"),
        pytest.param(lambda: Binomial(2.5), "total_count: .* got 2.5", id="fractional trials"),
        pytest.param(
            lambda: Gaussian(scale=0.0), "Gaussian: scale: expected a positive number, .* got 0", id="scale 0"
        ),
        pytest.param(lambda: Gaussian(scale=NAN), "scale: .* got nan", id="scale NaN"),
        pytest.param(lambda: GaussianSharedScale(floor=0.0), "floor: .* got 0.0", id="no floor"),
        pytest.param(lambda: GaussianSharedScale(init_scale=0.01), "init_scale: .* above floor = 0.01", id="at floor"),
        pytest.param(lambda: GaussianDecoderScale(floor=-1), "floor: .* got -1", id="negative floor"),
        pytest.param(
            lambda: GaussianDecoderScale()(torch.zeros(5, 7)), r"decoder: expected P x 2 .* \(5, 7\)", id="odd outputs"
        ),
        pytest.param(lambda: Binomial.from_context(0.8), "total_count: .* 0.8. Set total_count", id="gray to binomial"),
        pytest.param(lambda: Binomial.from_context(), "total_count: .* nothing known", id="no data"),
        pytest.param(lambda: GaussianOutputScale(0), "GaussianOutputScale: num_values: .* got 0", id="no values"),
        pytest.param(
            lambda: GaussianOutputScale(3, floor=2.0), "GaussianOutputScale: init_scale: .* got 1.0", id="low"
        ),
        pytest.param(
            lambda: GaussianOutputScale(3)(torch.zeros(5, 4)),
            r"decoder: expected num_values = 3 outputs for GaussianOutputScale.* \(5, 4\)",
            id="another size",
        ),
        pytest.param(
            lambda: GaussianOutputScale(3)(torch.zeros(5, 1)), "decoder: expected num_values = 3", id="would broadcast"
        ),
        pytest.param(lambda: GaussianLowRank(rank=0), "GaussianLowRank: rank: .* got 0", id="rank 0"),
        pytest.param(lambda: GaussianLowRank(floor=0), "GaussianLowRank: floor: .* got 0", id="low rank without floor"),
        pytest.param(lambda: Laplace(floor=INF), "Laplace: floor: .* got inf", id="infinite floor"),
        pytest.param(lambda: StudentT(df=1.0), "StudentT: df: .* above 1, so that the mean exists; got 1.0", id="df 1"),
        pytest.param(lambda: StudentT(df=NAN), "StudentT: df: .* got nan", id="df NaN"),
        pytest.param(lambda: StudentT(df=INF), "StudentT: df: .* got inf", id="df infinite"),
        pytest.param(lambda: StudentT(df=True), "StudentT: df: .* got True", id="df a boolean"),
        pytest.param(lambda: StudentT(floor=0.0), "StudentT: floor: .* got 0.0", id="Student without floor"),
        pytest.param(lambda: Beta(floor=0.0), "Beta: floor: .* without unit; got 0.0", id="Beta without floor"),
        pytest.param(lambda: MixtureOfGaussians(num_components=0), "num_components: .* got 0", id="no components"),
        pytest.param(
            lambda: MixtureOfGaussians(floor=0.0), "MixtureOfGaussians: floor: .* got 0.0", id="mixture floor"
        ),
        pytest.param(
            lambda: DiscretizedGaussian(1, 1.0), "num_levels: expected at least 2 levels; got 1", id="1 level"
        ),
        pytest.param(lambda: DiscretizedGaussian(0, 1.0), "DiscretizedGaussian: num_levels: .* got 0", id="0 levels"),
        pytest.param(lambda: DiscretizedLogistic(5, 0.0), "DiscretizedLogistic: level_step: .* got 0.0", id="no step"),
        pytest.param(
            lambda: DiscretizedLogistic(5, 1.0, floor=0.0), "floor: .* positive number, in levels; got 0.0", id="levels"
        ),
        pytest.param(
            lambda: DiscretizedLogisticMixture(5, 1.0, num_components=0), "Mixture: num_components: .* got 0", id="none"
        ),
        *(
            pytest.param(
                lambda cls=cls: cls.from_context(),
                f"{cls.__name__}: num_levels, level_step: expected data on levels.*Choose Gaussian",
                id=f"no levels for {cls.__name__}",
            )
            for cls in (Categorical, DiscretizedGaussian, DiscretizedLogistic, DiscretizedLogisticMixture)
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_total_count_comes_from_the_data_unless_chosen():
    assert Binomial.from_context(16.0).total_count == 16
    assert Binomial.from_context(16.0, total_count=20).total_count == 20
    assert Binomial.from_context(total_count=20).total_count == 20


@pytest.mark.parametrize("cls", [Categorical, DiscretizedGaussian, DiscretizedLogistic, DiscretizedLogisticMixture])
def test_levels_come_from_the_data(cls):
    likelihood = cls.from_context(17, 1.0, mask=True)
    assert (likelihood.num_levels, likelihood.level_step, likelihood.mask) == (17, 1.0, True)


def test_options_reach_the_constructor():
    likelihood = DiscretizedLogisticMixture.from_context(17, 1.0, num_components=2, floor=0.5)
    assert repr(likelihood) == "DiscretizedLogisticMixture(17, 1, num_components=2, floor=0.5)"
    assert likelihood.num_params == 6
    assert DiscretizedGaussian.from_context(17, 1.0, floor=0.5).floor == 0.5
    assert DiscretizedLogistic.from_context(17, 1.0, floor=0.5).floor == 0.5
