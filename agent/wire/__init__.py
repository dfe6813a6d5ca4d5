"""The language that agent and collector share: events, batches, their encoding and their hashes."""
