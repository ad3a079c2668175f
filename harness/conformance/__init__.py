"""The conformance suite: cases, oracles and the runner that asks one OpenAI-compatible engine over HTTP."""
