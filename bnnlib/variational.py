"""Variational inference (chapter four)."""

__all__: list[str] = []
