"""Verbs as people type them, called in this process."""

from vqgan_jax.__main__ import main


def succeeds(*argv) -> None:
    """A verb that succeeds."""
    assert main([str(argument) for argument in argv]) == 0


def told(capsys, *argv) -> str:
    """What a verb that succeeds prints, on one line."""
    succeeds(*argv)
    return " ".join(capsys.readouterr().out.split())


def refused(capsys, *argv) -> str:
    """The message of a verb that cannot do what it is asked, on one line; it is no traceback."""
    assert main([str(argument) for argument in argv]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"vqgan {argv[0]}: ")
    assert "Traceback" not in message
    return " ".join(message.split())
