"""One stage on several devices or machines: what hands out its work, and gathers what came of it."""
