"""Class lists of a single class: all that a label can say is what changed."""


def is_binary(num_classes: int) -> bool:
    """Tell whether labels say what changed and nothing else.

    Args:
        num_classes: C, *unchanged* not counted.
    """
    return num_classes == 1


def semantic_classes(num_classes: int) -> int:
    """Return how many of C classes a model has to tell apart: 0 of a single one."""
    return 0 if is_binary(num_classes) else num_classes
