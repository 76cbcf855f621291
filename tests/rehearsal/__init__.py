"""The whole road of a bundle to a machine without a network, walked on this one."""
