"""What `promptnet` can do: one typed function a command. Heavy imports stand inside the functions."""
