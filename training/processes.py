"""What commands that may run in several processes do at their end."""

from __future__ import annotations

from torch import distributed


def leave_process_group() -> None:
    """
    Wait until all processes have done their work, and close the connections between them; nothing in a single process.
    Connections that are open when a process ends are torn down in any order, and now and then gloo aborts over it.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


__all__ = ["leave_process_group"]
