"""How a student is trained: what it trains on, one step, and what a run keeps."""
