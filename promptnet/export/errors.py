"""What an export is refused with."""


class ExportError(ValueError):
    """An export that cannot be made or used. The message says why, and what to do."""
