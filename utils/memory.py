"""What the C library does with freed memory: keep it for the next step, or give it back."""

import ctypes

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER_TRIM = -1  # 2^31 - 1 would give back what lies free above 2 GB
# Where glibc's thresholds end up by themselves in a program that frees large blocks.
_USUAL = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20), (_MMAP_MAX, 65536))


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory, so that each step finds the pages of the last one.

    By default a large tensor's memory goes back to the system when it is freed, and comes back
    page by page, zeroed: on a CPU that took a seventh of a training step (`docs/performance.md`).
    The process holds its peak memory until it ends.

    Returns:
        Whether the C library is glibc; nothing is changed otherwise.
    """
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER_TRIM))


def give_back_freed_memory() -> bool:
    """Undo `keep_freed_memory`, and give back what is free, as a program without it would have."""
    done = _set(*_USUAL)
    if done:
        ctypes.CDLL(None).malloc_trim(0)
    return done


def _set(*values: tuple[int, int]) -> bool:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such library
        return False
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    for parameter, value in values:
        library.mallopt(parameter, value)
    return True
