"""FFNs: the plain one, those with other gates, mixtures of experts."""
