from .comparison.compare import compare as compare
from .comparison.results import Comparison as Comparison
from .comparison.results import PriorResult as PriorResult
from .comparison.settings import ComparisonSettings as ComparisonSettings
from .data.datasets import binarize as binarize
from .errors import InputError as InputError
from .evaluation.held_out import evaluate as evaluate
from .evaluation.importance import Estimate as Estimate
from .experiment.from_python.loading import load as load
from .experiment.from_python.report import report as report
from .models.base import Block as Block
from .models.base import EncoderDecoder as EncoderDecoder
from .models.base import Encoding as Encoding
from .models.base import FrozenVAE as FrozenVAE
from .models.base import GroupPrior as GroupPrior
from .models.base import LatentVariableModel as LatentVariableModel
from .models.check import check as check
from .models.discriminator import MLPDiscriminator as MLPDiscriminator
from .models.distributions import Bernoulli as Bernoulli
from .models.distributions import (
    DiscretisedLogisticMixture as DiscretisedLogisticMixture,
)
from .models.distributions import Normal as Normal
from .models.distributions import PixelNormal as PixelNormal
from .models.residual_discriminator import (
    ResidualDiscriminator as ResidualDiscriminator,
)
from .priors.generation import Generated as Generated
from .priors.generation import sample as sample
from .priors.group_samplers import MALA as MALA
from .priors.group_samplers import SIR as SIR
from .priors.group_samplers import AdaptiveSIR as AdaptiveSIR
from .priors.group_samplers import Base as Base
from .priors.group_samplers import IteratedSIR as IteratedSIR
from .priors.group_samplers import Langevin as Langevin
from .priors.group_samplers import SIRThenMALA as SIRThenMALA
from .priors.ncp_prior import NCPPrior as NCPPrior
from .training.ncp.fit import fit as fit
from .training.ncp.signal_settings import SignalSettings as SignalSettings

__version__: str
