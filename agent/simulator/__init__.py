"""A virtual line: what a plant says, for the demo, for tests, for trying rules without a plant. Knows nothing of the agent."""
