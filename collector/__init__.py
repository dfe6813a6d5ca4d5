"""The central collector: takes batches exactly once into PostgreSQL and answers for them."""
