"""The only code that speaks SQL. Everything above asks it in terms of batches, events, agents and keys."""
