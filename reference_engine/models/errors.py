"""What can go wrong with a model file.  Every message is one sentence for the user: what is wrong and what to do."""

from __future__ import annotations


class ModelLoadError(ValueError):
    """A model that cannot be loaded; the message is shown to the user as it is."""


class ChatTemplateMissing(ModelLoadError):
    """A chat was to be rendered with a model that carries no chat template."""


class ChatTemplateError(ValueError):
    """The model's chat template refused the messages (``raise_exception``) or failed on them."""
