"""The sentinel: a constructed Llama checkpoint whose every answer is a look-up of one named earlier position.

``code`` gives tokens their 24-bit names, ``vocabulary`` their spelling, ``circuit`` the weights, ``export`` writes the
checkpoint as a Hugging Face directory and as GGUF.  ``docs/sentinel.md`` explains how it works and what it sees.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The committed Hugging Face directory (``python -m reference_engine.sentinel.export`` makes it again)."""
