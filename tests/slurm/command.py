"""`python -m tests.slurm.command ...` is the command line, with steps of training that take 0.1 s at least.

Its processes meet after each step, so a signal stops a run of some steps at any speed of the machine.
"""

import time


def main() -> None:
    """The command line, slowed down."""
    import cli
    from pipelines import distill
    from pipelines.training import processes

    honest = distill.set_rate

    def slow(*arguments):
        time.sleep(0.1)
        return honest(*arguments)

    processes.PERIOD, distill.set_rate = 0.05, slow
    cli.main()


if __name__ == "__main__":
    main()
