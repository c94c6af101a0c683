"""`python -m attnlab` is the `attnlab` command."""

import signal


def main() -> None:
    """Run the `attnlab` command. Ctrl-C ends it without a traceback while it is being imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from attnlab.cli import main as command

    command()


if __name__ == "__main__":
    main()
