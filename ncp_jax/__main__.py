"""`python -m ncp_jax ...`: the program, also without a checkout."""

from ncp_jax.experiment import command_line

if __name__ == "__main__":
    command_line.run()
