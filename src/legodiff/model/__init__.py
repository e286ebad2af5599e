"""The network: a stack of LEGO bricks. Knows nothing of data, training or devices."""
