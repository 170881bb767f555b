"""The program in a checkout: `python main.py --help` says what it takes."""

from ncp_jax.experiment import command_line

if __name__ == "__main__":
    command_line.run()
