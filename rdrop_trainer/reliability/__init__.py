"""Trainings that stop at a loss that is not finite, and go on from the last whole checkpoint."""
