"""Every prior of `ncp_jax.priors.ex_post` on the single-group VAE of `mnist_mlp.py`.

Stage 1 is that config's, 200,000 steps of it.  The whole run is stage 1 and the
comparison; it has no stage 2 of its own:

  python main.py --config=configs/priors_mnist.py --workdir=runs/priors

or on a VAE that comes with this repository, of 200,000 or of 10^6 steps, or another one
that is there already, of as many steps as that has:

  --config.vae.pretrained=mnist_mlp
  --config.vae.pretrained=mnist_mlp_1m
  --config.vae.workdir=runs/mnist --config.vae.num_steps=1000000

Three fits of each prior, measured on 2,000 test pictures with 1,000 draws of each;
`--config.compare.split=valid` is for choosing settings.  `:fashion` is the same on
Fashion-MNIST.  With a feature network (docs, What is measured) pictures are scored,
too.  Hours on two CPU cores; see docs/priors.md.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config_files, presets
from ncp_jax.priors import ex_post


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` "fashion", or "smoke" for seconds."""
    is_fashion = variant == "fashion"
    config = config_files.load("fashion_mlp" if is_fashion else "mnist_mlp")
    config.vae.num_steps = min(config.vae.num_steps, 200_000)
    config.compare.names = ex_post.NAMES
    return config if is_fashion else presets.variant(config, variant, "fashion")
