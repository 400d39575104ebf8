"""Scores from statistics that add up: the numpy half of the kinds of tasks."""
