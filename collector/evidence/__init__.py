"""Proof that what is stored is what came: comparison with frames, chains, the Merkle tree, checkpoints, bundles."""
