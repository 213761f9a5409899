"""Generators of the steps' code. Each writes a step for one schedule: samples in the lanes, or one sample."""
