"""A name for the meeting of some processes, in a store that may know their forerunners."""

import time
import uuid

import torch.distributed as dist

PAUSE_S = 0.05  # between two looks for questions


def name_meeting(store: dist.Store, rank: int, size: int) -> str:
    """Return a name that all processes of this start get, and those of no earlier one got.

    The launchers' store outlives a restart, and with it what ended processes have written there.
    ``TORCHELASTIC_RESTART_COUNT`` does not tell the starts apart: each launcher counts the failures
    of its own processes alone. So every process asks under a name that it has just drawn, and the
    first answers to that name with its own; an answer to an earlier question is never read. The
    first goes on answering until all have heard it, as a question may have been an earlier one.

    Args:
        store: that of all processes; it decides how long to wait for one that does not come.
        rank: of this process.
        size: number of processes; each must call this.

    Raises:
        torch.distributed.DistError: a process did not come, or the store is gone.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"meeting/question/{rank}", own)
        name = store.get(f"meeting/answer/{own}").decode()
        store.set(f"meeting/heard/{name}/{rank}", "1")
        return name
    deaf = list(range(1, size))
    while deaf:
        for other in deaf:
            asked = store.get(f"meeting/question/{other}").decode()
            store.set(f"meeting/answer/{asked}", own)
        deaf = [other for other in deaf if not store.check([f"meeting/heard/{own}/{other}"])]
        time.sleep(PAUSE_S if deaf else 0)
    return own
