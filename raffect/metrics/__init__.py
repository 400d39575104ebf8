"""The numpy half of the kinds of tasks: what labels mean, additive statistics, scores, chance level and intervals."""
