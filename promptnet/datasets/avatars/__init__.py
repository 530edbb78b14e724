"""People without end: avatars whose identity is continuous, with exact records. See `person` and `render`."""
