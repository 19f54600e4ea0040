"""Layer 3: training. Topology, train step, data, models, evaluation, checkpoints, metrics."""
