"""Our recipes, one YAML file an engine, and the launchers that some of them need."""
