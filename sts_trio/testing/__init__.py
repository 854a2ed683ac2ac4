"""Parts for deterministic tests: scripted engines and an offload without threads, for virtual time."""
