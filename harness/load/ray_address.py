"""How workers on other machines are named on the command line and in a plan."""

from __future__ import annotations

PREFIX = "ray"


def parse_workers(text: str) -> tuple[str | None, int | None]:
    """``ray``, ``ray,8``, ``ray://HOST:PORT`` or ``ray://HOST:PORT,8`` as the address and the number of workers.

    Without an address: the cluster that ``RAY_ADDRESS`` names, else a local one.  Without a number: one a machine.
    Raises ValueError.
    """
    address, _, number = text.partition(",")
    if address != PREFIX and not address.startswith("ray://"):
        raise ValueError(f"workers {text!r} should be a number, ray[,N] or ray://HOST:PORT[,N]")
    if number and (not number.isdigit() or int(number) < 1):
        raise ValueError(f"workers {text!r}: the number after the comma must be 1 or more")
    return (None if address == PREFIX else address), (int(number) if number else None)
