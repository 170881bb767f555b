"""VAEBM beside NCP: an energy of pictures on the single-group VAE of `mnist_mlp.py`.

Xiao et al. (2021) put an energy E(x) on top of a frozen VAE and draw by a short run of
Langevin dynamics in the noise that makes z and x.  Here such chains start at the VAE's
own prior ("vaebm"), and at draws of the NCP prior of `:deep` ("sirvaebm").  On the VAE
that comes with this repository:

  python main.py --config=configs/mnist_vaebm.py --workdir=runs/mnist_vaebm
    --config.vae.pretrained=mnist_mlp_1m

With a feature network (docs, What is measured) `results.json` and the page have the
Frechet distance of every sampler, which is what an energy of pictures is for.
`--stage=vaebm` trains the two energies alone.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config_files, presets


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` "smoke" for seconds."""
    config = config_files.load("mnist_mlp", "deep")
    config.sample.samplers = ("sir", "vaebm", "sirvaebm")
    config.sample.batch_size = 500
    config.sample.num_images = 1_000
    config.evaluate.fid_num_images = 10_000
    return presets.variant(config, variant)
