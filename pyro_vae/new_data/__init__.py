"""A fitted model applied to new rows: log p(x), latent vectors and missing values of each."""

from pyro_vae.new_data.encoding import encode
from pyro_vae.new_data.imputation import impute
from pyro_vae.new_data.records import Encoded, Imputed, Scores
from pyro_vae.new_data.scores import Estimator, score
from pyro_vae.new_data.writing import require_target, write_columns

__all__ = ["Encoded", "Estimator", "Imputed", "Scores", "encode", "impute", "require_target", "score", "write_columns"]
