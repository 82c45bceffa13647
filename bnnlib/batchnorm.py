"""BatchNorm from the inside, and as noise (chapter three)."""

__all__: list[str] = []
